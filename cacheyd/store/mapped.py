"""The mapping of a stored file: read-only, and shared by all its readers."""

import errno
import mmap
import os

# MADV_POPULATE_READ of madvise(2), Linux 5.14: reads pages in, or fails if they cannot be read (older kernels: EINVAL).
_POPULATE_READ = 22

_MAX_LOADED = 4096


class Mapped:
    """A read-only mapping of a whole file, shared by all its readers: each mapping would count in RSS."""

    def __init__(self, fd: int, status: os.stat_result) -> None:
        self.size = size = status.st_size
        self.file = (status.st_dev, status.st_ino)
        self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ) if size else None
        # Pieces that were read in for one reader are in memory for all readers, which mostly ask for the same pieces.
        self._loaded: set[tuple[int, int]] = set()

    def view(self, start: int, end: int) -> memoryview:
        """Bytes `start` to `end`, without a copy; the view keeps the mapping alive.

        Raises OSError if the bytes cannot be read: later this would break a connection, or end this process (SIGBUS).
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
