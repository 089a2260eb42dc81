"""Makes image layouts in tar files, and imports them."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from cacheyd.protocol.descriptors import Descriptor
from cacheyd.protocol.images import parse_image
from cacheyd.protocol.platforms import parse_platform
from cacheyd.terminal.layout.reading import Kept, import_layout
from cacheyd.terminal.layout.words import Image, LayoutError
from cacheyd.terminal.layout.writing import write_layout
from tests.support import images

NAME = "ghcr.io/acme/app:1.0"


LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


AMD64 = [parse_platform("linux/amd64")]


class Shelf:
    """Objects by digest, like the objects of a cache."""

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
    """An import into a folder. Records the objects and tags that it kept."""

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


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry
