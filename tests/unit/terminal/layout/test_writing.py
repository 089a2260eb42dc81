"""What is written, and what is missing."""

import io
import json
import tarfile

import pytest

from cacheyd.protocol.platforms import parse_platform
from cacheyd.terminal.layout.words import IncompleteError, LayoutError
from cacheyd.terminal.layout.writing import write_layout
from tests.support.images import make_image, make_index
from tests.support.layouts import AMD64, NAME, Shelf, blob_path, entries, named, objects_of, written


def test_an_image_is_written_as_the_specification_says() -> None:
    image = make_image(layers=2)

    files = entries(written(Shelf(image), named(NAME, image)))

    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (root,) = json.loads(files["index.json"])["manifests"]
    assert root == {
        "mediaType": image.media_type,
        "digest": image.digest,
        "size": len(image.manifest),
        "annotations": {"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": "1.0"},
    }
    blobs = {name: data for name, data in files.items() if name.startswith("blobs/")}
    assert blobs == {blob_path(digest): data for digest, data in objects_of(image).items()}


def test_an_image_by_digest_has_no_tag() -> None:
    image = make_image()
    name = f"ghcr.io/acme/app@{image.digest}"

    (root,) = json.loads(entries(written(Shelf(image), named(name, image)))["index.json"])["manifests"]

    assert root["annotations"] == {"io.containerd.image.name": name}


def test_the_same_images_give_the_same_bytes() -> None:
    one, two = make_image(seed=1), make_image(seed=2)
    shelf = Shelf(one, two)
    first, second = named("b.test/one:1", one), named("a.test/two:1", two)

    assert written(shelf, first, second) == written(shelf, second, first)


def test_what_images_share_is_written_once() -> None:
    one = make_image(layers=2, seed=1)
    other = make_image(layers=2, seed=1, architecture="arm64")

    tar = written(Shelf(one, other), named("a.test/one:1", one), named("a.test/two:1", other))

    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        names = archive.getnames()
    assert len(names) == len(set(names))
    assert len(entries(tar)) == 2 + 2 + 2 + 2  # layers, configs, manifests, and what makes it a layout


def test_an_index_stays_as_it_is_with_some_of_its_platforms() -> None:
    amd64, arm64 = make_image(seed=1), make_image(seed=2, architecture="arm64")
    index = make_index(amd64, arm64)
    shelf = Shelf(amd64)
    shelf.objects[index.digest] = index.manifest

    files = entries(written(shelf, named(NAME, index), wanted=AMD64))

    assert files[blob_path(index.digest)] == index.manifest
    assert blob_path(amd64.digest) in files
    assert blob_path(arm64.digest) not in files


def test_what_is_missing_is_said_before_anything_is_written() -> None:
    amd64, arm64 = make_image(seed=1), make_image(seed=2, architecture="arm64")
    index = make_index(amd64, arm64)
    shelf = Shelf(index)
    del shelf.objects[amd64.layers[0].digest], shelf.objects[arm64.digest]
    out = io.BytesIO()

    with pytest.raises(IncompleteError) as caught:
        write_layout(out, [named(NAME, index)], shelf.find, None)

    assert caught.value.missing == [
        f"{NAME}: {amd64.layers[0].digest}, {len(amd64.layers[0].data)} bytes",
        f"{NAME}: {arm64.digest}, {len(arm64.manifest)} bytes (linux/arm64)",
    ]
    assert out.getvalue() == b""


def test_a_platform_that_the_image_has_not_is_missing() -> None:
    index = make_index(make_image())

    with pytest.raises(IncompleteError, match="linux/s390x"):
        written(Shelf(index), named(NAME, index), wanted=[parse_platform("linux/s390x")])


def test_a_file_that_is_not_what_its_digest_says_is_not_exported() -> None:
    image = make_image()
    shelf = Shelf(image)
    size = len(image.layers[0].data)
    shelf.objects[image.layers[0].digest] = bytes(size)

    with pytest.raises(LayoutError, match="does not hold"):
        written(shelf, named(NAME, image))
