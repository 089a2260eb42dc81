"""Content-addressed files: moves verified files to their digest, and reads them through one shared mapping.

Files are never truncated or rewritten in place: a reader's mapping would fault. Open descriptors and mappings outlive
unlink and rename, so readers need no handover.
"""

import errno
import hashlib
import json
import os
import re
import stat
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

from cacheyd.store import partial_files
from cacheyd.store.mapped import Mapped
from cacheyd.store.partial import Partial

# Errors that say nothing about the file: the process or the machine is short of descriptors or memory.
SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
# The size of the file that a probe writes (bytes): a block of most file systems.
PROBE = 4096
_HEX = re.compile(r"[0-9a-f]{64}|[0-9a-f]{128}")
_LENGTH = {"sha256": 64, "sha512": 128}


class BlobDir:
    """The files below CACHE_DIR, laid out as an OCI image layout (image-spec, "Image Layout") plus `partial/`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._mapped: weakref.WeakValueDictionary[str, Mapped] = weakref.WeakValueDictionary()
        # No other file may get a name between the look at the name and its removal.
        self._naming = threading.Lock()

    def prepare(self) -> None:
        """Makes the directories and files of the layout that are missing; raises OSError."""
        for algorithm in _LENGTH:
            (self.root / "blobs" / algorithm).mkdir(parents=True, exist_ok=True)
        (self.root / "partial").mkdir(exist_ok=True)
        layout = self.root / "oci-layout"
        if not layout.exists():
            layout.write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
        index = self.root / "index.json"
        if not index.exists():
            index.write_text(json.dumps({"schemaVersion": 2, "manifests": []}))

    def path(self, digest: str) -> str:
        """The path of a verified object."""
        algorithm, _, encoded = digest.partition(":")
        return f"{self.root}/blobs/{algorithm}/{encoded}"

    def size(self, digest: str) -> int | None:
        """The size of the stored file in bytes; None if there is no file."""
        found = self.stat(digest)
        return None if found is None else found[0]

    def stat(self, digest: str) -> tuple[int, int] | None:
        """Size in bytes and time of change in nanoseconds of the stored file; None if there is no file."""
        try:
            status = os.stat(self.path(digest))
        except OSError:
            return None
        return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None

    def read(self, digest: str) -> bytes | None:
        """The bytes of the whole file, for small files; None if it cannot be read."""
        try:
            with open(self.path(digest), "rb", buffering=0) as file:
                return file.readall()
        except OSError:
            return None

    def map(self, digest: str) -> Mapped | None:
        """The file's shared mapping; None if the file is missing or cannot be mapped."""
        path = self.path(digest)
        try:
            status = os.stat(path)
            mapped = self._mapped.get(digest)
            if mapped is None or (mapped.size, *mapped.file) != (status.st_size, status.st_dev, status.st_ino):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    mapped = self._mapped[digest] = Mapped(fd, os.fstat(fd))
                finally:
                    os.close(fd)
        except (OSError, ValueError):
            return None
        return mapped

    def commit(self, partial: Partial, *, sync: bool = False) -> int | None:
        """Moves a verified partial to its digest; gives the file's time of change, None if the directory was wiped.

        With `sync` both the bytes and the name are on the disk itself afterwards. Blocks; raises OSError.
        """
        if not partial.is_linked():
            return None
        target = self.path(partial.digest)
        if sync:
            partial.sync()
        try:
            self._rename(partial, target)
        except FileNotFoundError:
            self.prepare()
            if not partial.is_linked():
                return None
            self._rename(partial, target)
        if sync:
            _sync_directory(os.path.dirname(target))
        return os.fstat(partial.fd).st_mtime_ns

    def _rename(self, partial: Partial, target: str) -> None:
        with self._naming:
            partial.path.rename(target)

    def sync(self, digests: Iterable[str]) -> list[str]:
        """Brings the bytes of stored objects to the disk itself; gives the digests of those that did not get there. Blocks."""
        failed = []
        for digest in digests:
            try:
                fd = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fdatasync(fd)
                finally:
                    os.close(fd)
            except FileNotFoundError:
                continue
            except OSError:
                failed.append(digest)
        return failed

    def is_mapped(self, digest: str) -> bool:
        """Whether the object is being read now."""
        return digest in self._mapped

    def remove(self, digest: str, known: tuple[int, int] | None = None) -> None:
        """Removes a stored object, if its size and time of change are still `known`; running readers are not disturbed."""
        with self._naming:
            if known is None or self.stat(digest) == known:
                Path(self.path(digest)).unlink(missing_ok=True)

    def scan(self) -> Iterator[tuple[str, int, int]]:
        """Each stored object's digest, size and time of change, from the file system alone."""
        for algorithm, length in _LENGTH.items():
            try:
                entries = os.scandir(self.root / "blobs" / algorithm)
            except OSError:
                continue
            with entries:
                for entry in entries:
                    if len(entry.name) == length and _HEX.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        try:
                            status = entry.stat()
                        except OSError:
                            continue
                        yield f"{algorithm}:{entry.name}", status.st_size, status.st_mtime_ns

    def probe(self) -> None:
        """Writes and removes a small file, where a sweep finds it after a crash. Blocks; raises OSError."""
        try:
            path, fd = partial_files.make_probe(self.root / "partial")
        except FileNotFoundError:
            self.prepare()
            path, fd = partial_files.make_probe(self.root / "partial")
        try:
            os.pwrite(fd, bytes(PROBE), 0)
        finally:
            os.close(fd)
            path.unlink(missing_ok=True)
        objects = f"{self.root}/blobs/sha256"
        if os.path.isdir(objects) and not os.access(objects, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), objects)

    def total(self) -> int:
        """The size of the disk in bytes, 0 if unknown."""
        disk = self._disk()
        return disk.f_blocks * disk.f_frsize if disk is not None else 0

    def free_files(self) -> int | None:
        """How many files can still be made; None if that is unknown or without limit."""
        disk = self._disk()
        return disk.f_favail if disk is not None and disk.f_files else None

    def free(self) -> int | None:
        """The bytes that this process may still write; None if unknown."""
        disk = self._disk()
        return disk.f_bavail * disk.f_frsize if disk is not None else None

    def _disk(self) -> os.statvfs_result | None:
        try:
            return os.statvfs(self.root)
        except OSError:
            return None


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def hash_file(path: str, algorithm: str) -> str | None:
    """The digest of a file; None if it cannot be read. Blocks; raises OSError if descriptors or memory run out."""
    try:
        with open(path, "rb") as file:
            return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
    except OSError as error:
        if error.errno in SHORTAGE:
            raise
        return None
