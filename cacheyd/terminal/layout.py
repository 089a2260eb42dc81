"""Images in a tar file: an OCI image layout (image-spec v1.1, image-layout.md), as `ctr`, `skopeo` and `docker` write it.

Knows files and digests only: what is in the cache comes through functions.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, Self, override

from cacheyd.protocol.bounded_json import parse_object
from cacheyd.protocol.descriptors import Descriptor, parse_descriptor, select, unmet
from cacheyd.protocol.images import ImageName, parse_image
from cacheyd.protocol.manifest import Manifest, is_manifest, media_type_of, parse_manifest
from cacheyd.protocol.media_types import OCI_INDEX
from cacheyd.protocol.platforms import Platform
from cacheyd.protocol.reference import TAG, Kind
from cacheyd.protocol.registries import has_registry
from cacheyd.store import partials

# What containerd and docker call the image, and what the specification calls its tag.
FULL_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
_LAYOUT = {"imageLayoutVersion": "1.0.0"}
_BLOB = re.compile(r"blobs/(?:(sha256)/([0-9a-f]{64})|(sha512)/([0-9a-f]{128}))")
# The most that index.json, a manifest, and a header of the tar may have (bytes), and how many files and images.
INDEX_MAX, MANIFEST_MAX, HEADER_MAX = 4 << 20, 4 << 20, 1 << 20
MAX_FILES, MAX_IMAGES, MAX_DEPTH = 100_000, 1000, 4
_COPY = 1 << 20

type Open = Callable[[str], BinaryIO | None]


class LayoutError(Exception):
    """A tar file that cannot be written or read; the message says why."""


class IncompleteError(LayoutError):
    """What is wanted of the images is not all there."""

    def __init__(self, missing: Sequence[str]) -> None:
        shown = "\n".join(f"  {line}" for line in missing)
        super().__init__(f"not all of it is there:\n{shown}")
        self.missing = missing


@dataclass(frozen=True, slots=True)
class Image:
    """An image by its name, and its manifest or index."""

    name: ImageName
    root: Descriptor


# Writing


def write_layout(out: IO[bytes], images: Iterable[Image], find: Open, wanted: Sequence[Platform] | None) -> int:
    """Writes a tar stream with these images for these platforms (None: all); how many bytes of objects are in it.

    All that goes in is opened first: what is evicted meanwhile is still there. The same images give the same bytes.
    Raises IncompleteError before anything is written, LayoutError for an object that is not what its digest says.
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
    """What is to be written, each object once, and what is missing of it."""

    def __init__(self, find: Open, wanted: Sequence[Platform] | None, opened: ExitStack) -> None:
        self._find = find
        self._wanted = wanted
        self._opened = opened
        self.files: dict[str, tuple[Descriptor, BinaryIO]] = {}
        self.missing: list[str] = []

    def add(self, image: Image) -> None:
        """Takes an image in."""
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
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(entry)
    for path in sorted(paths):
        descriptor, file = files[paths[path]]
        file.seek(0)
        checked = _Checked(file, descriptor.digest)
        entry = tarfile.TarInfo(path)
        entry.size = descriptor.size
        tar.addfile(entry, checked)
        checked.verify()


def _write_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


class _Checked(io.RawIOBase):
    """A file whose digest is computed while it is read."""

    def __init__(self, file: IO[bytes], digest: str) -> None:
        self._file = file
        self._digest = digest
        self._hash = hashlib.new(digest.partition(":")[0])

    @override
    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        return data

    def verify(self) -> None:
        """Raises LayoutError if what was read does not have the digest."""
        if self._hash.hexdigest() != self._digest.partition(":")[2]:
            raise LayoutError(f"{self._digest} does not hold what its name says")


def _index(images: Sequence[Image]) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [_root(image) for image in images]}


def _root(image: Image) -> dict[str, Any]:
    annotations = {FULL_NAME: str(image.name), **({REF_NAME: image.name.tag} if image.name.tag else {})}
    root = image.root
    return {"mediaType": root.media_type, "digest": root.digest, "size": root.size, "annotations": annotations}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


# Reading


@dataclass(frozen=True, slots=True)
class Received:
    """A blob of the tar in a temporary file, its digest verified. `held` is open and locked, shared with who keeps it."""

    digest: str
    size: int
    path: Path
    held: BinaryIO

    def read(self) -> bytes:
        """All of it; for manifests."""
        self.held.seek(0)
        return self.held.read()


@dataclass(frozen=True, slots=True)
class Kept:
    """An object to be kept: its media type (empty for blobs), and the repositories that have it."""

    file: Received
    media_type: str
    within: dict[str, None] = field(default_factory=dict)


class Unpacked:
    """What a tar holds, in temporary files in `directory` that go at the end of the `with` block, or are swept afterwards."""

    def __init__(self, directory: Path, reserve: Callable[[int], None] = lambda size: None) -> None:
        self._directory = directory
        self._reserve = reserve
        self.blobs: dict[str, Received] = {}
        self.index = b""
        self.layout = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for received in self.blobs.values():
            with received.held:
                partials.discard(received.path, received.held.fileno())

    def read(self, source: IO[bytes], progress: Callable[[int], None] = lambda size: None) -> None:
        """Takes in a tar stream, plain or compressed, in one pass. Raises LayoutError, and OSError for the disk."""
        try:
            with tarfile.open(fileobj=source, mode="r|*", tarinfo=_Header, bufsize=_COPY) as tar:
                for number, entry in enumerate(tar):
                    if number >= MAX_FILES:
                        raise LayoutError(f"more than {MAX_FILES} files")
                    self._take(tar, entry, progress)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise LayoutError(f"not a tar file that can be read: {error}") from error
        if not self.index or not self.layout:
            raise LayoutError("not an OCI image layout: it has no index.json or no oci-layout (docker save before 25?)")
        if "imageLayoutVersion" not in _object(self.layout, "oci-layout"):
            raise LayoutError("not an OCI image layout: oci-layout says no version")

    def _take(self, tar: tarfile.TarFile, entry: tarfile.TarInfo, progress: Callable[[int], None]) -> None:
        name = _checked_path(entry)
        if entry.isdir():
            return
        if name in ("index.json", "oci-layout"):
            if entry.size > INDEX_MAX:
                raise LayoutError(f"{name} has more than {INDEX_MAX} bytes")
            data = _open_member(tar, entry).read()
            if name == "index.json":
                self.index = data
            else:
                self.layout = data
        elif match := _BLOB.fullmatch(name):
            digest = ":".join(part for part in match.groups() if part)
            if digest not in self.blobs:
                self._reserve(entry.size)
                self._receive(_open_member(tar, entry), digest, progress)
        elif name.startswith("blobs/"):
            raise LayoutError(f"{name!r} is not named by a digest that can be checked")

    def _receive(self, source: IO[bytes], digest: str, progress: Callable[[int], None]) -> None:
        path, fd = partials.make_for_import(self._directory, len(self.blobs))
        held = open(fd, "r+b", buffering=0)  # noqa: SIM115
        received = Received(digest, 0, path, held)
        self.blobs[digest] = received
        if os.geteuid() == 0:
            # The cache may run as somebody else, and has to open it.
            owner = self._directory.stat()
            os.fchown(held.fileno(), owner.st_uid, owner.st_gid)
        checked, size = _Checked(source, digest), 0
        while data := checked.read(_COPY):
            view = memoryview(data)
            while view:
                view = view[held.write(view) :]
            size += len(data)
            progress(len(data))
        checked.verify()
        self.blobs[digest] = Received(digest, size, path, held)


class _Header(tarfile.TarInfo):
    """A header of a tar; those that only say something of the next one are read into memory, so they have a limit."""

    @classmethod
    @override
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        special = (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )
        if header.type in special and header.size > HEADER_MAX:
            raise LayoutError("a header of the tar is too large")
        return header


def _checked_path(entry: tarfile.TarInfo) -> str:
    """The entry's path without `./`. Raises LayoutError for what no layout has: links, devices, ways out."""
    name = re.sub(r"^(?:\./+)+", "", entry.name).rstrip("/")
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise LayoutError(f"the path {entry.name!r} leads out of the layout")
    if not entry.isdir() and (entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or entry.issparse()):
        raise LayoutError(f"{entry.name!r} is neither a file nor a folder")
    return name


def _open_member(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(entry)
    if file is None:
        raise LayoutError(f"{entry.name!r} is neither a file nor a folder")
    return file


def _object(data: bytes, name: str) -> dict[str, object]:
    try:
        return parse_object(data)
    except ValueError as error:
        raise LayoutError(f"{name}: {error}") from error


def images_in(unpacked: Unpacked, given: ImageName | None = None) -> tuple[list[Image], list[Kept]]:
    """The images of a layout, and what of it is to be kept: blobs before the manifests that need them.

    `given` names the image, or, without a tag, the repository of all of them. An index may have some of its manifests
    only; a manifest must have all that it needs. Raises LayoutError.
    """
    roots = _object(unpacked.index, "index.json").get("manifests")
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
        name = _name_of(item, root, given, alone=len(roots) == 1)
        images.append(Image(name, Descriptor(root.digest, root.size, tree.add(name, root))))
    if tree.missing:
        raise IncompleteError(tree.missing)
    return images, list(tree.kept.values())


def _name_of(item: Mapping[str, Any], root: Descriptor, given: ImageName | None, *, alone: bool) -> ImageName:
    annotations = item.get("annotations")
    stated = annotations if isinstance(annotations, dict) else {}
    full, ref = (value if isinstance(value := stated.get(key), str) else "" for key in (FULL_NAME, REF_NAME))
    name = _given_name(given, full, ref, alone=alone) if given else _stated_name(full) or _stated_name(ref)
    if name is None:
        raise LayoutError(f"{root.digest} has no full name in the file ({full or ref or 'none'}): give one with --name")
    if name.digest and name.digest != root.digest:
        raise LayoutError(f"{name} is not {root.digest}, which the file has")
    return name


def _stated_name(text: str) -> ImageName | None:
    try:
        return parse_image(text) if has_registry(text) else None
    except ValueError:
        return None


def _given_name(given: ImageName, full: str, ref: str, *, alone: bool) -> ImageName:
    if given.tag or given.digest:
        if not alone:
            raise LayoutError("the file has several images: --name may have no tag then")
        return given
    stated = _stated_name(full) or _stated_name(ref)
    tag = stated.tag if stated else ref if TAG.fullmatch(ref) else ""
    return ImageName(given.registry, given.repository, tag or "latest")


class _Tree:
    """What is reached from the images of a layout."""

    def __init__(self, blobs: Mapping[str, Received]) -> None:
        self._blobs = blobs
        self._seen: set[tuple[str, str]] = set()
        self.kept: dict[str, Kept] = {}
        self.missing: list[str] = []

    def add(self, name: ImageName, entry: Descriptor, depth: int = 0) -> str:
        """A manifest with all that it needs; its media type."""
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
        # Of BuildKit's caches, whose entries are blobs, all of them.
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
        kept.within.setdefault(name.name)


def import_layout(
    source: IO[bytes],
    directory: Path,
    keep: Callable[[Kept], None],
    set_tag: Callable[[Image], None],
    given: ImageName | None = None,
    progress: Callable[[int], None] = lambda size: None,
    reserve: Callable[[int], None] = lambda size: None,
) -> list[Image]:
    """Reads a tar into the cache; nothing is kept unless all of it is right. Raises LayoutError, and OSError for the disk.

    `reserve` makes room for so many bytes or raises, `keep` moves the file in or raises; tags follow when all objects are
    there.
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
