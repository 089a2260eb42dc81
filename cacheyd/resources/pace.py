"""The least rate at which a body has to come: strangers who send byte after byte hold memory and turns."""

import time
from collections.abc import Callable


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
        """Somebody waits from now on. What it returns is for `end`."""
        return self._clock()

    def end(self, began: float, size: int) -> bool:
        """Counts the bytes that came since `began`; whether the body is fast enough."""
        self._waited += self._clock() - began
        self._came += size
        if self._waited < self._window:
            return True
        enough = self._came >= self._rate * self._waited
        self._waited, self._came = 0.0, 0
        return enough
