"""Writes all changes to the index, in batches."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from cacheyd.protocol.description import children
from cacheyd.store.blobs import BlobDir
from cacheyd.store.catalog import Catalog
from cacheyd.store.health import Health
from cacheyd.store.index import Index, Row
from cacheyd.store.lists import Lists
from cacheyd.store.loading import Loading
from cacheyd.store.objects import Objects
from cacheyd.store.reconcile import Reconciliation
from cacheyd.store.records import is_index, write_stored, write_variants
from cacheyd.store.sights import Sights
from cacheyd.store.threads import DiskThreads

log = logging.getLogger(__name__)

FLUSH_EVERY, SYNC_EVERY, SAVE_USED_EVERY = 0.5, 2.0, 60.0
# The time between two tries to open an index that cannot be written (seconds).
REOPEN_EVERY = 5.0
# The most rows of one kind that are written at a time, before the event loop does other work.
PAGE = 500
# The most lists that are written at a time.
LISTS = 4


class Journal:
    """Writes all rows except the scrub's row."""

    def __init__(
        self,
        index: Index,
        catalog: Catalog,
        lists: Lists,
        sights: Sights,
        objects: Objects,
        loading: Loading,
        reconciliation: Reconciliation,
        health: Health,
        blobs: BlobDir,
        threads: DiskThreads,
        *,
        monotonic: Callable[[], float],
    ) -> None:
        self._index = index
        self._catalog = catalog
        self._lists = lists
        self._sights = sights
        self._objects = objects
        self._loading = loading
        self._reconciliation = reconciliation
        self._health = health
        self._blobs = blobs
        self._threads = threads
        self._monotonic = monotonic
        self._reopen_at = 0.0

    async def run(self) -> None:
        """Writes changes as long as the store runs."""
        clock = self._monotonic
        synced = saved = clock()
        while True:
            await asyncio.sleep(FLUSH_EVERY)
            try:
                if clock() - synced >= SYNC_EVERY:
                    await self._objects.sync()
                    synced = clock()
                if clock() - saved >= SAVE_USED_EVERY:
                    self._save_used()
                    saved = clock()
                await self.flush()
            except Exception:
                log.exception("writing the index failed")

    async def save(self) -> None:
        """Writes all rows that have changed."""
        await self._objects.sync()
        self._save_used()
        await self.flush()

    def _save_used(self) -> None:
        """Marks the rows of all used objects as changed, so that access times and hits are written in a batch."""
        self._catalog.changed_objects.update(self._catalog.used_objects)
        self._catalog.used_objects.clear()

    async def flush(self) -> None:
        """Writes all changed rows, except those of objects that are not on the disk itself yet."""
        if self._health.lost_directory or (not self._index.usable and not await self._reopen()):
            return
        catalog = self._catalog
        while True:
            objects = _take(catalog.changed_objects, PAGE, self._objects.unsynced)
            tags = _take(catalog.tags.changed, PAGE)
            lists = _take(self._lists.changed, LISTS)
            sights = self._sights.take_changed(PAGE)
            if not objects and not tags and not lists and not sights:
                return
            rows = [(f"o:{digest}", self._object_row(digest)) for digest in objects]
            rows += [(f"t:{name}", self._tag_row(name)) for name in tags]
            rows += [(f"l:{name}", self._lists.row(name)) for name in lists]
            rows += [(key, self._sights.row(key)) for key in sights]
            if not await self._threads.run(self._write_rows, rows):
                catalog.changed_objects.update(objects)
                catalog.tags.changed.update(tags)
                self._lists.changed.update(lists)
                self._sights.put_back(sights)
                return

    def _write_rows(self, rows: Sequence[tuple[str, Row | None]]) -> bool:
        """Writes rows, with all that an index lists as its `needs`; gives whether that worked. Blocks."""
        for key, row in rows:
            if row is not None and key.startswith("o:") and is_index(row["type"]):
                row["needs"] = children(self._blobs.read(key[2:]))
        return self._index.write(rows)

    def _object_row(self, digest: str) -> Row | None:
        stored = self._catalog.objects.get(digest)
        return None if stored is None else write_stored(stored)

    def _tag_row(self, name: str) -> Row | None:
        variants = self._catalog.tags.get(name)
        return None if variants is None else write_variants(variants)

    async def _reopen(self) -> bool:
        """Opens an index that could not be opened or written, at most every REOPEN_EVERY seconds; gives whether it did."""
        if self._monotonic() < self._reopen_at:
            return False
        self._reopen_at = self._monotonic() + REOPEN_EVERY
        if not await self._threads.run(self._index.open):
            return False
        self._reconciliation.ask()
        if not self._loading.unread.index_read:
            await self._loading.load()
        self._catalog.changed_objects.update(self._catalog.objects)
        self._catalog.tags.changed.update(self._catalog.tags)
        self._sights.all_changed()
        self._lists.touch_all()
        return True


def _take(keys: set[str], limit: int, but: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """Takes up to `limit` keys out of the set."""
    taken: list[str] = []
    for key in keys:
        if len(taken) >= limit:
            break
        if key not in but:
            taken.append(key)
    keys.difference_update(taken)
    return taken
