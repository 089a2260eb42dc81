"""Platforms: how they are written, and what runs on them."""

import pytest

from cacheyd.protocol.platforms import own_platform, parse_platform


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("linux/arm64", "linux/arm64/v8"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("Linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
    ],
)
def test_platforms_have_several_names(text: str, same: str) -> None:
    assert parse_platform(text) == parse_platform(same)


@pytest.mark.parametrize(("text", "shown"), [("linux/arm64/v8", "linux/arm64"), ("linux/arm/v6", "linux/arm/v6")])
def test_a_platform_is_shown_as_it_is_usually_written(text: str, shown: str) -> None:
    assert str(parse_platform(text)) == shown


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/am d64", "a/b\n"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a platform"):
        parse_platform(text)


def test_this_machine_has_a_platform() -> None:
    assert own_platform().system == "linux"
    assert own_platform().rank(own_platform())
