"""Waiting for the next change of something that many look at."""

import asyncio
from collections.abc import Callable


class Changes:
    """Those who wait. Who waits looks first, and no await stands between the look and the wait."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def wake(self) -> None:
        """Wakes all who wait."""
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def next(self) -> None:
        """Waits for the next change."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    async def until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Waits up to `seconds` until this holds; whether it did in time."""
        try:
            async with asyncio.timeout(seconds):
                while not holds():
                    await self.next()
        except TimeoutError:
            return False
        return True
