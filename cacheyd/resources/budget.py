"""What strangers may cost in memory: one budget for all buffers."""

from collections import Counter

# What a buffer may always have, however little of the budget is left (bytes): else nothing would move.
FLOOR = 64 << 10
# No buffer takes more than this part of what is left, so that the next one finds something, too.
PART = 4


class Budget:
    """The bytes that bodies on their way hold in memory. Each holder counts its own with `take` and `give`.

    It is a soft bound: all holders ask for their `share` before they take more. What is left shrinks with each of them, so
    the sum stays below `limit`, and FLOOR for each. One holder alone gets as much as it can use.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        # How many hold the same body.
        self._holders: Counter[int] = Counter()

    def set_limit(self, limit: int) -> None:
        """After a change of settings: another bound, in bytes, from now on."""
        self.limit = limit

    def share(self, most: int, least: int = FLOOR) -> int:
        """How many bytes one buffer may hold now: up to `most`, and at least `least`."""
        return min(most, max(least, (self.limit - self.held) // PART))

    def take(self, size: int) -> None:
        """So many bytes are held now."""
        self.held += size

    def give(self, size: int) -> None:
        """So many bytes are held no more."""
        self.held -= size

    def has_room_for(self, body: bytes | memoryview) -> bool:
        """Whether all of a body may be held now, as it may where somebody holds it already."""
        return id(body) in self._holders or self.held + len(body) <= self.limit

    def hold(self, body: bytes | memoryview) -> None:
        """One holder more of this body. It calls `let_go` in the end."""
        if not self._holders[id(body)]:
            self.take(len(body))
        self._holders[id(body)] += 1

    def let_go(self, body: bytes | memoryview) -> None:
        """One holder less of this body."""
        self._holders[id(body)] -= 1
        if not self._holders[id(body)]:
            del self._holders[id(body)]
            self.give(len(body))


class HeldBody:
    """A body in memory that goes out piece by piece. It counts until it is closed: once, however many hold the same bytes."""

    def __init__(self, body: bytes | memoryview, budget: Budget) -> None:
        self._body: bytes | memoryview | None = body
        self._at = 0
        self._budget = budget
        budget.hold(body)

    async def read(self) -> bytes:
        """The next 64 KiB at most, as a copy; empty at the end, and when it is closed."""
        if self._body is None:
            return b""
        piece = bytes(self._body[self._at : self._at + FLOOR])
        self._at += len(piece)
        return piece

    def close(self) -> None:
        """Nobody reads on; safe to call at any time."""
        body, self._body = self._body, None
        if body is not None:
            self._budget.let_go(body)

    def __del__(self) -> None:
        # Nobody closes the body of an answer that is dropped before it began.
        self.close()
