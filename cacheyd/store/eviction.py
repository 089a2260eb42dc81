"""Evicts images, those first that were not used for the longest time, but no image that is on its way in."""

import logging
from collections.abc import Callable

from cacheyd.observe.wording import shown_size
from cacheyd.store.blobs import BlobDir
from cacheyd.store.catalog import Catalog
from cacheyd.store.objects import Objects
from cacheyd.store.reservations import Reservations
from cacheyd.store.unread import Unread

log = logging.getLogger(__name__)

# The most objects that leave the catalogue at once, before the event loop does other work.
BATCH = 200


class Eviction:
    """Removes objects, but none that is on its way in, and no image that such an object is part of."""

    def __init__(self, catalog: Catalog, objects: Objects, blobs: BlobDir, reservations: Reservations, unread: Unread) -> None:
        self._catalog = catalog
        self._objects = objects
        self._blobs = blobs
        self._reservations = reservations
        self._unread = unread

    async def evict(self, reason: str, size: int, most: int | None = None) -> int:
        """Removes objects of about `size` bytes, and no more than `most` bytes; gives how many objects it removed."""
        if not self._unread.loaded:
            return 0
        taken = self._catalog.take_oldest(size, BATCH, self._in_use(), most=most)
        if not taken:
            # Objects that are being read are removed, too. This does not disturb their readers; the disk gets the room later.
            taken = self._catalog.take_oldest(size, BATCH, self._reservations.expected().__contains__, most=most)
        await self._objects.unlink_all(taken, reason)
        if taken:
            freed = sum(stored.size for stored in taken)
            log.info("evicted %d objects, %s", len(taken), shown_size(freed))
        return len(taken)

    async def expire(self, before: float) -> int:
        """Removes objects that were not used since `before` (seconds since the epoch); gives how many it removed."""
        count = 0
        if not self._unread.loaded:
            return 0
        while taken := self._catalog.take_oldest(2**62, BATCH, self._in_use(), before=before):
            await self._objects.unlink_all(taken, "age")
            count += len(taken)
        return count

    def _in_use(self) -> Callable[[str], bool]:
        coming, is_mapped = self._reservations.expected(), self._blobs.is_mapped
        return lambda digest: digest in coming or is_mapped(digest)
