"""A flight: one object on its way in, for all clients that want this object.

A flight belongs to the cache and to no client: clients come and go, each reads from its own offset at its own speed.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from cacheyd.cache.changes import Changes
from cacheyd.cache.demand import Demand
from cacheyd.cache.growing import GrowingBody
from cacheyd.cache.recent_bytes import RECENT
from cacheyd.cache.requester import Requester
from cacheyd.protocol.errors import RequestError
from cacheyd.resources.budget import Budget
from cacheyd.store.records import Stored
from cacheyd.upstream.port import Relayed, UpstreamResponse


class NotKept(Exception):
    """The object cannot be kept (disk full or unwritable): the request must bypass the store."""


type FlightError = Relayed | RequestError | NotKept


class Speed:
    """How fast the bytes of a flight come, counted from the time when the flight got its turn."""

    def __init__(self) -> None:
        # When the flight got its turn (seconds of a monotonic clock; 0 before).
        self.began = 0.0
        # The length of the file when the fetch began (bytes).
        self._resumed_at = 0

    def begin(self, now: float) -> None:
        """Notes when the flight got its turn (`now`: seconds of a monotonic clock)."""
        self.began = now

    def resume(self, at: int) -> None:
        """Notes that the fetch begins with `at` bytes in the file already."""
        self._resumed_at = at

    def rate(self, received: int, now: float) -> float:
        """The speed so far, in bytes a second."""
        return (received - self._resumed_at) / max(now - self.began, 1e-3)


class Cut:
    """Ends a flight early: keeps the reason, if there is one, and closes the response that the fetch reads."""

    def __init__(self) -> None:
        self.error: RequestError | None = None
        self._close: Callable[[], None] | None = None

    def off(self, error: RequestError) -> None:
        """Makes the flight end with this error as soon as possible."""
        self.error = error
        if self._close is not None:
            self._close()

    @contextmanager
    def closing(self, response: UpstreamResponse) -> Iterator[None]:
        """Closes the response at the end of the block, or when the flight is cut off."""
        self._close = response.close
        try:
            yield
        finally:
            self._close = None
            response.close()


class Flight:
    """The state of one fetch, made for `requester`. Only the fetch changes this state; each change wakes all who wait."""

    def __init__(self, digest: str, requester: Requester, budget: Budget | None = None) -> None:
        self.digest = digest
        self.requester = requester
        self.changes = Changes()
        self.body = GrowingBody(self.changes, budget or Budget(RECENT * 32))
        self.demand = Demand(requester)
        self.speed = Speed()
        self.cut = Cut()
        # Whether upstream has answered.
        self.streaming = False
        self.error: FlightError | None = None
        self.stored: Stored | None = None
        self.ended = False

    @property
    def key(self) -> tuple[str, str]:
        """The key of the flight: registry and digest."""
        return self.requester.registry, self.digest

    @property
    def over(self) -> bool:
        """Whether the flight will get no more bytes: its body is verified, or the flight failed."""
        return self.body.verified or self.error is not None

    # The values that clients read most

    @property
    def size(self) -> int | None:
        """The size of the body (bytes); None if unknown."""
        return self.body.size

    @property
    def received(self) -> int:
        """The bytes that have come, as the body counts them."""
        return self.body.received

    @property
    def verified(self) -> bool:
        """Whether the body is complete and has the right digest."""
        return self.body.verified

    @property
    def sealed(self) -> bool:
        """Whether the body is sealed: clients get nothing of it before it is verified."""
        return self.body.sealed

    @property
    def audience(self) -> int:
        """How many clients want the object."""
        return self.demand.audience

    def joined(self, who: Requester) -> None:
        """Notes a requester that waits for the flight."""
        self.demand.joined(who)

    def wanted(self) -> AbstractContextManager[None]:
        """Counts one more client that wants the flight while the block runs."""
        return self.demand.wanted()

    # How the flight goes on and ends

    def answered(self) -> None:
        """Notes that upstream has answered: the body follows."""
        if not self.streaming:
            self.streaming = True
            self.changes.wake()

    def landed(self) -> None:
        """Marks the body as verified: clients get the rest of the body."""
        self.body.verify()
        self.streaming = True
        self.changes.wake()

    def keep(self, stored: Stored | None) -> None:
        """Notes the object on disk; None if it could not be kept. `end` wakes the clients that wait for this."""
        self.stored = stored

    def fail(self, error: FlightError) -> None:
        """Ends the flight without an object."""
        # All waiting clients get the error, and some keep it: its frames must not keep megabytes of a body in memory.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        self.error = error
        self.changes.wake()

    def end(self) -> None:
        """Ends all changes, those of `stored` included, and drops the bytes that are in memory."""
        self.body.recent.clear()
        self.ended = True
        self.changes.wake()

    # Waiting for the flight

    async def changed(self) -> None:
        """Waits for the next change of the flight."""
        await self.changes.next()

    async def opened(self) -> None:
        """Waits until upstream has answered; raises the error of a flight that failed."""
        while not self.streaming and not self.over:
            await self.changes.next()
        if self.error is not None:
            raise self.error.with_traceback(None)

    async def settled(self, seconds: float) -> None:
        """Waits up to `seconds` until the body is verified; raises the error of a flight that failed by then."""
        await self._until(lambda: self.over, seconds)

    async def begun(self, seconds: float) -> None:
        """Waits up to `seconds` for the first byte that clients may read; raises the error of a flight that failed by then."""
        await self._until(lambda: self.over or self.body.readable > 0, seconds)

    async def _until(self, holds: Callable[[], bool], seconds: float) -> None:
        if await self.changes.until(holds, seconds) and self.error is not None:
            raise self.error.with_traceback(None)
