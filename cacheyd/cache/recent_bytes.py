"""Keeps the last bytes of a flight in memory, for clients that keep up with it."""

from collections import deque
from collections.abc import Sequence

from cacheyd.resources.budget import Budget

# The most bytes that stay in memory for clients that keep up; the most clients for which they stay, as each client can hold
# a chunk that all others have read already; the least size of a chunk that stays, as each chunk costs memory (bytes).
RECENT, MAX_RECENT_READERS, LEAST_RECENT = 4 << 20, 8, 16 << 10


class RecentBytes:
    """The chunks that came last, and where each of them begins. Their bytes count in `budget`."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._chunks: deque[tuple[int, bytes | bytearray | memoryview]] = deque()
        self._size = 0

    def keep(self, start: int, chunks: Sequence[bytes | bytearray | memoryview], readers: int) -> None:
        """Keeps the chunks just written, so that clients at the end of the file need not read them from the file."""
        if readers > MAX_RECENT_READERS:
            self._drop_to(0)
            return
        for chunk in chunks:
            if len(chunk) >= LEAST_RECENT:
                self._chunks.append((start, chunk))
                self._budget.take(len(chunk))
                self._size += len(chunk)
            start += len(chunk)
        self._drop_to(self._budget.share(RECENT, 0))

    def clear(self) -> None:
        """Drops all chunks."""
        self._drop_to(0)

    def _drop_to(self, most: int) -> None:
        while self._size > most:
            _, chunk = self._chunks.popleft()
            self._budget.give(len(chunk))
            self._size -= len(chunk)

    def find(self, at: int, limit: int) -> tuple[bytes | memoryview, int]:
        """The bytes from `at` up to `limit` of one chunk, if it is still in memory, else none; and the size of that chunk, as
        it stays in memory with them (bytes).
        """
        for start, chunk in self._chunks:
            if start <= at < start + len(chunk):
                return memoryview(chunk)[at - start : limit - start], len(chunk)
        return b"", 0
