"""What was written last of a flight, in memory for clients that keep up."""

from collections import deque
from collections.abc import Sequence

from cacheyd.resources.budget import Budget

# What was written last stays in memory for clients that keep up, unless they are many: each may hold on to a chunk that
# the others have read already. Smaller chunks than the least size are read from the file: each object costs memory (bytes).
RECENT, MAX_RECENT_READERS, LEAST_RECENT = 4 << 20, 8, 16 << 10


class RecentBytes:
    """The chunks that came last, and where each of them begins. Their bytes count in `budget`."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._chunks: deque[tuple[int, bytes | bytearray | memoryview]] = deque()
        self._size = 0

    def keep(self, start: int, chunks: Sequence[bytes | bytearray | memoryview], readers: int) -> None:
        """Keeps what was just written for the clients that are at the end of it: they need not read it from the file."""
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
        """Nothing stays in memory."""
        self._drop_to(0)

    def _drop_to(self, most: int) -> None:
        while self._size > most:
            _, chunk = self._chunks.popleft()
            self._budget.give(len(chunk))
            self._size -= len(chunk)

    def find(self, at: int, limit: int) -> tuple[bytes | memoryview, int]:
        """The bytes from `at` on up to `limit` that are still in memory, as far as one chunk has them, else none; and how
        many bytes stay in memory with them.
        """
        for start, chunk in self._chunks:
            if start <= at < start + len(chunk):
                return memoryview(chunk)[at - start : limit - start], len(chunk)
        return b"", 0
