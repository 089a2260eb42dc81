"""Reads the images of a layout: finds the objects that the cache must keep, and the objects that are missing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from cacheyd.protocol.bounded_json import parse_object
from cacheyd.protocol.descriptors import Descriptor, parse_descriptor
from cacheyd.protocol.images import ImageName
from cacheyd.protocol.manifest import Manifest, is_manifest, media_type_of, parse_manifest
from cacheyd.protocol.reference import Kind
from cacheyd.terminal.layout.names import name_of
from cacheyd.terminal.layout.unpacking import Received, Unpacked, json_object
from cacheyd.terminal.layout.words import MANIFEST_MAX, MAX_DEPTH, Image, IncompleteError, LayoutError

# The most images in a layout.
MAX_IMAGES = 1000


@dataclass(frozen=True, slots=True)
class Kept:
    """An object that the cache must keep: its file, its media type (empty for blobs), and the repositories that have it."""

    file: Received
    media_type: str
    within: dict[str, None] = field(default_factory=dict)

    def belongs_to(self, repository: str) -> None:
        """Notes a repository that has this object."""
        self.within.setdefault(repository)


def images_in(unpacked: Unpacked, given: ImageName | None = None) -> tuple[list[Image], list[Kept]]:
    """The images of a layout, and the objects that the cache must keep: blobs before the manifests that need them.

    `given` names the image or, without a tag, the repository of all images. An index can have only some of its manifests; a
    manifest must have all objects that it needs. Raises LayoutError.
    """
    roots = json_object(unpacked.index, "index.json").get("manifests")
    if not isinstance(roots, list) or not roots:
        raise LayoutError("index.json names no image")
    if len(roots) > MAX_IMAGES:
        raise LayoutError(f"more than {MAX_IMAGES} images")
    tree = _Tree(unpacked.blobs)
    images = []
    for item in roots:
        try:
            root = parse_descriptor(item)
        except ValueError as error:
            raise LayoutError(f"index.json: {error}") from error
        name = name_of(item, root, given, alone=len(roots) == 1)
        images.append(Image(name, Descriptor(root.digest, root.size, tree.add(name, root))))
    if tree.missing:
        raise IncompleteError(tree.missing)
    return images, list(tree.kept.values())


class _Tree:
    """The objects that the images of a layout need."""

    def __init__(self, blobs: Mapping[str, Received]) -> None:
        self._blobs = blobs
        self._seen: set[tuple[str, str]] = set()
        self.kept: dict[str, Kept] = {}
        self.missing: list[str] = []

    def add(self, name: ImageName, entry: Descriptor, depth: int = 0) -> str:
        """Adds a manifest with all objects that it needs; gives its media type."""
        if depth > MAX_DEPTH:
            raise LayoutError(f"{name}: indexes in indexes, more than {MAX_DEPTH} deep")
        self._seen.add((name.name, entry.digest))
        file = self._file(name, entry)
        if file is None:
            return entry.media_type
        if file.size > MANIFEST_MAX:
            raise LayoutError(f"the manifest {file.digest} has more than {MANIFEST_MAX} bytes")
        data = file.read()
        try:
            manifest = parse_manifest(data)
            media_type = media_type_of(parse_object(data))
        except ValueError as error:
            raise LayoutError(f"{file.digest}: {error}") from error
        if manifest.is_index:
            self._children(name, file.digest, manifest, depth)
        else:
            for blob in manifest.entries:
                self._blob(name, blob)
        self._keep(name, file, media_type)
        return media_type

    def _children(self, name: ImageName, digest: str, index: Manifest, depth: int) -> None:
        # BuildKit's caches have blobs as entries of an index: all of these blobs are needed.
        blobs = [child for child in index.entries if child.kind is Kind.BLOB]
        others = [child for child in index.entries if child.kind is not Kind.BLOB]
        present = [child for child in others if child.digest in self._blobs]
        if others and not present:
            self.missing.append(f"{name}: none of the manifests of {digest}")
        for blob in (*blobs, *(child for child in present if self._is_blob(child))):
            self._blob(name, blob)
        for child in present:
            if (name.name, child.digest) not in self._seen and not self._is_blob(child):
                self.add(name, child, depth + 1)

    def _is_blob(self, entry: Descriptor) -> bool:
        if entry.kind is not None or entry.size > MANIFEST_MAX:
            return entry.kind is not Kind.MANIFEST
        return not is_manifest(self._blobs[entry.digest].read())

    def _blob(self, name: ImageName, entry: Descriptor) -> None:
        if entry.foreign and entry.digest not in self._blobs:
            return
        if (content := self._file(name, entry)) is not None:
            self._keep(name, content, "")

    def _file(self, name: ImageName, entry: Descriptor) -> Received | None:
        file = self._blobs.get(entry.digest)
        if file is None:
            self.missing.append(f"{name}: {entry.digest}, {entry.size} bytes")
        elif file.size != entry.size:
            raise LayoutError(f"{entry.digest} has {file.size} bytes, and {entry.size} where it is referred to")
        return file

    def _keep(self, name: ImageName, file: Received, media_type: str) -> None:
        kept = self.kept.setdefault(file.digest, Kept(file, media_type))
        kept.belongs_to(name.name)


def import_layout(
    source: IO[bytes],
    directory: Path,
    keep: Callable[[Kept], None],
    set_tag: Callable[[Image], None],
    given: ImageName | None = None,
    progress: Callable[[int], None] = lambda size: None,
    reserve: Callable[[int], None] = lambda size: None,
) -> list[Image]:
    """Reads a tar into the cache. Keeps nothing unless the whole tar is correct. Raises LayoutError, and OSError for the disk.

    `reserve` makes room for a number of bytes, and `keep` moves a file into the cache; both can raise. `set_tag` is called
    after all objects are in the cache.
    """
    with Unpacked(directory, reserve) as unpacked:
        unpacked.read(source, progress)
        images, objects = images_in(unpacked, given)
        for kept in objects:
            keep(kept)
        for image in images:
            if image.name.tag:
                set_tag(image)
    return images
