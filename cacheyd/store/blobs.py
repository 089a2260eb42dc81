"""Content-addressed files: append, hash, verify, commit by rename, read through one shared mapping.

Files are never truncated or rewritten in place: a reader's mapping would fault. Open descriptors and mappings outlive
unlink and rename, so readers need no handover.
"""

import errno
import hashlib
import json
import mmap
import os
import re
import stat
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cacheyd.store import partials

# What says nothing about the file.
SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_READ = 4 << 20
# What is written to see whether it can be (bytes): a block of most file systems.
PROBE = 4096
# MADV_POPULATE_READ of madvise(2), Linux 5.14: brings pages in, or says that they cannot be had (older ones: EINVAL).
_POPULATE_READ = 22
_MAX_LOADED = 4096
_HEX = re.compile(r"[0-9a-f]{64}|[0-9a-f]{128}")
_LENGTH = {"sha256": 64, "sha512": 128}


class Mapped:
    """A read-only mapping of a whole file, shared by all its readers: each mapping would count in RSS."""

    def __init__(self, fd: int, status: os.stat_result) -> None:
        self.size = size = status.st_size
        self.file = (status.st_dev, status.st_ino)
        self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ) if size else None
        # What was brought in for one reader is there for the others, who mostly ask for the same pieces.
        self._loaded: set[tuple[int, int]] = set()

    def view(self, start: int, end: int) -> memoryview:
        """Bytes `start` to `end`, without a copy; the view keeps the mapping alive.

        Raises OSError if they cannot be read: later that would be a broken connection, or the end of this process (SIGBUS).
        """
        if self._map is None or start >= end:
            return memoryview(b"")
        if (start, end) not in self._loaded:
            page = start - start % mmap.PAGESIZE
            try:
                self._map.madvise(_POPULATE_READ, page, end - page)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            if len(self._loaded) < _MAX_LOADED:
                self._loaded.add((start, end))
        return memoryview(self._map)[start:end]


class Partial:
    """An object on its way in: an append-only file with a running hash."""

    def __init__(self, path: Path, fd: int, digest: str) -> None:
        self.path = path
        self.digest = digest
        self.size = 0
        self.fd = fd
        # Readers may hold on to a partial after its flight; the descriptor goes with the last of them.
        self._closer = weakref.finalize(self, os.close, fd)
        self._hash = hashlib.new(digest.partition(":")[0])
        self._windows: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()

    @classmethod
    def of(cls, path: Path, fd: int, digest: str) -> "Partial":
        """The file at `path`, open and locked, with what is in it hashed; raises OSError. Blocks."""
        partial = cls(path, fd, digest)
        try:
            while data := os.pread(partial.fd, _READ, partial.size):
                partial._hash.update(data)
                partial.size += len(data)
        except BaseException:
            partial.close()
            raise
        return partial

    def write(self, chunks: Sequence[bytes | bytearray | memoryview]) -> None:
        """Writes the chunks at the end; `advance` is to follow. Blocks; raises OSError, with `size` as it was."""
        offset = self.size
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                written = os.pwrite(self.fd, view, offset)
                offset, view = offset + written, view[written:]

    def hash(self, chunks: Sequence[bytes | bytearray | memoryview]) -> None:
        """Takes the chunks into the running hash. Blocks; may run beside `write`."""
        for chunk in chunks:
            self._hash.update(chunk)

    def advance(self, length: int) -> int:
        """Counts what was written and hashed; the new size."""
        self.size += length
        return self.size

    def verified(self) -> bool:
        """Whether the bytes so far are the whole object."""
        return f"{self._hash.name}:{self._hash.hexdigest()}" == self.digest

    def sync(self) -> None:
        """To the disk itself, so that no power cut can leave a file under a digest that is not its own."""
        os.fdatasync(self.fd)

    def read(self, start: int, end: int) -> bytes:
        """Up to `end - start` bytes from `start`; for what does not fill a window yet."""
        return os.pread(self.fd, end - start, start)

    def window(self, index: int, size: int) -> memoryview:
        """The `index`-th window of `size` bytes, which must be complete; one mapping shared by all who read it now."""
        window = self._windows.get(index)
        if window is None:
            window = self._windows[index] = mmap.mmap(self.fd, size, prot=mmap.PROT_READ, offset=index * size)
        return memoryview(window)

    def is_linked(self) -> bool:
        """Whether `path` still is this file: the cache directory may be wiped at any time."""
        return partials.is_linked(self.path, self.fd)

    def close(self) -> None:
        """Gives the descriptor (and so the lock) back; mappings stay."""
        self._closer()
        self.fd = -1


class BlobDir:
    """The files below CACHE_DIR, laid out as an OCI image layout (image-spec, "Image Layout") plus `partial/`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._mapped: weakref.WeakValueDictionary[str, Mapped] = weakref.WeakValueDictionary()
        # Between a look at a name and its removal no other file may get it.
        self._naming = threading.Lock()

    def prepare(self) -> None:
        """Makes what is missing; raises OSError."""
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
        """Where the verified object is."""
        algorithm, _, encoded = digest.partition(":")
        return f"{self.root}/blobs/{algorithm}/{encoded}"

    def size(self, digest: str) -> int | None:
        """The size of the stored file in bytes, None if there is none."""
        found = self.stat(digest)
        return None if found is None else found[0]

    def stat(self, digest: str) -> tuple[int, int] | None:
        """Size in bytes and time of change in nanoseconds of the stored file, None if there is none."""
        try:
            status = os.stat(self.path(digest))
        except OSError:
            return None
        return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None

    def read(self, digest: str) -> bytes | None:
        """The whole file; for small ones."""
        try:
            with open(self.path(digest), "rb", buffering=0) as file:
                return file.readall()
        except OSError:
            return None

    def map(self, digest: str) -> Mapped | None:
        """The file's shared mapping, None if the file is gone."""
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

    def partial_path(self, digest: str, origin: str = "") -> Path:
        """Where what comes of the object from this registry is written."""
        return self.root / "partial" / partials.name_for(digest, origin)

    def open_partial(self, digest: str, origin: str = "") -> Partial:
        """The object's partial file, continued where an earlier fetch from `origin` stopped. Blocks; raises OSError.

        What came from one registry is never continued with another's: anybody may ask for a registry that sends wrong bytes.
        """
        path = self.partial_path(digest, origin)
        try:
            return Partial.of(*partials.open_for_fetch(path), digest)
        except FileNotFoundError:
            self.prepare()
            return Partial.of(*partials.open_for_fetch(path), digest)

    def open_import(self, path: Path, digest: str) -> Partial:
        """A file below `partial/` that an import has made. Blocks; raises OSError, FileNotFoundError if it is gone."""
        return Partial.of(path, partials.open_of_import(path), digest)

    def commit(self, partial: Partial, *, sync: bool = False) -> int | None:
        """Moves a verified partial to its digest; the file's time of change, None if the directory was wiped meanwhile.

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
        """The bytes of stored objects to the disk itself; returned are those that did not get there. Blocks."""
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
        """Whether somebody is reading the object now."""
        return digest in self._mapped

    def discard(self, partial: Partial) -> None:
        """Removes a partial that is of no use."""
        partials.discard(partial.path, partial.fd)

    def remove(self, digest: str, known: tuple[int, int] | None = None) -> None:
        """Removes a stored object, if it still is the one that `stat` said; running readers are not disturbed."""
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

    def sweep_partials(self, older_than: float) -> tuple[int, dict[str, int]]:
        """Removes partials not written to for `older_than` seconds and those no fetch can continue, but none under way.

        How many went, and path and size of those that stay and wait for a fetch. Blocks.
        """
        return partials.sweep(self.root / "partial", older_than, self._is_wanted)

    def _is_wanted(self, name: str) -> bool:
        """Whether a fetch would go on with this partial file: one of its object, which is not stored."""
        digest = partials.digest_in(name)
        return digest is not None and self.size(digest) is None

    def probe(self) -> None:
        """Writes and removes a small file, where a sweep finds it after a crash. Blocks; raises OSError."""
        try:
            path, fd = partials.make_probe(self.root / "partial")
        except FileNotFoundError:
            self.prepare()
            path, fd = partials.make_probe(self.root / "partial")
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
        """How many files may still be made, None if that is unknown or without limit."""
        disk = self._disk()
        return disk.f_favail if disk is not None and disk.f_files else None

    def free(self) -> int | None:
        """Bytes that this process may still write, None if unknown."""
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
    """The digest of a file, None if it cannot be read. Blocks; raises OSError for want of descriptors or memory."""
    try:
        with open(path, "rb") as file:
            return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
    except OSError as error:
        if error.errno in SHORTAGE:
            raise
        return None
