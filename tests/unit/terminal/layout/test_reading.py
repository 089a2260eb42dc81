"""The images of a layout: what is kept, and what is refused."""

import gzip
import io
import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from cacheyd.protocol.descriptors import Descriptor
from cacheyd.protocol.images import parse_image
from cacheyd.terminal.layout.reading import Kept, import_layout
from cacheyd.terminal.layout.words import Image, IncompleteError, LayoutError
from tests.support.artifacts import Artifact, artifact, buildkit_cache, encoded
from tests.support.images import OCI_INDEX, OCI_MANIFEST, digest_of, make_image, make_index
from tests.support.layouts import (
    AMD64,
    LAYOUT,
    NAME,
    Import,
    Shelf,
    blob_path,
    entries,
    layout_of,
    named,
    objects_of,
    packed,
    written,
)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_what_was_written_is_read(importing: Import, compress: Callable[[bytes], bytes]) -> None:
    index = make_index(make_image(seed=1), make_image(seed=2, architecture="arm64"))
    tar = compress(written(Shelf(index), named(NAME, index)))

    (image,) = importing.run(tar)

    assert importing.data == objects_of(index)
    assert importing.tags == {NAME: index.digest}
    assert (image.root.media_type, image.root.size) == (OCI_INDEX, len(index.manifest))
    manifests = {child.digest: OCI_MANIFEST for _, child in index.images} | {index.digest: OCI_INDEX}
    assert {digest: kept.media_type for digest, kept in importing.kept.items()} == {
        **dict.fromkeys(objects_of(index), ""),
        **manifests,
    }
    assert all(list(kept.within) == ["ghcr.io/acme/app"] for kept in importing.kept.values())


def test_manifests_are_kept_after_what_they_need(importing: Import) -> None:
    image = make_image()
    index = make_index(image)

    importing.run(written(Shelf(index), named(NAME, index)))

    order = importing.order
    assert order.index(image.layers[0].digest) < order.index(image.digest) < order.index(index.digest)


def test_an_index_with_some_of_its_platforms_is_read(importing: Import) -> None:
    amd64, arm64 = make_image(seed=1), make_image(seed=2, architecture="arm64")
    index = make_index(amd64, arm64)
    shelf = Shelf(index)

    importing.run(written(shelf, named(NAME, index), wanted=AMD64))

    assert importing.data == {**objects_of(amd64), index.digest: index.manifest}


def test_an_object_of_two_repositories_is_kept_for_both(importing: Import) -> None:
    image = make_image()

    importing.run(written(Shelf(image), named("a.test/one:1", image), named("b.test/two:2", image)))

    assert list(importing.kept[image.digest].within) == ["a.test/one", "b.test/two"]
    assert importing.tags == {"a.test/one:1": image.digest, "b.test/two:2": image.digest}


def test_what_no_image_needs_is_left_out(importing: Import) -> None:
    image = make_image()
    files = layout_of(image, {"io.containerd.image.name": NAME})
    more = {blob_path(digest_of(b"other")): b"other", "manifest.json": b"[]", "repositories": b"{}"}

    importing.run(packed({**more, **files}.items()))

    assert importing.data == objects_of(image)


def test_a_layer_that_is_missing_is_named(importing: Import) -> None:
    image = make_image()
    files = layout_of(image, {"io.containerd.image.name": NAME})
    del files[blob_path(image.layers[0].digest)]

    assert image.layers[0].digest in importing.refused(packed(files.items()))


def test_an_index_without_any_of_its_manifests_is_refused(importing: Import) -> None:
    index = make_index(make_image())
    files = layout_of(index, {"io.containerd.image.name": NAME})
    del files[blob_path(index.images[0][1].digest)]

    assert "none of the manifests" in importing.refused(packed(files.items()))


@pytest.mark.parametrize(
    "index", [b"[]", b"{", b"{}", b'{"manifests":[]}', b'{"manifests":[1]}', b'{"manifests":[{"digest":"x","size":1}]}']
)
def test_an_index_that_makes_no_sense_is_refused(importing: Import, index: bytes) -> None:
    importing.refused(packed([("index.json", index), ("oci-layout", LAYOUT)]))


def test_another_size_than_the_manifest_says_is_refused(importing: Import) -> None:
    files = layout_of(make_image(), {"io.containerd.image.name": NAME}, size=5)

    assert "where it is referred to" in importing.refused(packed(files.items()))


def test_indexes_that_go_round_and_deep_come_to_an_end(importing: Import) -> None:
    """Each of its 50 entries is an index of 50 entries, and so on."""
    files, entry = {}, {}
    data = b'{"manifests":[]}'
    for _ in range(8):
        entry = {"mediaType": OCI_INDEX, "digest": digest_of(data), "size": len(data)}
        files[blob_path(digest_of(data))] = data
        data = json.dumps({"manifests": [entry] * 50}).encode()
    index = json.dumps({"manifests": [{**entry, "annotations": {"io.containerd.image.name": NAME}}]}).encode()

    assert "deep" in importing.refused(packed([*files.items(), ("index.json", index), ("oci-layout", LAYOUT)]))


def test_an_object_that_is_not_kept_ends_the_import(importing: Import) -> None:
    image = make_image()

    def refuse(kept: Kept) -> None:
        raise LayoutError("no room")

    with pytest.raises(LayoutError, match="no room"):
        import_layout(io.BytesIO(written(Shelf(image), named(NAME, image))), importing.directory, refuse, importing.tag)

    assert os.listdir(importing.directory) == []
    assert importing.tags == {}


# What is no image


class Odd(Shelf):
    """Objects that are no image's, and what is left out of them."""

    def __init__(self, content: Artifact, *without: str) -> None:
        super().__init__()
        self.objects = {digest: data for digest, data in content.objects.items() if digest not in without}


def odd(content: Artifact) -> Image:
    return Image(parse_image(NAME), Descriptor(content.digest, len(content.manifest), content.media_type))


ODD = [
    buildkit_cache(1),
    buildkit_cache(2, layer_type="application/vnd.acme.x"),
    buildkit_cache(3, layer_type=None),
    artifact(4),
    artifact(5, layers=None),
    artifact(6, config=None),
    artifact(7, schemaVersion=None, mediaType="application/vnd.oci.artifact.manifest.v1+json", config=None, blobs=[]),
    Artifact(encoded({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": None}), OCI_INDEX),
]


@pytest.mark.parametrize("wanted", [None, AMD64])
@pytest.mark.parametrize("content", ODD)
def test_what_is_no_image_is_carried_too(importing: Import, content: Artifact, wanted: Any) -> None:
    tar = written(Odd(content), odd(content), wanted=wanted)

    (image,) = importing.run(tar)

    assert importing.data == content.objects
    assert importing.order[-1] == content.digest
    assert (importing.kept[content.digest].media_type, image.root.digest) == (content.media_type, content.digest)
    assert all(importing.kept[blob.digest].media_type == "" for blob in content.blobs)


@pytest.mark.parametrize("content", ODD[:5])
def test_what_misses_of_it_is_said(importing: Import, content: Artifact) -> None:
    missing = content.blobs[0].digest
    with pytest.raises(IncompleteError, match=missing):
        written(Odd(content, missing), odd(content))
    if content in ODD[1:3]:
        return  # What is listed without a type may be another platform.
    files = entries(written(Odd(content), odd(content)))
    del files[blob_path(missing)]
    assert missing in importing.refused(packed(files.items()))


def test_layers_from_elsewhere_are_carried_where_they_are(importing: Import) -> None:
    image = make_image(layers=2)
    content = json.loads(image.manifest)
    for layer in content["layers"]:
        layer["urls"] = ["https://elsewhere.test/layer"]
    manifest = encoded(content)
    there, away = image.layers
    kept = Artifact(manifest, OCI_MANIFEST, (image.config, there))

    importing.run(written(Odd(kept), odd(kept)))

    assert there.digest in importing.data
    assert away.digest not in importing.data
