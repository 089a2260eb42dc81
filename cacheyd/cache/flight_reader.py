"""Reads a flight for one client while the flight grows, from the client's own offset and at its own speed."""

from cacheyd.cache.bodies import WINDOW, BodyBroken
from cacheyd.cache.flight import Flight
from cacheyd.cache.growing import HOLD, GrowingBody
from cacheyd.cache.recent_bytes import RECENT
from cacheyd.store.partial import Partial

# The most bytes that are copied from an incomplete window; the same if many clients share the budget (bytes).
COPY, LEAST_COPY = 1 << 20, 16 << 10


class FlightReader:
    """Reads bytes `start` to `end` (None: to the end) of a flight while the flight grows.

    The last HOLD bytes of this range, and of the whole body, wait until the digest is verified: no answer is complete before.
    """

    def __init__(self, flight: Flight, start: int, end: int | None) -> None:
        # None after `close`: an answer keeps this reader for a while, and the flight keeps the file's descriptor.
        self.flight: Flight | None = flight
        flight.body.enter()
        flight.demand.enter()
        self._at = start
        self._end = end
        # The end of the bytes that may be sent before the digest is verified.
        self._unverified_end = max(start, end - HOLD) if end is not None else None

    async def read(self) -> bytes | memoryview:
        """The next piece as soon as there is one; empty at the end. Raises BodyBroken if the flight failed."""
        while True:
            if self._end is not None and self._at >= self._end:
                return b""
            flight = self.flight
            # An encoded body gets a new file when it is decoded.
            partial = None if flight is None else flight.body.partial
            if flight is None or flight.error is not None or partial is None:
                raise BodyBroken("closed" if flight is None else str(flight.error))
            body = flight.body
            if self._at < (limit := self._limit(body)):
                return self._take(body, partial, limit)
            if body.verified:
                return b""
            await flight.changes.next()

    def _limit(self, body: GrowingBody) -> int:
        end = self._end if body.verified else self._unverified_end
        return body.readable if end is None else min(body.readable, end)

    def _take(self, body: GrowingBody, partial: Partial, limit: int) -> bytes | memoryview:
        index, offset = divmod(self._at, WINDOW)
        window_end = (index + 1) * WINDOW
        piece, held = body.recent.find(self._at, limit)
        if piece and held <= body.budget.share(RECENT):
            pass
        elif window_end <= body.received:
            piece = partial.window(index, WINDOW)[offset : offset + limit - self._at]
        else:
            most = body.budget.share(COPY, LEAST_COPY)
            piece = partial.read(self._at, min(limit, self._at + most, window_end))
        if not piece:
            raise BodyBroken("the partial file is shorter than it was")
        self._at += len(piece)
        return piece

    def close(self) -> None:
        """Ends the reading, so that this reader does not keep the file."""
        if self.flight is not None:
            self.flight.body.leave()
            self.flight.demand.leave()
        self.flight = None
