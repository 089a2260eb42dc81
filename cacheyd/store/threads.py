"""The threads for what blocks on the disk."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class DiskThreads:
    """A few threads, for one store: they are started when they are needed first."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="cacheyd-disk")

    async def run[T](self, function: Callable[..., T], *args: object) -> T:
        """Runs what blocks on the disk, and gives what it returned or raised."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def stop(self) -> None:
        """Waits for what runs, and ends the threads. Blocks."""
        self._pool.shutdown(wait=True)
