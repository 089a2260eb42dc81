"""The threads for work that blocks on the disk."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class DiskThreads:
    """A few threads for one store; each starts when it is first needed."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="cacheyd-disk")

    async def run[T](self, function: Callable[..., T], *args: object) -> T:
        """Runs a function that blocks on the disk; gives its result, and raises its errors."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def stop(self) -> None:
        """Waits for running work, and ends the threads. Blocks."""
        self._pool.shutdown(wait=True)
