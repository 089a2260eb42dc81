"""Partials: the files that fetches have open, the files that wait for the next fetch, and the room that all of them take."""

import asyncio
import os
import threading
from collections.abc import Collection, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, override

from cacheyd.store.health import Health
from cacheyd.store.partial import Partial
from cacheyd.store.partial_dir import PartialDir
from cacheyd.store.reservations import Reservations
from cacheyd.store.threads import DiskThreads

# Chunks below this are joined before they are written (bytes).
LARGE_CHUNK = 512 << 10
# The most bytes that are hashed on the event loop: a thread would take longer to begin.
HASHED_AT_ONCE = 64 << 10


class Idle(dict[str, int]):
    """Path and size of files, for several threads. `total` (bytes) is kept up to date, as each piece of an object needs it."""

    def __init__(self, files: Mapping[str, int] | None = None) -> None:
        super().__init__(files or {})
        self.total = sum(self.values())
        self._lock = threading.Lock()

    @override
    def __setitem__(self, path: str, size: int) -> None:
        with self._lock:
            self.total += size - self.get(path, 0)
            super().__setitem__(path, size)

    def take(self, path: str) -> int | None:
        """Takes a file out and gives its size; None if it was not there."""
        with self._lock:
            size = super().pop(path, None)
            self.total -= size or 0
            return size


class Partials:
    """The one owner of `partial/` in this process. All methods but those marked "blocks" are for the event loop."""

    def __init__(self, directory: PartialDir, threads: DiskThreads, health: Health) -> None:
        self.directory = directory
        self.reservations = Reservations()
        self._threads = threads
        self._health = health
        # The files that a fetch has open now, and path and size of all other partial files.
        self._open: set[Partial] = set()
        self._idle = Idle()

    # Sizes

    @property
    def size(self) -> int:
        """The size of all partial files, with the bytes that are being written to them (bytes)."""
        return self._idle.total + sum(partial.size for partial in self._open) + self.reservations.being_written

    @property
    def held(self) -> int:
        """The size of all partial files, with the bytes that have not come yet but have their room (bytes)."""
        return self.size + self.reservations.promised

    @property
    def idle_bytes(self) -> int:
        """The size of all files that no fetch has open (bytes)."""
        return self._idle.total

    @property
    def idle(self) -> Mapping[str, int]:
        """Path and size of the files that no fetch has open."""
        return self._idle

    @property
    def open_files(self) -> Collection[Partial]:
        """The files that a fetch has open now."""
        return self._open

    # A fetch and its file

    async def open(self, digest: str, origin: str = "") -> Partial:
        """Opens the object's partial file, with the bytes that came from this registry already; raises OSError."""
        # This comes first, so that `drop_idle` does not remove the file.
        self._idle.take(str(self.directory.path_of(digest, origin)))
        partial = await self._threads.run(self.directory.open, digest, origin)
        self._open.add(partial)
        return partial

    async def open_import(self, path: Path, digest: str) -> Partial:
        """Opens a file that an import has made; raises OSError, FileNotFoundError if the file is not there."""
        self._idle.take(str(path))
        partial = await self._threads.run(self.directory.open_import, path, digest)
        self._open.add(partial)
        return partial

    async def append(self, partial: Partial, chunks: Sequence[bytes | bytearray | memoryview]) -> int:
        """Hashes and writes the chunks at the same time, in threads; gives the new size. Raises OSError.

        Small chunks are joined first: then each call gives the GIL up once. With one call for each chunk the threads would
        fight for the GIL with the event loop. Unless this call is cancelled, both threads are done when it ends.
        """
        length = sum(map(len, chunks))
        if length < LARGE_CHUNK * len(chunks):
            chunks = [b"".join(chunks)]
        written = self._threads.run(partial.write, chunks)
        if length < HASHED_AT_ONCE:
            await written
            partial.hash(chunks)
        else:
            await _both(written, self._threads.run(partial.hash, chunks))
        return partial.advance(length)

    async def read(self, partial: Partial, start: int, end: int) -> bytes:
        """Up to `end - start` bytes from `start`, of those that have come. Raises OSError."""
        return await self._threads.run(partial.read, start, end)

    def release(self, partial: Partial, *, close: bool = True, keep: bool = True) -> None:
        """Ends a fetch's use of its partial. `close`: no reader reads it; `keep`: its bytes stay for the next fetch."""
        if partial in self._open:
            self._open.discard(partial)
            if not partial.size or not keep:
                self._remove(partial)
            elif partial.is_linked():
                self._idle[str(partial.path)] = partial.size
        if close:
            partial.close()

    async def discard(self, partial: Partial) -> None:
        """Removes a partial that is of no use any more."""
        self._open.discard(partial)
        await self._threads.run(self._remove, partial)
        partial.close()

    def _remove(self, partial: Partial) -> None:
        try:
            self.directory.discard(partial)
        except OSError as error:
            # This method raises nothing: the fetch has to tell its clients that the bytes were wrong.
            self._health.report_write_error(error)

    def committed(self, partial: Partial) -> None:
        """Forgets a partial whose file was renamed to its digest, or was removed."""
        self._open.discard(partial)

    # Files that no fetch has open

    async def drop_idle(self, size: int = 2**62) -> int:
        """Removes files that no fetch has open, until `size` bytes are freed; gives how many files it removed."""
        return await self._threads.run(self._drop_idle, size)

    def _drop_idle(self, size: int) -> int:
        """As `drop_idle`. Blocks."""
        freed = count = 0
        for path in list(self._idle):
            if freed >= size:
                break
            known = self._idle.take(path)
            if known is None:
                continue
            if self.directory.remove(path):
                freed, count = freed + known, count + 1
            elif os.path.exists(path) and all(str(partial.path) != path for partial in list(self._open)):
                # A reader still has the file locked.
                self._idle[path] = known
        return count

    async def sweep(self, older_than: float) -> int:
        """Removes files that are older than `older_than` seconds or of no use, and counts the rest; gives how many it removed.

        If a fetch opened or released a file during the sweep, the fetch's result counts, not the sweep's.
        """
        before = set(self._idle)
        swept, found = await self._threads.run(self.directory.sweep, older_than)
        taken = (before - self._idle.keys()) | {str(partial.path) for partial in self._open}
        left = {path: size for path, size in self._idle.items() if path not in before}
        self._idle = Idle({path: size for path, size in found.items() if path not in taken} | left)
        return swept


async def _both(first: Coroutine[Any, Any, None], second: Coroutine[Any, Any, None]) -> None:
    for result in await asyncio.gather(first, second, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
