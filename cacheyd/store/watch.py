"""Watches the directory, which can be wiped at any time: whether it is there, belongs to this process, and is writable."""

import asyncio
import logging
from collections.abc import Callable

from cacheyd.store.blobs import BlobDir
from cacheyd.store.health import Health
from cacheyd.store.index import Index
from cacheyd.store.lock import DirectoryInUse, DirectoryLock
from cacheyd.store.reconcile import Reconciliation
from cacheyd.store.threads import DiskThreads

log = logging.getLogger(__name__)

LOOK_EVERY = 2.0
# The time between two tests whether the disk takes writes, while it does (seconds).
PROBE_EVERY = 10.0
# The time between two tries to get a lock that another process has (seconds).
LOCK_EVERY = 0.2


class Watch:
    """Holds the lock of the directory, and takes it again after a wipe."""

    def __init__(
        self,
        blobs: BlobDir,
        index: Index,
        health: Health,
        reconciliation: Reconciliation,
        threads: DiskThreads,
        *,
        monotonic: Callable[[], float],
    ) -> None:
        self.lock = DirectoryLock(blobs.root)
        self._blobs = blobs
        self._index = index
        self._health = health
        self._reconciliation = reconciliation
        self._threads = threads
        self._monotonic = monotonic

    async def take_directory(self, wait: float, give_up: Callable[[], bool], on_busy: Callable[[], None]) -> None:
        """Takes the lock, and tests whether the disk takes writes.

        Calls `on_busy` before it waits for another process that has the directory.

        Raises DirectoryInUse if another process still has the directory after `wait` seconds (or `give_up`). A bad disk
        raises nothing.
        """
        try:
            await self._threads.run(self._blobs.prepare)
            await self._take_lock(wait, give_up, on_busy)
        except OSError as error:
            self._health.report_write_error(error)
        else:
            await self._health.probe()

    async def _take_lock(self, wait: float, give_up: Callable[[], bool], on_busy: Callable[[], None]) -> None:
        deadline, said = self._monotonic() + wait, False
        while True:
            try:
                await self._threads.run(self.lock.acquire)
                return
            except DirectoryInUse as error:
                if self._monotonic() >= deadline or give_up():
                    raise
                if not said:
                    log.info("%s; waiting for it to end", error)
                    on_busy()
                said = True
                await asyncio.sleep(LOCK_EVERY)

    async def run(self) -> None:
        """Watches the directory as long as the store runs."""
        probed = self._monotonic()
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self.keep_lock()
                health = self._health
                if health.is_probe_due or (health.takes_writes and self._monotonic() - probed >= PROBE_EVERY):
                    await health.probe()
                    probed = self._monotonic()
                if self._index.usable and not await self._threads.run(self._index.is_there):
                    log.warning("the index below %s was removed; making a new one", self._blobs.root)
                    await self._threads.run(self._index.close)
                    self._reconciliation.ask()
                await self._reconciliation.reconcile_if_asked()
            except OSError as error:
                log.debug("watching %s failed: %s", self._blobs.root, error)
            except Exception:
                log.exception("watching %s failed", self._blobs.root)

    async def keep_lock(self) -> None:
        """Takes the lock again if the directory was wiped. Raises OSError."""
        if self.lock.is_held():
            return
        try:
            await self._threads.run(self._blobs.prepare)
            await self._threads.run(self.lock.acquire)
        except DirectoryInUse as error:
            self._health.lose_directory(error)
            return
        self._health.regain_directory()
