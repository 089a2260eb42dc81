"""What an image in a layout is called."""

from typing import Any

import pytest

from tests.support.images import digest_of, make_image
from tests.support.layouts import NAME, Import, Shelf, layout_of, named, packed, written


@pytest.mark.parametrize(
    ("annotations", "name", "tag"),
    [
        ({"io.containerd.image.name": NAME}, "", NAME),
        ({"org.opencontainers.image.ref.name": NAME}, "", NAME),
        ({"org.opencontainers.image.ref.name": "2.0"}, "ghcr.io/acme/app", "ghcr.io/acme/app:2.0"),
        ({"org.opencontainers.image.ref.name": "2.0"}, "ghcr.io/acme/app:3", "ghcr.io/acme/app:3"),
        ({"io.containerd.image.name": NAME}, "ghcr.io/acme/other", "ghcr.io/acme/other:1.0"),
        ({"io.containerd.image.name": NAME}, "alpine:1", "docker.io/library/alpine:1"),
        ({}, "ghcr.io/acme/app", "ghcr.io/acme/app:latest"),
        (None, "ghcr.io/acme/app:1", "ghcr.io/acme/app:1"),
    ],
)
def test_an_image_has_its_own_name_or_the_given_one(importing: Import, annotations: Any, name: str, tag: str) -> None:
    image = make_image()

    importing.run(packed(layout_of(image, annotations).items()), name)

    assert importing.tags == {tag: image.digest}


@pytest.mark.parametrize("annotations", [None, {}, {"org.opencontainers.image.ref.name": "1.0"}, {"x": 1}, []])
def test_an_image_without_a_full_name_needs_one(importing: Import, annotations: Any) -> None:
    assert "--name" in importing.refused(packed(layout_of(make_image(), annotations).items()))


def test_several_images_are_not_one(importing: Import) -> None:
    one, two = make_image(seed=1), make_image(seed=2)
    tar = written(Shelf(one, two), named("a.test/x:1", one), named("a.test/x:2", two))

    assert "several images" in importing.refused(tar, "a.test/y:1")
    importing.run(tar, "a.test/y")
    assert importing.tags == {"a.test/y:1": one.digest, "a.test/y:2": two.digest}


def test_an_image_by_digest_gets_no_tag(importing: Import) -> None:
    image = make_image()
    name = f"ghcr.io/acme/app@{image.digest}"

    importing.run(packed(layout_of(image, {"io.containerd.image.name": name}).items()))

    assert importing.tags == {}
    assert image.digest in importing.kept


def test_another_digest_than_the_name_says_is_refused(importing: Import) -> None:
    name = f"ghcr.io/acme/app@{digest_of(b'other')}"
    assert "is not sha256:" in importing.refused(packed(layout_of(make_image(), {}).items()), name)
