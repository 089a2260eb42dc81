"""Image layouts in tar files: what is written, what is read, and what is refused."""

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cacheyd.protocol.descriptors import Descriptor
from cacheyd.protocol.images import parse_image
from cacheyd.protocol.platforms import parse_platform
from cacheyd.store.blobs import BlobDir
from cacheyd.terminal.layout import (
    HEADER_MAX,
    INDEX_MAX,
    Image,
    IncompleteError,
    Kept,
    LayoutError,
    Unpacked,
    import_layout,
    write_layout,
)
from tests.support import images
from tests.support.artifacts import Artifact, artifact, buildkit_cache, encoded
from tests.support.images import OCI_INDEX, OCI_MANIFEST, digest_of, make_image, make_index

NAME = "ghcr.io/acme/app:1.0"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
AMD64 = [parse_platform("linux/amd64")]


class Shelf:
    """Objects by digest, as a cache has them."""

    def __init__(self, *contents: images.Image | images.Index) -> None:
        self.objects: dict[str, bytes] = {}
        for content in contents:
            self.objects |= objects_of(content)

    def find(self, digest: str) -> BinaryIO | None:
        data = self.objects.get(digest)
        return None if data is None else io.BytesIO(data)


def objects_of(content: images.Image | images.Index) -> dict[str, bytes]:
    found = {content.digest: content.manifest}
    if isinstance(content, images.Index):
        for _, image in content.images:
            found |= objects_of(image)
    else:
        found |= {blob.digest: blob.data for blob in content.blobs}
    return found


def named(name: str, content: images.Image | images.Index) -> Image:
    return Image(parse_image(name), Descriptor(content.digest, len(content.manifest), content.media_type))


def written(shelf: Shelf, *exported: Image, wanted: Any = None) -> bytes:
    out = io.BytesIO()
    write_layout(out, exported, shelf.find, wanted)
    return out.getvalue()


def entries(tar: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return {entry.name: file.read() for entry in archive if (file := archive.extractfile(entry))}


def packed(files: Iterable[tuple[str | tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files:
            entry = tarfile.TarInfo(name) if isinstance(name, str) else name
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def layout_of(content: images.Image | images.Index, annotations: Any, **changes: Any) -> dict[str, bytes]:
    """The files of a layout with one image."""
    root = {"mediaType": content.media_type, "digest": content.digest, "size": len(content.manifest)}
    index = {"schemaVersion": 2, "manifests": [{**root, "annotations": annotations, **changes}]}
    blobs = {blob_path(digest): data for digest, data in objects_of(content).items()}
    return {**blobs, "index.json": json.dumps(index).encode(), "oci-layout": LAYOUT}


class Import:
    """An import into a folder, and what it kept."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kept: dict[str, Kept] = {}
        self.data: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.order: list[str] = []

    def keep(self, kept: Kept) -> None:
        self.kept[kept.file.digest] = kept
        self.data[kept.file.digest] = kept.file.path.read_bytes()
        self.order.append(kept.file.digest)
        kept.file.path.unlink()

    def tag(self, image: Image) -> None:
        self.tags[str(image.name)] = image.root.digest

    def run(self, tar: bytes, name: str = "") -> list[Image]:
        given = parse_image(name, default_tag="") if name else None
        try:
            return import_layout(io.BytesIO(tar), self.directory, self.keep, self.tag, given)
        finally:
            assert list(self.directory.iterdir()) == []

    def refused(self, tar: bytes, name: str = "") -> str:
        with pytest.raises(LayoutError) as caught:
            self.run(tar, name)
        assert (self.kept, self.tags) == ({}, {})
        return str(caught.value)


@pytest.fixture
def importing(tmp_path: Path) -> Import:
    return Import(tmp_path)


# Writing


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


# Reading


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


def test_paths_may_begin_with_a_dot(importing: Import) -> None:
    """As `tar -cf x.tar .` in a layout's folder gives them."""
    image = make_image()
    files = layout_of(image, {"io.containerd.image.name": NAME})

    importing.run(packed((f"./{name}", data) for name, data in files.items()))

    assert importing.data == objects_of(image)


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


# What is no layout, or means harm


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (tarfile.TarInfo("../evil"), "leads out"),
        (tarfile.TarInfo("/etc/evil"), "leads out"),
        (tarfile.TarInfo("./blobs/../../evil"), "leads out"),
        (special("../folder", tarfile.DIRTYPE), "leads out"),
        (special("index.json", tarfile.SYMTYPE, "/etc/passwd"), "neither"),
        (special("blobs/sha256/" + "a" * 64, tarfile.LNKTYPE, "index.json"), "neither"),
        (special("device", tarfile.CHRTYPE), "neither"),
        (special("pipe", tarfile.FIFOTYPE), "neither"),
        (special("blobs/sha256/" + "a" * 64, tarfile.GNUTYPE_SPARSE), "neither"),
        (tarfile.TarInfo("blobs/sha256/short"), "named by a digest"),
        (tarfile.TarInfo("blobs/md5/" + "a" * 32), "named by a digest"),
    ],
)
def test_odd_entries_are_refused(importing: Import, entry: tarfile.TarInfo, why: str) -> None:
    files = layout_of(make_image(), {"io.containerd.image.name": NAME})

    assert why in importing.refused(packed([*files.items(), (entry, b"")]))


def test_a_wrong_digest_is_refused(importing: Import) -> None:
    image = make_image()
    files = layout_of(image, {"io.containerd.image.name": NAME})
    files[blob_path(image.layers[0].digest)] = bytes(len(image.layers[0].data))

    assert "does not hold" in importing.refused(packed(files.items()))


@pytest.mark.parametrize("left_out", ["index.json", "oci-layout"])
def test_what_is_no_layout_is_refused(importing: Import, left_out: str) -> None:
    files = layout_of(make_image(), {"io.containerd.image.name": NAME})
    del files[left_out]

    assert "not an OCI image layout" in importing.refused(packed(files.items()))


@pytest.mark.parametrize(
    "data", [b"", b"x", b"no tar" * 1000, gzip.compress(b"no tar", mtime=0), b"\x1f\x8b\x08" + bytes(600)]
)
def test_what_is_no_tar_is_refused(importing: Import, data: bytes) -> None:
    assert importing.refused(data)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_tar_that_was_cut_off_is_refused(importing: Import, compress: Callable[[bytes], bytes]) -> None:
    image = make_image(layer_size=100_000)
    tar = compress(written(Shelf(image), named(NAME, image)))

    for size in (600, 5000, len(tar) // 2, len(tar) - 12_000):
        importing.refused(tar[:size])


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


def test_absurd_sizes_are_refused(importing: Import) -> None:
    files = [("index.json", bytes(INDEX_MAX + 1)), ("oci-layout", LAYOUT)]
    assert "more than" in importing.refused(packed(files))

    data = json.dumps({"config": {}, "layers": [], "x": "y" * (9 << 20)}).encode()
    root = {"mediaType": OCI_MANIFEST, "digest": digest_of(data), "size": len(data)}
    index = json.dumps({"manifests": [{**root, "annotations": {"io.containerd.image.name": NAME}}]}).encode()
    tar = packed([(blob_path(digest_of(data)), data), ("index.json", index), ("oci-layout", LAYOUT)])
    assert "more than" in importing.refused(tar)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_that_would_fill_the_memory_are_refused(importing: Import, kind: bytes) -> None:
    entry = special("x", kind)
    entry.size = HEADER_MAX + 1

    assert "header" in importing.refused(entry.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


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


TAR = written(Shelf(make_image()), named(NAME, make_image()))


@given(st.lists(st.tuples(st.integers(0, len(TAR) - 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_tar_with_any_bytes_is_refused_or_right(tmp_path: Path, changes: list[tuple[int, bytes]]) -> None:
    """Nothing but LayoutError is raised, nothing stays behind, and what is kept has its digest."""
    data = bytearray(TAR)
    for position, piece in changes:
        data[position : position + len(piece)] = piece
    importing = Import(tmp_path)

    with contextlib.suppress(LayoutError):
        importing.run(bytes(data))

    assert all(digest_of(content) == digest for digest, content in importing.data.items())


# Leftovers


def test_the_files_of_an_import_that_runs_are_not_swept_and_others_are(tmp_path: Path) -> None:
    blobs = BlobDir(tmp_path)
    blobs.prepare()
    image = make_image()
    with Unpacked(tmp_path / "partial") as unpacked:
        unpacked.read(io.BytesIO(written(Shelf(image), named(NAME, image))))
        assert blobs.sweep_partials(3600)[0] == 0
        (one, *_) = unpacked.blobs.values()
        # As if the process had been killed.
        fcntl.flock(one.held, fcntl.LOCK_UN)
        assert blobs.sweep_partials(3600)[0] == 1
        assert not one.path.exists()
    assert list((tmp_path / "partial").iterdir()) == []


def test_an_object_that_is_not_kept_ends_the_import(importing: Import) -> None:
    image = make_image()

    def refuse(kept: Kept) -> None:
        raise LayoutError("no room")

    with pytest.raises(LayoutError, match="no room"):
        import_layout(io.BytesIO(written(Shelf(image), named(NAME, image))), importing.directory, refuse, importing.tag)

    assert os.listdir(importing.directory) == []
    assert importing.tags == {}


def test_sha512_is_a_digest_too(importing: Import) -> None:
    layer = b"layer" * 100
    config = {"mediaType": "c", "digest": digest_of(b"{}"), "size": 2}
    digest = "sha512:" + hashlib.sha512(layer).hexdigest()
    manifest = json.dumps({"config": config, "layers": [{"mediaType": "l", "digest": digest, "size": len(layer)}]}).encode()
    root = Descriptor(digest_of(manifest), len(manifest), OCI_MANIFEST)
    shelf = Shelf()
    shelf.objects = {digest: layer, digest_of(b"{}"): b"{}", root.digest: manifest}

    importing.run(written(shelf, Image(parse_image(NAME), root)))

    assert importing.data == shelf.objects


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
