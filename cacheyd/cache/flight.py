"""One object on its way in, and the clients that read it while it grows; the table that keeps flights single.

A flight belongs to the cache and to no client: clients come and go, each reads from its own offset at its own speed.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cacheyd.cache.bodies import WINDOW, BodyBroken
from cacheyd.cache.requester import Requester
from cacheyd.protocol.errors import RequestError
from cacheyd.resources.budget import Budget
from cacheyd.store.partial import Partial
from cacheyd.store.records import Stored
from cacheyd.upstream.port import Relayed

# What is held back of a blob until its digest is verified, so that nobody gets a complete wrong one (bytes).
HOLD = 64 << 10

# What was written last stays in memory for clients that keep up, unless they are many: each may hold on to a chunk that
# the others are done with. Chunks below the least size come from the file: each object of its own costs memory (bytes).
RECENT, MAX_RECENT_READERS, LEAST_RECENT = 4 << 20, 8, 16 << 10
# Up to so much is copied where a window is not complete yet, and so little where many clients wait (bytes).
COPY, LEAST_COPY = 1 << 20, 16 << 10


class NotKept(Exception):
    """The object cannot be kept (disk full or unwritable): the request is to bypass the store."""


type FlightError = Relayed | RequestError | NotKept


class Flight:
    """The state of one fetch, made for `requester`. Only `fetch` changes it; each change wakes those who wait.

    `readers` read its body, `audience` counts all who want it, those included who wait for its head or its end.
    """

    def __init__(self, digest: str, requester: Requester, budget: Budget | None = None) -> None:
        self.digest = digest
        self.requester = requester
        self.budget = budget or Budget(RECENT * 32)
        self.partial: Partial | None = None
        self.size: int | None = None
        self.received = 0
        self.streaming = False
        self.verified = False
        self.error: FlightError | None = None
        self.stored: Stored | None = None
        self.readers = 0
        self.audience = 0
        self.ended = False
        # When it got its turn, from which byte on, and since when nobody wants it (seconds of a monotonic clock).
        self.began = 0.0
        self.resumed_at = 0
        # What it may displace beyond what any stranger may (bytes).
        self.credit = 0
        # What it is still to bring of the bytes for which room was made.
        self.promised = 0
        self.alone_since: float | None = None
        # Another login that waits for it and need not share its failure; whether there are several.
        self._other: Requester | None = None
        self.contested = False
        # The codings of the body that is coming; sealed: nobody gets any of it before it is verified, as these bytes may not
        # be those of the object.
        self.codings: tuple[str, ...] = ()
        self.sealed = False
        # Why it has to end before its time, and what ends the response that it reads.
        self.cut: RequestError | None = None
        self.on_cut: Callable[[], None] | None = None
        self._recent: deque[tuple[int, bytes | bytearray | memoryview]] = deque()
        self._recent_bytes = 0
        self._waiting: set[asyncio.Future[None]] = set()

    def remember(self, start: int, chunks: Sequence[bytes | bytearray | memoryview]) -> None:
        """Keeps what was just written for the clients that are at the end of it: they need not read it from the file."""
        if self.readers > MAX_RECENT_READERS:
            self._forget_recent(0)
            return
        for chunk in chunks:
            if len(chunk) >= LEAST_RECENT:
                self._recent.append((start, chunk))
                self.budget.take(len(chunk))
                self._recent_bytes += len(chunk)
            start += len(chunk)
        self._forget_recent(self.budget.share(RECENT, 0))

    def _forget_recent(self, most: int) -> None:
        while self._recent_bytes > most:
            _, chunk = self._recent.popleft()
            self.budget.give(len(chunk))
            self._recent_bytes -= len(chunk)

    def recent(self, at: int, limit: int) -> tuple[bytes | memoryview, int]:
        """The bytes from `at` on up to `limit` that are still in memory, as far as one chunk has them, else none; and how
        many bytes stay in memory with them.
        """
        for start, chunk in self._recent:
            if start <= at < start + len(chunk):
                return memoryview(chunk)[at - start : limit - start], len(chunk)
        return b"", 0

    def rate(self, now: float) -> float:
        """Bytes a second since it got its turn."""
        return (self.received - self.resumed_at) / max(now - self.began, 1e-3)

    def cut_off(self, error: RequestError) -> None:
        """Has it end with this error as soon as it can."""
        self.cut = error
        if self.on_cut is not None:
            self.on_cut()

    def joined(self, who: Requester) -> None:
        """Notes who waits for it."""
        if who != self.requester:
            self.contested = self.contested or self._other not in (None, who)
            self._other = who

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """Somebody wants it while the block runs."""
        self.audience += 1
        try:
            yield
        finally:
            self.audience -= 1

    def end(self) -> None:
        """Nothing of it changes any more, `stored` included; what is in memory goes."""
        self._forget_recent(0)
        self.ended = True
        self.notify()

    @property
    def key(self) -> tuple[str, str]:
        """Registry and digest."""
        return self.requester.registry, self.digest

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.verified or self.error is not None

    @property
    def readable(self) -> int:
        """How many bytes from the start a client may have by now."""
        if self.verified:
            return self.received
        if self.sealed:
            return 0
        return max(0, min(self.received, self.received if self.size is None else self.size) - HOLD)

    def notify(self) -> None:
        """Wakes all who wait."""
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def fail(self, error: FlightError) -> None:
        """Ends the flight without an object."""
        # All who wait get it, and some keep it: what its frames hold, megabytes of a body, is not to stay for that.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        self.error = error
        self.notify()

    async def changed(self) -> None:
        """Waits for the next change."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    async def opened(self) -> None:
        """Waits until upstream has answered; raises what the flight failed with."""
        while not self.streaming and not self.over:
            await self.changed()
        if self.error is not None:
            raise self.error.with_traceback(None)

    async def settled(self, seconds: float) -> None:
        """Waits up to `seconds` until it is verified; raises what the flight failed with by then."""
        await self._until(lambda: self.over, seconds)

    async def begun(self, seconds: float) -> None:
        """Waits up to `seconds` for the first byte that a client may have; raises what the flight failed with by then."""
        await self._until(lambda: self.over or self.readable > 0, seconds)

    async def _until(self, holds: Callable[[], bool], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not holds():
                    await self.changed()
        except TimeoutError:
            return
        if self.error is not None:
            raise self.error.with_traceback(None)


class FlightReader:
    """Reads bytes `start` to `end` (None: to the end) of a flight while it grows.

    The last HOLD bytes of them, as of the whole, wait until the digest is verified: no answer is complete before.
    """

    def __init__(self, flight: Flight, start: int, end: int | None) -> None:
        # None once it is closed: who read keeps this reader for a while, and the flight keeps the file's descriptor.
        self.flight: Flight | None = flight
        flight.readers += 1
        flight.audience += 1
        self._at = start
        self._end = end
        # Where the bytes end that may go before the digest is verified.
        self._unverified_end = max(start, end - HOLD) if end is not None else None

    async def read(self) -> bytes | memoryview:
        """The next piece as soon as there is one; empty at the end. Raises BodyBroken when the flight failed."""
        while True:
            if self._end is not None and self._at >= self._end:
                return b""
            flight = self.flight
            # What was encoded gets a new file when it is decoded.
            partial = None if flight is None else flight.partial
            if flight is None or flight.error is not None or partial is None:
                raise BodyBroken("closed" if flight is None else str(flight.error))
            if self._at < (limit := self._limit(flight)):
                return self._take(flight, partial, limit)
            if flight.verified:
                return b""
            await flight.changed()

    def _limit(self, flight: Flight) -> int:
        end = self._end if flight.verified else self._unverified_end
        return flight.readable if end is None else min(flight.readable, end)

    def _take(self, flight: Flight, partial: Partial, limit: int) -> bytes | memoryview:
        index, offset = divmod(self._at, WINDOW)
        window_end = (index + 1) * WINDOW
        piece, held = flight.recent(self._at, limit)
        if piece and held <= flight.budget.share(RECENT):
            pass
        elif window_end <= flight.received:
            piece = partial.window(index, WINDOW)[offset : offset + limit - self._at]
        else:
            most = flight.budget.share(COPY, LEAST_COPY)
            piece = partial.read(self._at, min(limit, self._at + most, window_end))
        if not piece:
            raise BodyBroken("the partial file is shorter than it was")
        self._at += len(piece)
        return piece

    def close(self) -> None:
        """Lets go of the file."""
        if self.flight is not None:
            self.flight.readers -= 1
            self.flight.audience -= 1
        self.flight = None


class FlightTable:
    """At most one flight per registry and digest. No await stands between a look at the table and a change of it.

    By registry, too: anybody may name a registry that sends wrong bytes, or none for ever, and must harm nobody else.
    """

    def __init__(self) -> None:
        self._flights: dict[tuple[str, str], Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Flight]:
        return iter(list(self._flights.values()))

    def get(self, registry: str, digest: str) -> Flight | None:
        """The flight that is under way, if there is one."""
        return self._flights.get((registry, digest))

    def add(self, flight: Flight) -> None:
        """Registers a new flight; its place must be free."""
        assert flight.key not in self._flights
        self._flights[flight.key] = flight

    def remove(self, flight: Flight) -> bool:
        """Frees its place; whether it still had one."""
        if self._flights.get(flight.key) is not flight:
            return False
        del self._flights[flight.key]
        return True
