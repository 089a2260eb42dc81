"""The lowest rate at which a body must move: a peer that sends byte after byte would hold memory and turns."""

import time
from collections.abc import Callable


class Pace:
    """Checks that a body comes fast enough: `rate` bytes per second over `window` seconds of waiting for the peer.

    Only the time in which cacheyd waits for the peer counts. The time in which a full buffer makes the peer wait does not.
    """

    def __init__(self, rate: int, window: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._window = window
        self._clock = clock
        self._waited = 0.0
        self._came = 0

    def begin(self) -> float:
        """Starts a wait for the peer; returns the start time, for `end`."""
        return self._clock()

    def end(self, began: float, size: int) -> bool:
        """Ends a wait and counts its `size` bytes; returns whether the body is fast enough."""
        self._waited += self._clock() - began
        self._came += size
        if self._waited < self._window:
            return True
        enough = self._came >= self._rate * self._waited
        self._waited, self._came = 0.0, 0
        return enough
