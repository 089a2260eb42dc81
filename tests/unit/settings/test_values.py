"""Values of settings: what is taken, and what is refused with what was expected."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheyd.settings import values as parse
from cacheyd.settings.load import load
from cacheyd.settings.settings import SETTINGS, Setting
from cacheyd.settings.values import Size
from tests.support.settings import refusal

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["~", "~x/y", "[::1", "1e9", "%"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def refused(setting: Setting, value: object) -> str | None:
    """What was expected instead, if the value is refused."""
    try:
        setting.parse(value)
    except ValueError as error:
        return str(error)
    return None


@given(value=ANYTHING)
def test_any_value_is_taken_or_refused_with_what_was_expected(value: object) -> None:
    for setting in SETTINGS:
        expectation = refused(setting, value)
        assert expectation is None or expectation.isprintable(), setting.name
        assert expectation != "", setting.name


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("90s", 90.0), ("5m", 300.0), ("1h30m", 5400.0), ("7d", 604800.0), ("250ms", 0.25), ("1.5h", 5400.0), ("30", 30.0),
     (30, 30.0), (0.5, 0.5), ("0", 0.0)],
)  # fmt: skip
def test_durations(value: object, seconds: float) -> None:
    assert parse.duration(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", "5 ", -1, "-5s", "5x", "s", "5 m", "5M", True, None, [], float("nan"), float("inf"), "1e3s"]
)
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse.duration(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("50GiB", Size(50 << 30)),
        ("50GB", Size(50 * 10**9)),
        ("50G", Size(50 << 30)),
        ("1.5 MiB", Size(3 << 19)),
        ("512", Size(512)),
        ("512B", Size(512)),
        (512, Size(512)),
        ("1TiB", Size(1 << 40)),
        ("20g", Size(20 << 30)),
        ("5%", Size(share=0.05)),
        ("", Size()),
    ],
)
def test_sizes(value: object, size: Size) -> None:
    assert parse.size(value) == size


@pytest.mark.parametrize("value", ["-1", -1, "5 apples", "GiB", "100%", "1PiB", "1ib", "5i", True, None, 1.5, "1e9", "%"])
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(ValueError, match="size"):
        parse.size(value)


def test_a_size_on_a_disk() -> None:
    assert Size(100).of(1000) == 100
    assert Size(share=0.05).of(1000) == 50
    assert Size().of(1000) == 0


@pytest.mark.parametrize("value", ["http://", "ftp://a", "https://u:p@a", "https://a?x", "https://a#x", "https://a:0", "https://a:b",
                                   "https://[::1", "a", "https://a b"])  # fmt: skip
def test_what_is_no_base_url(value: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        parse.base_url(value)


@pytest.mark.parametrize("value", ["~", "~/cache"])
def test_a_home_directory(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    assert str(parse.directory(value)).startswith("/home/u")


def test_the_home_of_nobody_is_wrong_input_too() -> None:
    line = refusal(environ={"CACHE_DIR": "~no-such-user/cache"})
    assert "expected" in line


def test_a_relative_path_becomes_absolute() -> None:
    assert load(environ={"CACHE_DIR": "cache"}).cache_dir == Path.cwd() / "cache"
