"""What goes, and how: images that were not used for longest, but none that is on its way in."""

import logging
from collections.abc import Callable

from cacheyd.observe.wording import shown_size
from cacheyd.store.blobs import BlobDir
from cacheyd.store.catalog import Catalog
from cacheyd.store.objects import Objects
from cacheyd.store.reservations import Reservations
from cacheyd.store.unread import Unread

log = logging.getLogger(__name__)

# So many objects leave the catalogue at once; then the event loop does something else.
BATCH = 200


class Eviction:
    """Removes objects. What is on its way in, and the images that it is part of, are left alone."""

    def __init__(self, catalog: Catalog, objects: Objects, blobs: BlobDir, reservations: Reservations, unread: Unread) -> None:
        self._catalog = catalog
        self._objects = objects
        self._blobs = blobs
        self._reservations = reservations
        self._unread = unread

    async def evict(self, reason: str, size: int, most: int | None = None) -> int:
        """Removes objects of about `size` bytes, of no more than `most`; how many went."""
        if not self._unread.loaded:
            return 0
        taken = self._catalog.take_oldest(size, BATCH, self._in_use(), most=most)
        if not taken:
            # Objects that are being read can go, too: their readers are not disturbed, but the room comes back afterwards.
            taken = self._catalog.take_oldest(size, BATCH, self._reservations.expected().__contains__, most=most)
        await self._objects.unlink_all(taken, reason)
        if taken:
            freed = sum(stored.size for stored in taken)
            log.info("evicted %d objects, %s", len(taken), shown_size(freed))
        return len(taken)

    async def expire(self, before: float) -> int:
        """Removes objects that were not used since `before` (seconds since the epoch); how many went."""
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
