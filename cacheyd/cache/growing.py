"""The body of a flight: how much of it is there, and how much of that a client may have."""

from collections.abc import Sequence

from cacheyd.cache.changes import Changes
from cacheyd.cache.recent_bytes import RecentBytes
from cacheyd.resources.budget import Budget
from cacheyd.store.blobs import Partial
from cacheyd.upstream.port import Chunk

# So much of a blob is held back until its digest is verified, so that nobody gets a complete wrong one (bytes).
HOLD = 64 << 10


class GrowingBody:
    """A body on its way to `partial`. Each growth wakes those who wait for `changes`.

    `sealed`: nobody gets any of it before it is verified, as the bytes that come may not be those of the object.
    """

    def __init__(self, changes: Changes, budget: Budget) -> None:
        self.budget = budget
        self.recent = RecentBytes(budget)
        self.partial: Partial | None = None
        self.size: int | None = None
        self.received = 0
        self.sealed = False
        self.verified = False
        # How many read it.
        self.readers = 0
        self._changes = changes

    @property
    def readable(self) -> int:
        """How many bytes from the start a client may have by now."""
        if self.verified:
            return self.received
        if self.sealed:
            return 0
        return max(0, min(self.received, self.received if self.size is None else self.size) - HOLD)

    def enter(self) -> None:
        """One more reads it; `leave` is to follow."""
        self.readers += 1

    def leave(self) -> None:
        """One reads it no more."""
        self.readers -= 1

    def begin(self, partial: Partial) -> None:
        """It goes on in this file, behind what is there already."""
        self.partial = partial
        self.received = partial.size

    def begin_anew(self, partial: Partial) -> None:
        """It begins anew, in an empty file, and may have another size. No client has any of it, so nobody is woken."""
        self.partial = partial
        self.received, self.size = 0, None

    def rewind(self) -> None:
        """What came was encoded, and the object itself is to follow. No client has any of it, so nobody is woken."""
        self.received = 0

    def decode_into(self, partial: Partial) -> None:
        """The object itself goes into this empty file."""
        self.partial = partial

    def seal(self) -> None:
        """What comes is encoded."""
        self.sealed = True

    def measured(self, size: int) -> None:
        """Upstream said how long it is. What may begin anew may have another size then."""
        self.size = None if self.sealed else size

    def grew(self, received: int, chunks: Sequence[Chunk]) -> None:
        """These chunks were written behind the rest; `received` is the length with them."""
        start, self.received = self.received, received
        if not self.sealed:
            self.recent.keep(start, chunks, self.readers)
        self._changes.wake()

    def verify(self) -> None:
        """All of it is there, and it has its digest: its size is what came, whatever upstream said."""
        self.size = self.received
        self.verified = True
