"""One object on its way in, for all clients that want it.

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
from cacheyd.store.rows import Stored
from cacheyd.upstream.port import Relayed, UpstreamResponse


class NotKept(Exception):
    """The object cannot be kept (disk full or unwritable): the request is to bypass the store."""


type FlightError = Relayed | RequestError | NotKept


class Speed:
    """How fast the bytes of a flight come, since it got its turn."""

    def __init__(self) -> None:
        # When it got its turn (seconds of a monotonic clock; 0 before), and from which byte on.
        self.began = 0.0
        self._resumed_at = 0

    def begin(self, now: float) -> None:
        """It got its turn."""
        self.began = now

    def resume(self, at: int) -> None:
        """So many bytes were there before."""
        self._resumed_at = at

    def rate(self, received: int, now: float) -> float:
        """Bytes a second."""
        return (received - self._resumed_at) / max(now - self.began, 1e-3)


class Cut:
    """Why a flight has to end before its time, if it has to; and what ends the response that it reads."""

    def __init__(self) -> None:
        self.error: RequestError | None = None
        self._close: Callable[[], None] | None = None

    def off(self, error: RequestError) -> None:
        """Has it end with this error as soon as it can."""
        self.error = error
        if self._close is not None:
            self._close()

    @contextmanager
    def closing(self, response: UpstreamResponse) -> Iterator[None]:
        """The response ends with the block, or when the flight is cut off."""
        self._close = response.close
        try:
            yield
        finally:
            self._close = None
            response.close()


class Flight:
    """The state of one fetch, made for `requester`. Only the fetch changes it; each change wakes those who wait."""

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
        """Registry and digest."""
        return self.requester.registry, self.digest

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.body.verified or self.error is not None

    # What clients look at most

    @property
    def size(self) -> int | None:
        """As the body's."""
        return self.body.size

    @property
    def received(self) -> int:
        """As the body's."""
        return self.body.received

    @property
    def verified(self) -> bool:
        """As the body's."""
        return self.body.verified

    @property
    def sealed(self) -> bool:
        """As the body's."""
        return self.body.sealed

    @property
    def audience(self) -> int:
        """How many want it."""
        return self.demand.audience

    def joined(self, who: Requester) -> None:
        """Notes who waits for it."""
        self.demand.joined(who)

    def wanted(self) -> AbstractContextManager[None]:
        """Somebody wants it while the block runs."""
        return self.demand.wanted()

    # What becomes of it

    def answered(self) -> None:
        """Upstream has answered, and the body follows."""
        if not self.streaming:
            self.streaming = True
            self.changes.wake()

    def landed(self) -> None:
        """The body is verified: clients get the rest of it."""
        self.body.verify()
        self.streaming = True
        self.changes.wake()

    def keep(self, stored: Stored | None) -> None:
        """It is on disk; None if it could not be kept. Who waits for that is woken at the end."""
        self.stored = stored

    def fail(self, error: FlightError) -> None:
        """Ends the flight without an object."""
        # All who wait get it, and some keep it: what its frames hold, megabytes of a body, is not to stay for that.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        self.error = error
        self.changes.wake()

    def end(self) -> None:
        """Nothing of it changes any more, `stored` included; what is in memory goes."""
        self.body.recent.clear()
        self.ended = True
        self.changes.wake()

    # Waiting for it

    async def changed(self) -> None:
        """Waits for the next change."""
        await self.changes.next()

    async def opened(self) -> None:
        """Waits until upstream has answered; raises what the flight failed with."""
        while not self.streaming and not self.over:
            await self.changes.next()
        if self.error is not None:
            raise self.error.with_traceback(None)

    async def settled(self, seconds: float) -> None:
        """Waits up to `seconds` until it is verified; raises what the flight failed with by then."""
        await self._until(lambda: self.over, seconds)

    async def begun(self, seconds: float) -> None:
        """Waits up to `seconds` for the first byte that a client may have; raises what the flight failed with by then."""
        await self._until(lambda: self.over or self.body.readable > 0, seconds)

    async def _until(self, holds: Callable[[], bool], seconds: float) -> None:
        if await self.changes.until(holds, seconds) and self.error is not None:
            raise self.error.with_traceback(None)
