"""Lets many tasks wait for the next change of one thing."""

import asyncio
from collections.abc import Callable


class Changes:
    """The tasks that wait. A task must check its condition first, without an await between the check and the wait."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def wake(self) -> None:
        """Wakes all waiting tasks."""
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
        """Waits up to `seconds` until `holds` gives true; gives whether that happened in time."""
        try:
            async with asyncio.timeout(seconds):
                while not holds():
                    await self.next()
        except TimeoutError:
            return False
        return True
