"""What can be used, and can hardly be meant."""

from collections.abc import Callable

import pytest

from cacheyd.settings.load import load
from tests.support.settings import SAMPLES, TRIED, text, unknown


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("CACHEYD_TAG_TLL", "; did you mean CACHEYD_TAG_TTL?"),
        ("CACHEYD_tag_ttl", "; did you mean CACHEYD_TAG_TTL?"),
        ("CACHEYD_CACHEDIR", "; did you mean CACHEYD_CACHE_DIR?"),
        ("CACHEYD_CONFG", "; did you mean CACHEYD_CONFIG?"),
        ("CACHEYD_PROT", "; did you mean CACHEYD_PORT?"),
        ("CACHEYD_UPSTREAM", '; upstream can only stand in the file, in [registries."…"]'),
        ("CACHEYD_PASWORD", '; password can only stand in the file, in [registries."…"]'),
        ("CACHEYD_ZZZZZ", ""),
        ("CACHEYD_", ""),
    ],
)
def test_a_variable_that_is_no_setting_is_warned_about(name: str, hint: str) -> None:
    settings = load(environ={name: "a-secret"})
    assert settings.warnings == (unknown(name, hint),)
    assert load(environ={name: ""}).warnings == ()


def test_a_warning_is_one_line() -> None:
    (line,) = load(environ={"CACHEYD_A\nB\udcff": "x"}).warnings
    assert line.isprintable()


def test_variables_that_are_right_are_not_warned_about(write: Callable[[str], str]) -> None:
    file = write('[registries."a.b"]\nauth = "credentials"\nusername = "u"\npassword_env = "CACHEYD_HUB_TOKEN"\n')
    names = [name for setting in TRIED for name in setting.variables()]
    samples = {name: text(SAMPLES[setting.name][0][0]) for setting in TRIED for name in setting.variables()}
    del samples["CACHEYD_AUTH"]
    assert set(samples) <= set(names)
    environ = samples | {
        "CACHEYD_CONFIG": file,
        "CACHEYD_HUB_TOKEN": "x",
        "CACHED_TAG_TTL": "1",
        "HOME": "/",
        "cacheyd_x": "1",
    }
    assert load(environ=environ).warnings == ()


NO_BOUND = "neither max_size nor min_free is set: the cache grows until its disk is full"


@pytest.mark.parametrize(
    ("values", "warned"),
    [
        ({"CACHEYD_MIN_FREE": "0"}, True),
        ({"CACHEYD_MIN_FREE": "0%"}, True),
        ({"CACHEYD_MIN_FREE": "0GiB", "CACHEYD_MAX_SIZE": "0"}, True),
        ({"CACHEYD_MIN_FREE": "1"}, False),
        ({"CACHEYD_MIN_FREE": "0", "CACHEYD_MAX_SIZE": "50%"}, False),
        ({"CACHEYD_MIN_FREE": "0", "CACHEYD_MAX_SIZE": "5GiB"}, False),
        ({}, False),
    ],
)
def test_no_bound_at_all_is_said(values: dict[str, str], warned: bool, write: Callable[[str], str]) -> None:
    assert load(environ=values).warnings == ((NO_BOUND,) if warned else ())
    content = "".join(f'{name.removeprefix("CACHEYD_").lower()} = "{value}"\n' for name, value in values.items())
    assert load(file=write(content), environ={}).warnings == ((NO_BOUND,) if warned else ())
