"""Whether the store is open, and how long requests wait for it that come before."""

import asyncio
import contextlib

from cacheyd.protocol.errors import cache_error

# Requests that come before the store is open wait for it so long (seconds): a rolling start refuses nobody.
START_PATIENCE = 5.0


class Readiness:
    """`ready` from the opening of the store to the end of the last transfer."""

    def __init__(self) -> None:
        self.ready = False
        # Why it is not ready.
        self._why = "cacheyd is starting"
        # Set when the store is open, or it is known that it will not be soon.
        self._settled = asyncio.Event()
        self._waiting = 0

    def open(self) -> None:
        """The store is open."""
        self.ready = True
        self._settled.set()

    def blocked(self) -> None:
        """Another process has the directory, and this one waits for it: clients are told so."""
        self._why = "another process uses the cache directory; cacheyd waits for it to end"
        self._settled.set()

    def failed(self) -> None:
        """The store will not be open: nobody is to wait for it."""
        self._settled.set()

    def close(self) -> None:
        """The store is about to be closed."""
        self.ready = False

    async def wait(self, *, patient: bool, most: int) -> None:
        """Waits until the store is open, but not longer than a start takes, nor with more than `most` others.

        Who is not `patient` (a probe, or any request while cacheyd stops) is told at once. Raises RequestError 503.
        """
        if not self._settled.is_set() and patient and self._waiting < most:
            self._waiting += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(START_PATIENCE):
                    await self._settled.wait()
            self._waiting -= 1
        if not self.ready:
            raise cache_error(self._why, 503)
