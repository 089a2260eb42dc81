"""The objects and tags as they are now: catalogue, files and rows, and what holds them together.

No work runs on its own here; that is for `upkeep` and `room`, and `store` has the whole.
"""

import asyncio
import errno
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import override

from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.reference import Kind
from cacheyd.settings.settings import Settings
from cacheyd.singleflight import SingleFlight
from cacheyd.store.blobs import SHORTAGE, BlobDir, Mapped, Partial, hash_file
from cacheyd.store.catalog import Catalog, Snapshot
from cacheyd.store.index import Index, Row
from cacheyd.store.lists import Lists
from cacheyd.store.lock import DirectoryLock
from cacheyd.store.rows import Description, Stored, TagVariant, describe, has_own_type, read_stored, read_variants
from cacheyd.store.sights import Sights

log = logging.getLogger(__name__)

SMALL = 64 << 10
SMALL_TOTAL = 32 << 20
# The largest manifest that is kept (bytes): clients refuse larger ones. Files without a row are looked into up to this size.
MANIFEST_MAX = 4 << 20
MAX_REPOSITORIES = 64
# After the disk refused a write, requests bypass the store for so long before it is tried again (seconds).
BROKEN_PAUSE = 10.0
# So long before the end of that it is probed (seconds).
PROBE_BEFORE = 5.0


class Idle(dict[str, int]):
    """Path and size of files, for several threads; `total` is looked at for each piece of each object that comes (bytes)."""

    def __init__(self, files: Mapping[str, int] | None = None) -> None:
        super().__init__(files or {})
        self.total = sum(self.values())
        self._lock = threading.Lock()

    @override
    def __setitem__(self, path: str, size: int) -> None:
        with self._lock:
            self.total += size - self.get(path, 0)
            super().__setitem__(path, size)

    def take(self, path: str) -> int | None:
        """Takes a file out; its size, None if it was not there."""
        with self._lock:
            size = super().pop(path, None)
            self.total -= size or 0
            return size


class Shelf:
    """All methods but those marked "blocks" are for the event loop."""

    def __init__(
        self,
        root: Path,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        on_evicted: Callable[[str, int], None] = lambda reason, count: None,
    ) -> None:
        self.root = root
        self.clock, self.monotonic = clock, monotonic
        # What is on its way in: set by who fetches.
        self.in_flight: Callable[[], Collection[str]] = tuple
        self.on_evicted = on_evicted
        self.catalog = Catalog()
        self.lists = Lists()
        self.blobs = BlobDir(root)
        self.index = Index(root / "index", sync=settings.durability == "fsync")
        self.sights = Sights(self._unread_row)
        self.lock = DirectoryLock(root)
        self.threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="cacheyd-disk")
        # Whether the catalogue is as complete as it gets.
        self.loaded = False
        # Until all rows were read, they are also looked up one by one, but not those of what went meanwhile.
        self.index_read = False
        self.gone: set[str] = set()
        self.gone_tags: set[str] = set()
        # Stored, but not yet known to be on the disk itself: they get their row then.
        self.unsynced: set[str] = set()
        # Partial files that a fetch has now, and path and size of the others.
        self.open_partials: set[Partial] = set()
        self.idle = Idle()
        self._writing = 0
        # Bytes that are still to come of those for which room was made beforehand.
        self.promised = 0
        self.write_errors = 0
        # What the disk said when it refused a write, and none has succeeded since; empty if all is well.
        self.refusal = ""
        # Another process took the directory, after it was wiped.
        self.ousted = False
        self._settings = settings
        self._small: OrderedDict[str, bytes] = OrderedDict()
        self._small_bytes = 0
        self._broken_until = 0.0
        # Out of the catalogue, their files about to go.
        self._leaving: set[tuple[str, tuple[int, int]]] = set()
        self._recovering: SingleFlight[str, None, Stored | None] = SingleFlight()

    @property
    def settings(self) -> Settings:
        """What is in force."""
        return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self._settings = settings
        self.catalog.pin(settings.pin)

    @property
    def size(self) -> int:
        """The size of all objects."""
        return self.catalog.bytes

    @property
    def counts(self) -> dict[Kind, int]:
        """How many objects there are."""
        return self.catalog.counts

    async def in_thread[T](self, function: Callable[..., T], *args: object) -> T:
        """Runs what blocks on the disk."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *args)

    # Objects

    def find(self, digest: str) -> Stored | None:
        """The object if its file is there and is the one that was stored. One stat."""
        stored = self.catalog.objects.get(digest)
        if stored is None:
            stored = self.find_row(digest)
            if stored is None:
                return None
        if self.blobs.stat(digest) != (stored.size, stored.stamp):
            self.lost(stored)
            return None
        return stored

    def lost(self, stored: Stored) -> None:
        """The object's file is gone, unreadable, or somebody changed it: what is there is hashed before it counts."""
        if self.catalog.objects.get(stored.digest) is not stored:
            return  # It was stored anew since.
        if (size := self.blobs.size(stored.digest)) is not None:
            log.warning("%s (%d bytes) is not what was stored there, or cannot be read", self.blobs.path(stored.digest), size)
        self.forget(stored)

    def forget(self, stored: Stored) -> None:
        """The object does not count any more; its file may be there."""
        self.catalog.remove(stored.digest)
        self._forget(stored.digest)

    def _forget(self, digest: str) -> None:
        self.unsynced.discard(digest)
        self._small_bytes -= len(self._small.pop(digest, b""))
        if not self.index_read:
            self.gone.add(digest)

    def touch(self, digest: str, hits: int = 1) -> None:
        """The object was used just now, to answer so many requests."""
        self.catalog.touch(digest, self.clock(), hits)

    def body(self, stored: Stored) -> bytes | Mapped | None:
        """The object's bytes: small ones from memory, others as the shared mapping; None if the file went just now."""
        if stored.size > SMALL:
            mapped = self.blobs.map(stored.digest)
            if mapped is not None and mapped.size == stored.size:
                return mapped
            self.lost(stored)
            return None
        data = self._small.get(stored.digest)
        if data is None:
            data = self.blobs.read(stored.digest)
            if data is None or len(data) != stored.size:
                self.lost(stored)
                return None
            self._remember_small(stored.digest, data)
        return data

    def _remember_small(self, digest: str, data: bytes) -> None:
        self._small[digest] = data
        self._small_bytes += len(data)
        while self._small_bytes > SMALL_TOTAL:
            _, old = self._small.popitem(last=False)
            self._small_bytes -= len(old)

    def snapshot(self) -> Snapshot:
        """A copy of the lists of objects and tags, to be read in another thread."""
        return self.catalog.snapshot()

    async def recover(self, digest: str, *, wait: float | None = None) -> Stored | None:
        """Takes up a file that does not count: after a crash, a lost index, a change of it. It is hashed first.

        That goes on where it takes longer than `wait` seconds, and None is the answer.
        """
        there = self.blobs.stat(digest)
        if there is None or (digest, there) in self._leaving:
            return None
        _, found = self._recovering.join(digest, None, lambda: self._recover(digest))
        try:
            async with asyncio.timeout(wait):
                return await found
        except TimeoutError:
            return None

    async def _recover(self, digest: str) -> Stored | None:
        before = await self.in_thread(self.blobs.stat, digest)
        if before is None or self._is_known(digest, before):
            return self.find(digest)
        found, description = await self.in_thread(self._hash, digest, before[0])
        if await self.in_thread(self.blobs.stat, digest) != before or self._is_known(digest, before):
            return self.find(digest)
        if found is None:
            # It cannot be read now, for want of descriptors perhaps: nothing is known of it.
            return None
        if found != digest:
            log.warning("%s does not hold what its name says; removed", self.blobs.path(digest))
            await self.unlink(digest, before)
            return None
        if (digest, before) in self._leaving:
            return None
        now = self.clock()
        media_type = description.media_type
        used = min(now, before[1] / 1e9)
        stored = Stored(digest, before[0], media_type, now, (), used, stamp=before[1])
        self.add(stored, description if media_type else Description())
        return stored

    def _is_known(self, digest: str, found: tuple[int, int]) -> bool:
        stored = self.catalog.objects.get(digest)
        return stored is not None and (stored.size, stored.stamp) == found

    def _hash(self, digest: str, size: int) -> tuple[str | None, Description]:
        """The digest that a file really has, and what it says of itself if it is a manifest. Blocks."""
        algorithm = digest.partition(":")[0]
        if size > MANIFEST_MAX:
            try:
                return hash_file(self.blobs.path(digest), algorithm), Description()
            except OSError:
                return None, Description()
        data = self.blobs.read(digest)
        return (None if data is None else digest_of(data, algorithm)), describe(data)

    async def unlink(self, digest: str, known: tuple[int, int]) -> None:
        try:
            await self.in_thread(self.blobs.remove, digest, known)
        except OSError as error:
            self.report_write_error(error)

    def add(self, stored: Stored, said: Description, *, synced: bool = False) -> None:
        """An object whose file is in place, and `synced` to the disk itself; `said` is what a manifest says."""
        stored.needs = said.needs
        self.catalog.add(stored, said.needs, frozenset(said.blobs))
        self.gone.discard(stored.digest)
        if not synced:
            self.unsynced.add(stored.digest)

    async def remove(self, digests: Iterable[str], reason: str) -> tuple[int, int]:
        """Removes objects, wherever they stand; how many there were, and their bytes."""
        removed = [stored for digest in digests if (stored := self.catalog.remove(digest)) is not None]
        await self.unlink_all(removed, reason)
        return len(removed), sum(stored.size for stored in removed)

    async def unlink_all(self, removed: Sequence[Stored], reason: str) -> None:
        """The files of objects that were taken out of the catalogue."""
        if not removed:
            return
        for stored in removed:
            self._forget(stored.digest)
        leaving = {(stored.digest, (stored.size, stored.stamp)) for stored in removed}
        self._leaving |= leaving
        try:
            await self.in_thread(self._unlink_files, removed)
        except OSError as error:
            self.report_write_error(error)
        finally:
            self._leaving -= leaving
        self.on_evicted(reason, len(removed))

    def _unlink_files(self, removed: Sequence[Stored]) -> None:
        for stored in removed:
            self.blobs.remove(stored.digest, (stored.size, stored.stamp))

    # Rows, before all of them were read

    def find_row(self, digest: str) -> Stored | None:
        """An object's row, before all of them were read."""
        if self.index_read or digest in self.gone or (row := self.index.get(f"o:{digest}")) is None:
            return None
        if not has_own_type(row):
            return None  # The file has to be looked into first.
        stored = read_stored(digest, row)
        if stored is not None:
            self.load_object(stored, stored.needs)
        return stored

    def find_tag(self, name: str) -> tuple[TagVariant, ...]:
        """A tag's row, before all of them were read."""
        if self.index_read or name in self.gone_tags or (row := self.index.get(f"t:{name}")) is None:
            return ()
        variants = tuple(read_variants(row))
        self.load_tag(name, variants)
        return variants

    def load_object(self, stored: Stored, listed: Sequence[str]) -> None:
        """An object as its row says."""
        known = self.catalog.objects.get(stored.digest)
        if known is not None and (known.size, known.stamp) == (stored.size, stored.stamp):
            # It was taken up before its row could be read.
            known.created, known.hits = min(known.created, stored.created), max(known.hits, stored.hits)
            for name in stored.within:
                self.catalog.add_repository(known, name, MAX_REPOSITORIES)
        if known is not None or stored.digest in self.gone:
            return
        stored.used = min(stored.used, self.clock())
        self.catalog.add(stored, listed)
        self.catalog.changed_objects.discard(stored.digest)

    def load_tag(self, name: str, variants: tuple[TagVariant, ...]) -> None:
        """A tag as its row says."""
        if name not in self.catalog.tags and name not in self.gone_tags:
            self.catalog.set_tag(name, variants)
            self.catalog.changed_tags.discard(name)

    def _unread_row(self, key: str) -> Row | None:
        return None if self.index_read else self.index.get(key)

    # Writing

    @property
    def writable(self) -> bool:
        """Whether to try: not for a while after the disk refused a write, nor while another process has the directory."""
        return not self.ousted and self.monotonic() >= self._broken_until

    @property
    def takes_writes(self) -> bool:
        """Whether the last write succeeded, and the directory is this process' own."""
        return not self.ousted and not self.refusal

    @property
    def is_probe_due(self) -> bool:
        """Whether the disk, which has refused a write, was left alone for long enough: who fetches is not to be the first."""
        return bool(self.refusal) and self.monotonic() >= self._broken_until - PROBE_BEFORE

    def report_write_error(self, error: OSError) -> None:
        """Remembers that the disk refuses writes: requests go on without being kept. One log line per pause."""
        self.write_errors += 1
        self._refuse(error)

    def _refuse(self, error: OSError) -> None:
        said, self.refusal = bool(self.refusal), f"{errno.errorcode.get(error.errno or 0, '?')}: {error.strerror}"
        if self.writable and not said:
            log.error("%s cannot be written (%s); serving without keeping", self.root, self.refusal)
        self._broken_until = self.monotonic() + BROKEN_PAUSE

    def report_write(self) -> None:
        """A write has succeeded."""
        if self.refusal:
            log.info("%s can be written again", self.root)
            self.refusal, self._broken_until = "", 0.0

    async def probe(self) -> None:
        """Tries whether the disk takes writes; without traffic nobody else would find out."""
        try:
            await self.in_thread(self.blobs.probe)
        except OSError as error:
            if error.errno not in SHORTAGE:
                self._refuse(error)
        else:
            self.report_write()

    @property
    def partial_bytes(self) -> int:
        """The size of all partial files, and of what is being written to them."""
        return self.idle.total + sum(partial.size for partial in self.open_partials) + self._writing

    def promise(self, size: int) -> None:
        """So many bytes more are to come, for which room was made (fewer, if negative): others do not get it."""
        self.promised += size

    @contextmanager
    def writing(self, size: int) -> Iterator[None]:
        """So many bytes are about to be in a partial file: the room for them is taken, and others find what is left."""
        self._writing += size
        try:
            yield
        finally:
            self._writing -= size
