"""The commands at the terminal: which images and logins are meant, and what is shown."""

import pytest

from cacheyd.terminal.images import UsageError, image_names

HUB, GHCR = image_names(["alpine", "ghcr.io/acme/app:1.0"])


def test_an_image_that_is_named_twice_is_one() -> None:
    assert image_names(["alpine", "docker.io/library/alpine:latest"]) == [HUB]


@pytest.mark.parametrize("names", [[], ["Not/An Image"], ["sha256:" + "a" * 64]])
def test_names_that_cannot_be_used_are_wrong_usage(names: list[str]) -> None:
    with pytest.raises(UsageError):
        image_names(names)
