"""The watchdog of a client's connection on which nothing happens."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Idle:
    """mitmproxy's watchdog of a connection on which nothing happens, by a clock that nobody can set."""

    def __init__(self, seconds: float, end: Callable[[], None]) -> None:
        self._seconds = seconds
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._busy = 0
        self._last = time.monotonic()
        self._timer = self._loop.call_later(seconds, self._look)

    def register_activity(self) -> None:
        """Something happened."""
        self._last = time.monotonic()

    @contextmanager
    def disarm(self) -> Iterator[None]:
        """While a hook runs, the connection is not idle."""
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
        """The connection is gone."""
        self._timer.cancel()
