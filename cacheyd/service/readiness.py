"""Whether the store is open, and how long early requests wait for the store."""

import asyncio
import contextlib

from cacheyd.protocol.errors import cache_error

# How long a request waits until the store is open (seconds): so a rolling start refuses no client.
START_PATIENCE = 5.0


class Readiness:
    """Has `ready` true from the opening of the store to the end of the last transfer."""

    def __init__(self) -> None:
        self.ready = False
        # Why the cache is not ready: the text of the 503 answer.
        self._why = "cacheyd is starting"
        # Set if the store is open, or if the store will not be open soon.
        self._settled = asyncio.Event()
        self._waiting = 0

    def open(self) -> None:
        """Notes that the store is open."""
        self.ready = True
        self._settled.set()

    def blocked(self) -> None:
        """Notes that this process waits for another one that has the directory. Requests get 503 with this reason."""
        self._why = "another process uses the cache directory; cacheyd waits for it to end"
        self._settled.set()

    def failed(self) -> None:
        """Notes that the store will not open: no request waits for it any longer."""
        self._settled.set()

    def close(self) -> None:
        """Notes that the store is about to be closed."""
        self.ready = False

    async def wait(self, *, patient: bool, most: int) -> None:
        """Waits until the store is open, for START_PATIENCE at most. Does not wait if `most` requests wait already.

        A request that is not `patient` (a probe, or any request while cacheyd stops) does not wait. Raises RequestError 503.
        """
        if not self._settled.is_set() and patient and self._waiting < most:
            self._waiting += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(START_PATIENCE):
                    await self._settled.wait()
            self._waiting -= 1
        if not self.ready:
            raise cache_error(self._why, 503)
