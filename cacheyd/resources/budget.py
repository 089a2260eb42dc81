"""Bounds the memory that untrusted peers cost: one budget for all buffers."""

from collections import Counter

# A buffer can always hold this many bytes, even if no budget is left: otherwise no body would move.
FLOOR = 64 << 10
# A buffer takes at most one PART-th of the bytes that are left, so that the next buffer gets some, too.
PART = 4


class Budget:
    """Counts the bytes that bodies in transit hold in memory. Each holder counts its own bytes with `take` and `give`.

    The bound is soft: each holder asks for its `share` before it takes more. The shares shrink with each holder, so the sum
    stays below `limit` plus FLOOR for each holder. A single holder gets as much as it can use.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        # How many holders each body has, by its identity.
        self._holders: Counter[int] = Counter()

    def set_limit(self, limit: int) -> None:
        """Sets the limit (bytes), after a change of settings."""
        self.limit = limit

    def share(self, most: int, least: int = FLOOR) -> int:
        """How many bytes one buffer can hold now: at least `least`, at most `most`."""
        return min(most, max(least, (self.limit - self.held) // PART))

    def take(self, size: int) -> None:
        """Counts `size` more bytes as held."""
        self.held += size

    def give(self, size: int) -> None:
        """Counts `size` bytes as released."""
        self.held -= size

    def has_room_for(self, body: bytes | memoryview) -> bool:
        """Whether a holder can hold the whole body now. It always can if the body has a holder already."""
        return id(body) in self._holders or self.held + len(body) <= self.limit

    def hold(self, body: bytes | memoryview) -> None:
        """Adds a holder of this body. The holder must call `let_go` in the end."""
        if not self._holders[id(body)]:
            self.take(len(body))
        self._holders[id(body)] += 1

    def let_go(self, body: bytes | memoryview) -> None:
        """Removes a holder of this body."""
        self._holders[id(body)] -= 1
        if not self._holders[id(body)]:
            del self._holders[id(body)]
            self.give(len(body))


class HeldBody:
    """A body in memory that a client reads piece by piece. It counts until `close`; with several holders, it counts once."""

    def __init__(self, body: bytes | memoryview, budget: Budget) -> None:
        self._body: bytes | memoryview | None = body
        self._at = 0
        self._budget = budget
        budget.hold(body)

    async def read(self) -> bytes:
        """A copy of the next bytes, at most 64 KiB; empty at the end, and after `close`."""
        if self._body is None:
            return b""
        piece = bytes(self._body[self._at : self._at + FLOOR])
        self._at += len(piece)
        return piece

    def close(self) -> None:
        """Releases the body: nobody reads more of it. Safe to call at any time."""
        body, self._body = self._body, None
        if body is not None:
            self._budget.let_go(body)

    def __del__(self) -> None:
        # If an answer is dropped before it begins, nobody calls `close` for its body.
        self.close()
