"""Tar files that come in, and what of them is refused."""

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cacheyd.protocol.descriptors import Descriptor
from cacheyd.protocol.images import parse_image
from cacheyd.store.blobs import BlobDir
from cacheyd.terminal.layout.unpacking import HEADER_MAX, INDEX_MAX, Unpacked
from cacheyd.terminal.layout.words import Image, LayoutError
from tests.support.images import OCI_MANIFEST, digest_of, make_image
from tests.support.layouts import (
    LAYOUT,
    NAME,
    Import,
    Shelf,
    blob_path,
    layout_of,
    named,
    objects_of,
    packed,
    special,
    written,
)


def test_paths_may_begin_with_a_dot(importing: Import) -> None:
    """As `tar -cf x.tar .` in a layout's folder gives them."""
    image = make_image()
    files = layout_of(image, {"io.containerd.image.name": NAME})

    importing.run(packed((f"./{name}", data) for name, data in files.items()))

    assert importing.data == objects_of(image)


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
