"""All background work of the store, started and ended together."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from cacheyd.store.bounds import Bounds
from cacheyd.store.index import Index
from cacheyd.store.journal import Journal
from cacheyd.store.loading import Loading
from cacheyd.store.reconcile import Reconciliation
from cacheyd.store.scrub import Scrub
from cacheyd.store.threads import DiskThreads
from cacheyd.store.watch import Watch

log = logging.getLogger(__name__)

RECONCILE_EVERY = 3600.0


class Upkeep:
    """Opens the directory and its index, runs the background work as long as the store runs, and closes both."""

    def __init__(
        self,
        index: Index,
        threads: DiskThreads,
        *,
        watch: Watch,
        loading: Loading,
        reconciliation: Reconciliation,
        journal: Journal,
        scrub: Scrub,
        bounds: Bounds,
    ) -> None:
        self.index = index
        self.threads = threads
        self.watch = watch
        self.loading = loading
        self.reconciliation = reconciliation
        self.journal = journal
        self.scrub = scrub
        self._bounds = bounds
        self._tasks: list[asyncio.Task[None]] = []
        # The counts of what the start put right, for `collect` to report.
        self._repaired: Counter[str] = Counter()

    async def start(self, *, background: bool, wait: float, give_up: Callable[[], bool], on_busy: Callable[[], None]) -> None:
        """See `Store.start`."""
        await self.watch.take_directory(wait, give_up, on_busy)
        await self.threads.run(self.index.open)
        if background:
            work = (self._read(), self.journal.run(), self.watch.run(), self.scrub.run(), self._bounds.keep_bounds())
            self._tasks = [asyncio.create_task(one) for one in work]
        else:
            await self.loading.load()
            self._repaired.update(await self.reconciliation.reconcile())

    async def _read(self) -> None:
        while True:
            try:
                if not self.loading.unread.loaded:
                    await self.loading.load()
                await self.reconciliation.reconcile()
            except Exception:
                log.exception("reading %s failed; what is there is served all the same", self.index.directory.parent)
            await asyncio.sleep(RECONCILE_EVERY)

    async def stop(self) -> None:
        """Ends the background work, and writes all changed rows."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.journal.save()
        await self.threads.run(self.index.close)
        self.threads.stop()
        self.watch.lock.release()

    async def put_right(self) -> dict[str, int]:
        """Reconciles index and files; gives the counts, with those of the start if they were not reported yet."""
        found = {name: count + self._repaired[name] for name, count in (await self.reconciliation.reconcile()).items()}
        self._repaired.clear()
        return found

    async def index_size(self) -> int:
        """The size of the index on the disk (bytes)."""
        return await self.threads.run(self.index.size)
