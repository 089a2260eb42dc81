"""The watchdog that ends idle connections of clients."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Idle:
    """Calls `end` if nothing happens on a connection for this number of seconds.

    This class replaces mitmproxy's watchdog, whose clock can be set by people. This class uses the monotonic clock.
    """

    def __init__(self, seconds: float, end: Callable[[], None]) -> None:
        self._seconds = seconds
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._busy = 0
        self._last = time.monotonic()
        self._timer = self._loop.call_later(seconds, self._look)

    def register_activity(self) -> None:
        """Notes that something happened on the connection."""
        self._last = time.monotonic()

    @contextmanager
    def disarm(self) -> Iterator[None]:
        """A context for a hook: while the hook runs, the connection does not count as idle."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self.register_activity()

    def _look(self) -> None:
        left = self._seconds if self._busy else self._last + self._seconds - time.monotonic()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._end()

    def stop(self) -> None:
        """Stops the watchdog: the connection is closed."""
        self._timer.cancel()
