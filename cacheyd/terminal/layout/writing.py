"""Writes images of a cache into a layout."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import IO, Any, BinaryIO

from cacheyd.protocol.descriptors import Descriptor, select, unmet
from cacheyd.protocol.manifest import Manifest, is_manifest, parse_manifest
from cacheyd.protocol.media_types import OCI_INDEX
from cacheyd.protocol.platforms import Platform
from cacheyd.protocol.reference import Kind
from cacheyd.terminal.layout.words import (
    FULL_NAME,
    MANIFEST_MAX,
    MAX_DEPTH,
    REF_NAME,
    Checked,
    Image,
    IncompleteError,
    LayoutError,
)

_LAYOUT = {"imageLayoutVersion": "1.0.0"}

type Open = Callable[[str], BinaryIO | None]


def write_layout(out: IO[bytes], images: Iterable[Image], find: Open, wanted: Sequence[Platform] | None) -> int:
    """Writes a tar stream with these images for these platforms (None: all). Gives the bytes of all objects in it.

    It opens all files first, so that it can still read an object that is evicted during the export. The same images give the
    same bytes. Raises IncompleteError before it writes anything, and LayoutError for an object that does not have its digest.
    """
    ordered = sorted(images, key=lambda image: str(image.name))
    with ExitStack() as opened:
        plan = _Plan(find, wanted, opened)
        for image in ordered:
            plan.add(image)
        if plan.missing:
            raise IncompleteError(plan.missing)
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            _write_blobs(tar, plan.files)
            _write_file(tar, "index.json", _json(_index(ordered)))
            _write_file(tar, "oci-layout", _json(_LAYOUT))
        return sum(descriptor.size for descriptor, _ in plan.files.values())


class _Plan:
    """The objects to write, each once, and the objects that are missing."""

    def __init__(self, find: Open, wanted: Sequence[Platform] | None, opened: ExitStack) -> None:
        self._find = find
        self._wanted = wanted
        self._opened = opened
        self.files: dict[str, tuple[Descriptor, BinaryIO]] = {}
        self.missing: list[str] = []

    def add(self, image: Image) -> None:
        """Adds an image with all objects that it needs."""
        leaves: dict[str, Descriptor] = {}
        name = str(image.name)
        manifest = self._manifest(name, image.root)
        if manifest is None:
            return
        self._tree(name, manifest, leaves, 0)
        if manifest.is_index and manifest.entries:
            missing = unmet(self._wanted, list(leaves.values()))
            self.missing += [f"{name}: it is not there for {platform}" for platform in missing]

    def _tree(self, name: str, manifest: Manifest, leaves: dict[str, Descriptor], depth: int) -> None:
        if depth > MAX_DEPTH:
            raise LayoutError(f"{name}: indexes in indexes, more than {MAX_DEPTH} deep")
        if not manifest.is_index:
            for entry in manifest.entries:
                self._open(name, entry)
            return
        for entry in select(manifest.entries, self._wanted):
            if entry.digest in leaves:
                continue
            if self._is_blob(entry):
                self._open(name, entry)
                leaves[entry.digest] = entry
                continue
            child = self._manifest(name, entry)
            if child is None or not child.is_index:
                leaves[entry.digest] = entry
            if child is not None:
                self._tree(name, child, leaves, depth + 1)

    def _is_blob(self, entry: Descriptor) -> bool:
        if entry.kind is not None or entry.size > MANIFEST_MAX:
            return entry.kind is not Kind.MANIFEST
        file = self._find(entry.digest)
        if file is None:
            return True
        with file:
            return not is_manifest(file.read(MANIFEST_MAX))

    def _manifest(self, name: str, entry: Descriptor) -> Manifest | None:
        if entry.size > MANIFEST_MAX:
            raise LayoutError(f"{name}: its manifest {entry.digest} has more than {MANIFEST_MAX} bytes")
        file = self._open(name, entry)
        if file is None:
            return None
        file.seek(0)
        try:
            return parse_manifest(file.read())
        except ValueError as error:
            raise LayoutError(f"{name}: {entry.digest}: {error}") from error

    def _open(self, name: str, entry: Descriptor) -> BinaryIO | None:
        if entry.digest in self.files:
            return self.files[entry.digest][1]
        file = self._find(entry.digest)
        if file is not None:
            self._opened.callback(file.close)
            if file.seek(0, os.SEEK_END) == entry.size:
                self.files[entry.digest] = entry, file
                return file
        if entry.foreign:
            return None
        shown = f" ({entry.platform})" if entry.platform else ""
        self.missing.append(f"{name}: {entry.digest}, {entry.size} bytes{shown}")
        return None


def _write_blobs(tar: tarfile.TarFile, files: Mapping[str, tuple[Descriptor, BinaryIO]]) -> None:
    paths = {f"blobs/{digest.replace(':', '/')}": digest for digest in files}
    for folder in ("blobs", *sorted({path.rpartition("/")[0] for path in paths})):
        entry = tarfile.TarInfo(folder)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755  # The constructor of TarInfo takes only the name.
        tar.addfile(entry)
    for path in sorted(paths):
        descriptor, file = files[paths[path]]
        file.seek(0)
        checked = Checked(file, descriptor.digest)
        entry = tarfile.TarInfo(path)
        entry.size = descriptor.size  # As above.
        tar.addfile(entry, checked)
        checked.verify()


def _write_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)  # As above.
    tar.addfile(entry, io.BytesIO(data))


def _index(images: Sequence[Image]) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [_root(image) for image in images]}


def _root(image: Image) -> dict[str, Any]:
    annotations = {FULL_NAME: str(image.name), **({REF_NAME: image.name.tag} if image.name.tag else {})}
    root = image.root
    return {"mediaType": root.media_type, "digest": root.digest, "size": root.size, "annotations": annotations}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
