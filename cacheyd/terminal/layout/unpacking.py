"""Unpacks a tar file as it comes in: writes each blob to a temporary file, and verifies its digest on the way."""

import os
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO, Self, override

from cacheyd.protocol.bounded_json import parse_object
from cacheyd.store import partial_files
from cacheyd.terminal.layout.words import Checked, LayoutError

_BLOB = re.compile(r"blobs/(?:(sha256)/([0-9a-f]{64})|(sha512)/([0-9a-f]{128}))")

# The most bytes of index.json, the most bytes of a header of the tar, and the most files.
INDEX_MAX, HEADER_MAX, MAX_FILES = 4 << 20, 1 << 20, 100_000
_COPY = 1 << 20


@dataclass(frozen=True, slots=True)
class Received:
    """A blob of the tar in a temporary file, with a verified digest. `held` is the open file, with a shared lock.

    The cache that takes the file over locks it, too, while the importer still holds its own lock.
    """

    digest: str
    size: int
    path: Path
    held: BinaryIO

    def read(self) -> bytes:
        """All bytes of the blob; for manifests."""
        self.held.seek(0)
        return self.held.read()


class Unpacked:
    """The content of a tar, in temporary files in `directory`. The end of the `with` block removes the files; if the process
    dies before, the cache sweeps them later.
    """

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
                partial_files.discard(received.path, received.held.fileno())

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
        if "imageLayoutVersion" not in json_object(self.layout, "oci-layout"):
            raise LayoutError("not an OCI image layout: oci-layout has no version")

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
        path, fd = partial_files.make_for_import(self._directory, len(self.blobs))
        held = open(fd, "r+b", buffering=0)  # noqa: SIM115
        received = Received(digest, 0, path, held)
        self.blobs[digest] = received
        if os.geteuid() == 0:
            # The cache can run as another user, and must open this file.
            owner = self._directory.stat()
            os.fchown(held.fileno(), owner.st_uid, owner.st_gid)
        checked, size = Checked(source, digest), 0
        while data := checked.read(_COPY):
            view = memoryview(data)
            while view:
                view = view[held.write(view) :]
            size += len(data)
            progress(len(data))
        checked.verify()
        self.blobs[digest] = Received(digest, size, path, held)


class _Header(tarfile.TarInfo):
    """A header of a tar. A header that describes the next header is read into memory, so its size has a bound."""

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
    """The entry's path without `./`. Raises LayoutError for links, devices and paths out of the layout."""
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


def json_object(data: bytes, name: str) -> dict[str, object]:
    """The object in a JSON file of a layout. Raises LayoutError."""
    try:
        return parse_object(data)
    except ValueError as error:
        raise LayoutError(f"{name}: {error}") from error
