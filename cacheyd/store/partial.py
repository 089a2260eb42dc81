"""A partial: the file of an object on its way in, the number of bytes in it, and the running hash over them."""

import hashlib
import mmap
import os
import weakref
from collections.abc import Sequence
from pathlib import Path

from cacheyd.store import partial_files

_READ = 4 << 20


class Partial:
    """An object on its way in: an append-only file with a running hash."""

    def __init__(self, path: Path, fd: int, digest: str) -> None:
        self.path = path
        self.digest = digest
        self.size = 0
        self.fd = fd
        # Readers may use a partial after its flight has ended; the descriptor is closed after the last reader.
        self._closer = weakref.finalize(self, os.close, fd)
        self._hash = hashlib.new(digest.partition(":")[0])
        self._windows: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()

    @classmethod
    def of(cls, path: Path, fd: int, digest: str) -> "Partial":
        """The partial of the file at `path`, open and locked, with its bytes hashed; raises OSError. Blocks."""
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
        """Writes the chunks at the end; call `advance` afterwards. Blocks; raises OSError, and `size` stays as it was."""
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
        """Counts the bytes that were written and hashed; gives the new size."""
        self.size += length
        return self.size

    def verified(self) -> bool:
        """Whether the bytes so far are the whole object."""
        return f"{self._hash.name}:{self._hash.hexdigest()}" == self.digest

    def sync(self) -> None:
        """Brings the bytes to the disk itself, so that a power cut cannot leave a file under a digest that is not its own."""
        os.fdatasync(self.fd)

    def read(self, start: int, end: int) -> bytes:
        """Up to `end - start` bytes from `start`; for bytes that do not fill a window yet."""
        return os.pread(self.fd, end - start, start)

    def window(self, index: int, size: int) -> memoryview:
        """The `index`-th window of `size` bytes, which must be complete; all who read it now share one mapping."""
        window = self._windows.get(index)
        if window is None:
            window = self._windows[index] = mmap.mmap(self.fd, size, prot=mmap.PROT_READ, offset=index * size)
        return memoryview(window)

    def is_linked(self) -> bool:
        """Whether `path` still leads to this file: the cache directory can be wiped at any time."""
        return partial_files.is_linked(self.path, self.fd)

    def close(self) -> None:
        """Gives the descriptor (and so the lock) back; mappings stay."""
        self._closer()
        self.fd = -1
