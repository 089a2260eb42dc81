"""The body of a flight: how many bytes of it are there, and how many of them a client may read."""

from collections.abc import Sequence

from cacheyd.cache.changes import Changes
from cacheyd.cache.recent_bytes import RecentBytes
from cacheyd.resources.budget import Budget
from cacheyd.store.partial import Partial
from cacheyd.upstream.port import Chunk

# The end of a blob that is held back until the digest is verified, so that no client gets a complete wrong blob (bytes).
HOLD = 64 << 10


class GrowingBody:
    """A body on its way to `partial`. Each growth wakes all who wait for `changes`.

    `sealed`: clients get no byte of the body before it is verified, as the bytes that come may not be those of the object.
    """

    def __init__(self, changes: Changes, budget: Budget) -> None:
        self.budget = budget
        self.recent = RecentBytes(budget)
        self.partial: Partial | None = None
        self.size: int | None = None
        self.received = 0
        self.sealed = False
        self.verified = False
        # How many readers read the body now.
        self.readers = 0
        self._changes = changes

    @property
    def readable(self) -> int:
        """How many bytes from the start a client may read by now."""
        if self.verified:
            return self.received
        if self.sealed:
            return 0
        return max(0, min(self.received, self.received if self.size is None else self.size) - HOLD)

    def enter(self) -> None:
        """Counts one more reader; `leave` must follow."""
        self.readers += 1

    def leave(self) -> None:
        """Counts one reader less."""
        self.readers -= 1

    def begin(self, partial: Partial) -> None:
        """Continues the body in this file, behind the bytes that the file has already."""
        self.partial = partial
        self.received = partial.size

    def begin_anew(self, partial: Partial) -> None:
        """Begins the body again in an empty file; its size may change. No client has any byte of it, so no client is woken."""
        self.partial = partial
        self.received, self.size = 0, None

    def rewind(self) -> None:
        """Goes back to the start after encoded bytes: the decoded object follows. No client has a byte, so none is woken."""
        self.received = 0

    def decode_into(self, partial: Partial) -> None:
        """Continues with this empty file, for the decoded object."""
        self.partial = partial

    def seal(self) -> None:
        """Notes that the bytes that come are encoded."""
        self.sealed = True

    def measured(self, size: int) -> None:
        """Notes the size that upstream announced (bytes). A sealed body gets no size, as it may begin again with another."""
        self.size = None if self.sealed else size

    def grew(self, received: int, chunks: Sequence[Chunk]) -> None:
        """Notes chunks that were written at the end; `received` is the length with them (bytes)."""
        start, self.received = self.received, received
        if not self.sealed:
            self.recent.keep(start, chunks, self.readers)
        self._changes.wake()

    def verify(self) -> None:
        """Notes that the body is complete and has its digest: its size is the bytes that came, not what upstream announced."""
        self.size = self.received
        self.verified = True
