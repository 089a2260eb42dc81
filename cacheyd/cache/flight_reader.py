"""What a client reads of a flight while it grows, from its own offset and at its own speed."""

from cacheyd.cache.bodies import WINDOW, BodyBroken
from cacheyd.cache.flight import HOLD, Flight
from cacheyd.cache.recent_bytes import RECENT
from cacheyd.store.blobs import Partial

# Up to so much is copied where a window is not complete yet, and so little where many clients wait (bytes).
COPY, LEAST_COPY = 1 << 20, 16 << 10


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
