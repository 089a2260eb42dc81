"""Names, digests and patterns, and what is meant by them."""

import pytest

from cacheyd.admin.selection import parse_target
from cacheyd.protocol.images import ImageName, parse_image
from tests.support.snapshots import digest


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("alpine", ImageName("docker.io", "library/alpine")),
        ("alpine:3.22", ImageName("docker.io", "library/alpine", "3.22")),
        ("acme/app", ImageName("docker.io", "acme/app")),
        ("docker.io/alpine", ImageName("docker.io", "library/alpine")),
        ("index.docker.io/library/alpine", ImageName("docker.io", "library/alpine")),
        ("ghcr.io/a/b/c:v1", ImageName("ghcr.io", "a/b/c", "v1")),
        ("localhost/a", ImageName("localhost", "a")),
        ("reg:5000/a:b", ImageName("reg:5000", "a", "b")),
        ("[::1]:5000/a", ImageName("[::1]:5000", "a")),
        (f"alpine:3@{digest('x')}", ImageName("docker.io", "library/alpine", "3", digest("x"))),
    ],
)
def test_images_are_named_as_docker_does(text: str, image: ImageName) -> None:
    assert parse_image(text, default_tag="") == image


@pytest.mark.parametrize(
    "text", ["", "Alpine", "a b", "a:", "a:b c", "a@b", "-x.io/a", "reg.io/", "/a", "a//b", "reg.io/a@sha256:1"]
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_target(text)


def test_brackets_in_a_pattern_are_an_address() -> None:
    pattern = parse_target("[::1]:5000/*").pattern
    assert pattern is not None
    assert pattern.fullmatch("[::1]:5000/a:b")
