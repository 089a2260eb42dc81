"""What strangers may cost, in bytes and seconds: one budget for all buffers, and the least rate of a body."""

import time
from collections import Counter
from collections.abc import Callable

# What a buffer may always have, however little of the budget is left (bytes): else nothing would move.
FLOOR = 64 << 10
# No buffer takes more than this part of what is left, so that the next one finds something, too.
PART = 4


class Budget:
    """The bytes that bodies on their way hold in memory. Who holds some counts them with `take` and `give`.

    It is a soft bound that all keep by asking for `share` before they take more: what is left shrinks with each of them,
    so the sum stays below `limit` and FLOOR for each. One alone gets as much as it can use.
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
        """One more holds this body; `let_go` is to follow."""
        if not self._holders[id(body)]:
            self.take(len(body))
        self._holders[id(body)] += 1

    def let_go(self, body: bytes | memoryview) -> None:
        """One holds it no more."""
        self._holders[id(body)] -= 1
        if not self._holders[id(body)]:
            del self._holders[id(body)]
            self.give(len(body))


class Held:
    """A body in memory that goes out piece by piece: it counts until it is closed, once for all who hold the same bytes."""

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
        # Of an answer that is dropped before it was begun, nobody closes the body.
        self.close()


class Pace:
    """Whether a body comes fast enough: `rate` bytes a second over `window` seconds of waiting for it.

    Only the time in which somebody waited for the peer counts, and not that in which a full buffer kept the peer waiting.
    """

    def __init__(self, rate: int, window: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._window = window
        self._clock = clock
        self._waited = 0.0
        self._came = 0

    def begin(self) -> float:
        """Somebody waits from now on; to be given to `end`."""
        return self._clock()

    def end(self, began: float, size: int) -> bool:
        """So many bytes came; whether that is fast enough."""
        self._waited += self._clock() - began
        self._came += size
        if self._waited < self._window:
            return True
        enough = self._came >= self._rate * self._waited
        self._waited, self._came = 0.0, 0
        return enough
