"""Stored objects: finds them, reads them, takes up files without a row, removes them.

Each stored object is in the catalogue, and its file is the file that was stored.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from cacheyd.observe.events import Events
from cacheyd.protocol.description import Description, describe
from cacheyd.protocol.digest import digest_of
from cacheyd.singleflight import SingleFlight
from cacheyd.store.blobs import BlobDir, hash_file
from cacheyd.store.catalog import Catalog
from cacheyd.store.health import Health
from cacheyd.store.mapped import Mapped
from cacheyd.store.records import MAX_REPOSITORIES, Stored
from cacheyd.store.threads import DiskThreads
from cacheyd.store.unread import Unread

log = logging.getLogger(__name__)

SMALL = 64 << 10
SMALL_TOTAL = 32 << 20
# The largest manifest that is kept (bytes): clients refuse larger ones. Only files without a row up to this size can become
# manifests.
MANIFEST_MAX = 4 << 20


class SmallBodies(OrderedDict[str, bytes]):
    """The bytes of small objects, by digest. Above SMALL_TOTAL the bytes that came first are dropped first."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def remember(self, digest: str, data: bytes) -> None:
        """Keeps the bytes of an object. They must not be here yet."""
        self[digest] = data
        self.total += len(data)
        while self.total > SMALL_TOTAL:
            _, old = self.popitem(last=False)
            self.total -= len(old)

    def forget(self, digest: str) -> None:
        """Drops the bytes of an object, if they are here."""
        self.total -= len(self.pop(digest, b""))


class Objects:
    """The stored objects. All methods but those marked "blocks" are for the event loop."""

    def __init__(
        self,
        blobs: BlobDir,
        catalog: Catalog,
        unread: Unread,
        health: Health,
        threads: DiskThreads,
        *,
        clock: Callable[[], float],
        events: Events,
    ) -> None:
        self._blobs = blobs
        self._catalog = catalog
        self._unread = unread
        self._health = health
        self._threads = threads
        self._clock = clock
        self._events = events
        # Stored objects whose bytes may not be on the disk itself yet: their rows are written when the bytes are there.
        self.unsynced: set[str] = set()
        self._small = SmallBodies()
        # Objects that have left the catalogue and whose files are about to be removed.
        self._leaving: set[tuple[str, tuple[int, int]]] = set()
        self._recovering: SingleFlight[str, None, Stored | None] = SingleFlight()

    def find(self, digest: str) -> Stored | None:
        """The object, if its file is there and is the file that was stored. Costs one stat."""
        stored = self._catalog.objects.get(digest)
        if stored is None:
            stored = self._unread.find_object(digest)
            if stored is None:
                return None
        if self._blobs.stat(digest) != (stored.size, stored.stamp):
            self.lost(stored)
            return None
        return stored

    def lost(self, stored: Stored) -> None:
        """Forgets an object whose file is missing, unreadable or changed; a file is hashed before it counts again."""
        if self._catalog.objects.get(stored.digest) is not stored:
            return  # The object was stored again since.
        if (size := self._blobs.size(stored.digest)) is not None:
            log.warning("%s (%d bytes) is not what was stored there, or cannot be read", self._blobs.path(stored.digest), size)
        self.forget(stored)

    def forget(self, stored: Stored) -> None:
        """Takes an object out of the catalogue; its file may still be there."""
        self._catalog.remove(stored.digest)
        self._forget(stored.digest)

    def _forget(self, digest: str) -> None:
        self.unsynced.discard(digest)
        self._small.forget(digest)
        self._unread.object_went(digest)

    def touch(self, digest: str, hits: int = 1) -> None:
        """Notes that the object was used just now, to answer `hits` requests."""
        self._catalog.touch(digest, self._clock(), hits)

    def body(self, stored: Stored) -> bytes | Mapped | None:
        """The object's bytes, of a large object as the shared mapping; None if the file has just disappeared."""
        if stored.size > SMALL:
            mapped = self._blobs.map(stored.digest)
            if mapped is not None and mapped.size == stored.size:
                return mapped
            self.lost(stored)
            return None
        data = self._small.get(stored.digest)
        if data is None:
            data = self._blobs.read(stored.digest)
            if data is None or len(data) != stored.size:
                self.lost(stored)
                return None
            self._small.remember(stored.digest, data)
        return data

    async def recover(self, digest: str, *, wait: float | None = None) -> Stored | None:
        """Hashes a file that does not count (after a crash, a lost index, a change of the file), and makes it an object.

        After `wait` seconds the answer is None, and the hashing goes on.
        """
        there = self._blobs.stat(digest)
        if there is None or (digest, there) in self._leaving:
            return None
        _, found = self._recovering.join(digest, None, lambda: self._recover(digest))
        try:
            async with asyncio.timeout(wait):
                return await found
        except TimeoutError:
            return None

    async def _recover(self, digest: str) -> Stored | None:
        before = await self._threads.run(self._blobs.stat, digest)
        if before is None or self._is_known(digest, before):
            return self.find(digest)
        found, description = await self._threads.run(self._hash, digest, before[0])
        if await self._threads.run(self._blobs.stat, digest) != before or self._is_known(digest, before):
            return self.find(digest)
        if found is None:
            # The file cannot be read now, perhaps because there are no free descriptors: its content stays unknown.
            return None
        if found != digest:
            log.warning("%s does not hold what its name says; removed", self._blobs.path(digest))
            await self.unlink(digest, before)
            return None
        if (digest, before) in self._leaving:
            return None
        now = self._clock()
        media_type = description.media_type
        used = min(now, before[1] / 1e9)
        stored = Stored(digest, before[0], media_type, now, (), used, stamp=before[1])
        self.add(stored, description if media_type else Description())
        return stored

    def _is_known(self, digest: str, found: tuple[int, int]) -> bool:
        stored = self._catalog.objects.get(digest)
        return stored is not None and (stored.size, stored.stamp) == found

    def _hash(self, digest: str, size: int) -> tuple[str | None, Description]:
        """The digest that a file really has, and its description if it is a manifest. Blocks."""
        algorithm = digest.partition(":")[0]
        if size > MANIFEST_MAX:
            try:
                return hash_file(self._blobs.path(digest), algorithm), Description()
            except OSError:
                return None, Description()
        data = self._blobs.read(digest)
        return (None if data is None else digest_of(data, algorithm)), describe(data)

    async def unlink(self, digest: str, known: tuple[int, int]) -> None:
        """Removes the file of an object that does not count, if the file's size and time of change are still `known`."""
        try:
            await self._threads.run(self._blobs.remove, digest, known)
        except OSError as error:
            self._health.report_write_error(error)

    def add(self, stored: Stored, said: Description, *, synced: bool = False) -> None:
        """Adds an object whose file is in place; `synced`: also on the disk itself. `said`: a manifest's description."""
        stored.need(said.needs)
        self._catalog.add(stored, said.needs, frozenset(said.blobs))
        self._unread.object_came(stored.digest)
        if not synced:
            self.unsynced.add(stored.digest)

    async def remove(self, digests: Iterable[str], reason: str) -> tuple[int, int]:
        """Removes objects and their files; gives how many there were, and their bytes."""
        removed = [stored for digest in digests if (stored := self._catalog.remove(digest)) is not None]
        await self.unlink_all(removed, reason)
        return len(removed), sum(stored.size for stored in removed)

    async def unlink_all(self, removed: Sequence[Stored], reason: str) -> None:
        """Removes the files of objects that were taken out of the catalogue."""
        if not removed:
            return
        for stored in removed:
            self._forget(stored.digest)
        leaving = {(stored.digest, (stored.size, stored.stamp)) for stored in removed}
        self._leaving |= leaving
        try:
            await self._threads.run(self._unlink_files, removed)
        except OSError as error:
            self._health.report_write_error(error)
        finally:
            self._leaving -= leaving
        self._events.evicted(reason, len(removed))

    def _unlink_files(self, removed: Sequence[Stored]) -> None:
        for stored in removed:
            self._blobs.remove(stored.digest, (stored.size, stored.stamp))

    async def sync(self) -> None:
        """Brings stored bytes to the disk itself; drops an object whose bytes do not get there."""
        objects = self._catalog.objects
        batch = {digest: objects[digest].stamp for digest in self.unsynced if digest in objects}
        if not batch:
            return
        failed = await self._threads.run(self._blobs.sync, batch)
        # An object that was stored again during this has another file, and waits for the next time.
        synced = {digest for digest, stamp in batch.items() if digest in objects and objects[digest].stamp == stamp}
        self.unsynced -= synced
        self._catalog.changed_objects.update(synced)
        if failed:
            log.error("%d objects did not get to the disk; dropped", len(failed))
            await self.remove(failed, "io")

    def add_repository(self, stored: Stored, within: str) -> None:
        """Notes that upstream serves an object in another repository, too."""
        self._catalog.add_repository(stored, within, MAX_REPOSITORIES)
