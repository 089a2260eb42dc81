"""Compares the catalogue with the files on the disk, and puts differences right: after a crash, a wipe or a lost index."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import batched

from cacheyd.protocol.description import describe
from cacheyd.settings.live import Live
from cacheyd.store.blobs import BlobDir
from cacheyd.store.catalog import Catalog
from cacheyd.store.objects import Objects
from cacheyd.store.partials import Partials
from cacheyd.store.records import TagVariant
from cacheyd.store.threads import DiskThreads

log = logging.getLogger(__name__)

PARTIAL_AGE = 24 * 3600.0
# How long a tag is remembered whose image is not stored and for which no client asks (seconds).
TAG_AGE = 24 * 3600.0
# The same with min_age: clients get the tag's image until the next image is old enough, and it can be fetched again.
TAG_AGE_HELD = 30 * 24 * 3600.0
# The most files or tags that are checked at a time, before the event loop does other work.
PAGE = 500
# The most indexes that are read at a time, with all that they list.
LISTS = 4


class Reconciliation:
    """Reconciles the catalogue and the files, once at a time."""

    def __init__(
        self,
        blobs: BlobDir,
        catalog: Catalog,
        objects: Objects,
        partials: Partials,
        threads: DiskThreads,
        *,
        live: Live,
        clock: Callable[[], float],
    ) -> None:
        self._blobs = blobs
        self._catalog = catalog
        self._objects = objects
        self._partials = partials
        self._threads = threads
        self._live = live
        self._clock = clock
        self._lock = asyncio.Lock()
        self._asked = False

    def ask(self) -> None:
        """Asks for a reconciliation: the index is new, and what happened to the old index may have happened to files, too."""
        self._asked = True

    async def reconcile_if_asked(self) -> None:
        """Reconciles if `ask` was called since the last reconciliation."""
        if self._asked:
            self._asked = False
            await self.reconcile()

    async def reconcile(self) -> dict[str, int]:
        """Drops rows without their file, takes up files without a row, sweeps partial files and old tags; gives the counts."""
        async with self._lock:
            before = len(self._catalog.objects)
            present = 0
            unknown = []
            async for digest, size, stamp in self._scan():
                stored = self._catalog.objects.get(digest)
                if stored is not None and (stored.size, stored.stamp) == (size, stamp):
                    present += 1
                else:
                    unknown.append(digest)
            # Usually all files are there, and no object has to be checked on its own.
            lost = await self._drop_missing() if present < len(self._catalog.objects) else 0
            adopted = 0
            for digest in unknown:
                adopted += digest not in self._catalog.objects and await self._objects.recover(digest) is not None
            await self._link()
            swept = await self._partials.sweep(PARTIAL_AGE)
            tags = await self._drop_old_tags()
            if lost or adopted or swept or tags:
                log.info(
                    "looked through %s: %d objects, %d gone, %d taken up, %d partial files and %d tags dropped",
                    self._blobs.root, before, lost, adopted, swept, tags,
                )  # fmt: skip
            return {"lost": lost, "adopted": adopted, "partials": swept, "tags": tags}

    async def _link(self) -> None:
        """Links indexes to manifests that were found in other repositories."""
        for page in batched(self._catalog.links.indexes(), LISTS):
            lists = await self._threads.run(lambda page=page: [describe(self._blobs.read(digest)) for digest in page])
            for digest, said in zip(page, lists, strict=True):
                self._catalog.links.link(digest, said.needs, frozenset(said.blobs))
            await asyncio.sleep(0)

    async def _scan(self) -> AsyncIterator[tuple[str, int, int]]:
        pages = batched(self._blobs.scan(), PAGE)
        while (page := await self._threads.run(next, pages, None)) is not None:
            for found in page:
                yield found

    async def _drop_missing(self) -> int:
        count = 0
        for page in batched(list(self._catalog.objects), PAGE):
            stats = await self._threads.run(lambda page=page: [self._blobs.stat(digest) for digest in page])
            for digest, found in zip(page, stats, strict=True):
                stored = self._catalog.objects.get(digest)
                if stored is not None and found != (stored.size, stored.stamp):
                    self._objects.lost(stored)
                    count += 1
        return count

    async def _drop_old_tags(self) -> int:
        count = 0
        limit = TAG_AGE_HELD if self._live.settings.has_min_age else TAG_AGE
        for names in batched(list(self._catalog.tags), PAGE):
            for name in names:
                if self._is_old(self._catalog.tags.get(name, ()), limit):
                    count += self._catalog.tags.forget(name)
            await asyncio.sleep(0)
        return count

    def _is_old(self, variants: Sequence[TagVariant], limit: float) -> bool:
        now = self._clock()
        return not any(v.digest in self._catalog.objects or abs(now - v.checked) < limit for v in variants)
