"""What the store does beside serving: reads the index, compares it with the files, writes it, and checks what is stored."""

import asyncio
import gc
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import batched
from typing import Any

from cacheyd.store.blobs import SHORTAGE, hash_file
from cacheyd.store.index import Row
from cacheyd.store.lists import Listed, read_listed
from cacheyd.store.lock import DirectoryInUse
from cacheyd.store.objects import MANIFEST_MAX, Shelf
from cacheyd.store.records import (
    Stored,
    TagVariant,
    children,
    describe,
    has_own_type,
    is_index,
    read_stored,
    read_variants,
    write_stored,
    write_variants,
)
from cacheyd.store.sights import HELD, SEEN

log = logging.getLogger(__name__)

FLUSH_EVERY, SYNC_EVERY, LOOK_EVERY, SAVE_USED_EVERY, RECONCILE_EVERY = 0.5, 2.0, 2.0, 60.0, 3600.0
# How often it is tried whether the disk takes writes, while it does (seconds).
PROBE_EVERY = 10.0
# An index that cannot be written is tried again this often (seconds).
REOPEN_EVERY = 5.0
PARTIAL_AGE = 24 * 3600.0
# A tag whose image is not stored is forgotten when nobody asked for it for so long (seconds).
TAG_AGE = 24 * 3600.0
# With min_age it is what clients get until the next one is old enough, and it can be fetched again.
TAG_AGE_HELD = 30 * 24 * 3600.0
# So many rows or files at a time: between them the event loop does something else.
PAGE = 500
# So many indexes, with all that they list.
LISTS = 4
# Rows are read in smaller pages: what a page leaves between what stays is memory lost.
ROWS = 100
PAGES_TO_FREEZE = 100
SCRUB_PIECE = 1 << 20
SCRUB_IDLE = 60.0
_SCRUB_KEY = "m:scrub"


class Upkeep:
    """The background work of a store, and the state of its index."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._catalog = shelf.catalog
        self._index = shelf.index
        self._reconciling = asyncio.Lock()
        self._reopen_at = 0.0
        # The index was made anew: whatever happened to it may have happened to the files, also while there was none.
        self._look_through = False
        # Bytes that the scrub has read, and objects that did not have their digest.
        self.scrubbed = 0
        self.dropped = 0

    def work(self) -> Sequence[Coroutine[Any, Any, None]]:
        """What runs as long as the store does."""
        return self._read(), self._write(), self._look(), self._scrub()

    # Reading the index

    async def load(self) -> None:
        """Reads all rows into the catalogue."""
        pages = _read_pages(self._index.pages(ROWS), self._shelf.blobs.read)
        tags: list[tuple[str, tuple[TagVariant, ...]]] = []
        lists: list[tuple[str, Listed]] = []
        count = 0
        while (page := await self._shelf.threads.run(next, pages, None)) is not None:
            for thing in page:
                if isinstance(thing, Stored):
                    self._shelf.load_object(thing, thing.needs)
                elif isinstance(thing, _Renewed):
                    self._shelf.load_object(thing.stored, thing.stored.needs)
                    self._catalog.changed_objects.add(thing.stored.digest)
                elif isinstance(thing[1], Listed):
                    lists.append((thing[0], thing[1]))
                elif isinstance(thing[1], dict):
                    self._shelf.sights.load(thing[0], thing[1])
                else:
                    tags.append((thing[0], thing[1]))
            if (count := count + 1) % PAGES_TO_FREEZE == 0:
                _freeze()
        # After the objects, to share their digests; in the order in which they are to be forgotten.
        await self._shelf.threads.run(_sort_by_age, tags)
        for some in batched(tags, PAGE):
            for tag in some:
                self._shelf.load_tag(*tag)
            await asyncio.sleep(0)
        self._shelf.lists.load(lists)
        if self._index.usable:
            self._shelf.index_read = True
            self._shelf.gone.clear()
            self._shelf.gone_tags.clear()
        self._shelf.loaded = True
        self._catalog.sort()

    async def _link(self) -> None:
        """What an index lists may have been found in other repositories."""
        for page in batched(self._catalog.indexes(), LISTS):
            lists = await self._shelf.threads.run(
                lambda page=page: [describe(self._shelf.blobs.read(digest)) for digest in page]
            )
            for digest, said in zip(page, lists, strict=True):
                self._catalog.link(digest, said.needs, frozenset(said.blobs))
            await asyncio.sleep(0)

    async def _read(self) -> None:
        while True:
            try:
                if not self._shelf.loaded:
                    await self.load()
                await self.reconcile()
            except Exception:
                log.exception("reading %s failed; what is there is served all the same", self._shelf.root)
            await asyncio.sleep(RECONCILE_EVERY)

    # Index and files

    async def reconcile(self) -> dict[str, int]:
        """Drops rows without their file, takes up files without a row, sweeps partial files and old tags; counts."""
        async with self._reconciling:
            before = len(self._catalog.objects)
            present = 0
            unknown = []
            async for digest, size, stamp in self._scan():
                stored = self._catalog.objects.get(digest)
                if stored is not None and (stored.size, stored.stamp) == (size, stamp):
                    present += 1
                else:
                    unknown.append(digest)
            # Mostly all are there, and none has to be looked for.
            lost = await self._drop_missing() if present < len(self._catalog.objects) else 0
            adopted = 0
            for digest in unknown:
                adopted += digest not in self._catalog.objects and await self._shelf.recover(digest) is not None
            await self._link()
            swept = await self._shelf.partials.sweep(PARTIAL_AGE)
            tags = await self._drop_old_tags()
            if lost or adopted or swept or tags:
                log.info(
                    "looked through %s: %d objects, %d gone, %d taken up, %d partial files and %d tags dropped",
                    self._shelf.root, before, lost, adopted, swept, tags,
                )  # fmt: skip
            return {"lost": lost, "adopted": adopted, "partials": swept, "tags": tags}

    async def _scan(self) -> AsyncIterator[tuple[str, int, int]]:
        pages = batched(self._shelf.blobs.scan(), PAGE)
        while (page := await self._shelf.threads.run(next, pages, None)) is not None:
            for found in page:
                yield found

    async def _drop_missing(self) -> int:
        count = 0
        for page in batched(list(self._catalog.objects), PAGE):
            stats = await self._shelf.threads.run(lambda page=page: [self._shelf.blobs.stat(digest) for digest in page])
            for digest, found in zip(page, stats, strict=True):
                stored = self._catalog.objects.get(digest)
                if stored is not None and found != (stored.size, stored.stamp):
                    self._shelf.lost(stored)
                    count += 1
        return count

    def drop_tags(self, limit: int, size: int) -> None:
        """Forgets tags until there are no more than `limit`, of `size` bytes, those that nobody asked for longest first."""
        catalog = self._catalog
        while len(catalog.tags) > limit or catalog.tag_bytes > size:
            catalog.delete_tag(next(iter(catalog.tags)))

    async def _drop_old_tags(self) -> int:
        count = 0
        limit = TAG_AGE_HELD if self._shelf.settings.has_min_age else TAG_AGE
        for names in batched(list(self._catalog.tags), PAGE):
            for name in names:
                if self._is_old(self._catalog.tags.get(name, ()), limit):
                    count += self._catalog.delete_tag(name)
            await asyncio.sleep(0)
        return count

    def _is_old(self, variants: Sequence[TagVariant], limit: float) -> bool:
        now = self._shelf.clock()
        return not any(v.digest in self._catalog.objects or abs(now - v.checked) < limit for v in variants)

    # Writing the index

    async def _write(self) -> None:
        clock = self._shelf.monotonic
        synced = saved = clock()
        while True:
            await asyncio.sleep(FLUSH_EVERY)
            try:
                if clock() - synced >= SYNC_EVERY:
                    await self._sync()
                    synced = clock()
                if clock() - saved >= SAVE_USED_EVERY:
                    self._save_used()
                    saved = clock()
                await self._flush()
            except Exception:
                log.exception("writing the index failed")

    async def save(self) -> None:
        """Writes all that is to be written."""
        await self._sync()
        self._save_used()
        await self._flush()

    def _save_used(self) -> None:
        """Access times and hits to the index, in a batch."""
        self._catalog.changed_objects |= self._catalog.used_objects
        self._catalog.used_objects.clear()

    async def _sync(self) -> None:
        """What was stored to the disk itself; what does not get there does not count as stored."""
        objects = self._catalog.objects
        batch = {digest: objects[digest].stamp for digest in self._shelf.unsynced if digest in objects}
        if not batch:
            return
        failed = await self._shelf.threads.run(self._shelf.blobs.sync, batch)
        # What was stored anew meanwhile is another file, and waits for the next time.
        synced = {digest for digest, stamp in batch.items() if digest in objects and objects[digest].stamp == stamp}
        self._shelf.unsynced -= synced
        self._catalog.changed_objects |= synced
        if failed:
            log.error("%d objects did not get to the disk; dropped", len(failed))
            await self._shelf.remove(failed, "io")

    async def _flush(self) -> None:
        if self._shelf.health.ousted or (not self._index.usable and not await self._reopen()):
            return
        catalog = self._catalog
        while True:
            objects = _take(catalog.changed_objects, PAGE, self._shelf.unsynced)
            tags = _take(catalog.changed_tags, PAGE)
            lists = _take(self._shelf.lists.changed, LISTS)
            sights = self._shelf.sights.take_changed(PAGE)
            if not objects and not tags and not lists and not sights:
                return
            rows = [(f"o:{digest}", self._object_row(digest)) for digest in objects]
            rows += [(f"t:{name}", self._tag_row(name)) for name in tags]
            rows += [(f"l:{name}", self._shelf.lists.row(name)) for name in lists]
            rows += [(key, self._shelf.sights.row(key)) for key in sights]
            if not await self._shelf.threads.run(self._write_rows, rows):
                catalog.changed_objects.update(objects)
                catalog.changed_tags.update(tags)
                self._shelf.lists.changed.update(lists)
                self._shelf.sights.put_back(sights)
                return

    def _write_rows(self, rows: Sequence[tuple[str, Row | None]]) -> bool:
        """Blocks."""
        for key, row in rows:
            if row is not None and key.startswith("o:") and is_index(row["type"]):
                row["needs"] = children(self._shelf.blobs.read(key[2:]))
        return self._index.write(rows)

    def _object_row(self, digest: str) -> Row | None:
        stored = self._catalog.objects.get(digest)
        return None if stored is None else write_stored(stored)

    def _tag_row(self, name: str) -> Row | None:
        variants = self._catalog.tags.get(name)
        return None if variants is None else write_variants(variants)

    async def _reopen(self) -> bool:
        """Opens an index that could not be opened or written, from time to time."""
        if self._shelf.monotonic() < self._reopen_at:
            return False
        self._reopen_at = self._shelf.monotonic() + REOPEN_EVERY
        if not await self._shelf.threads.run(self._index.open):
            return False
        self._look_through = True
        if not self._shelf.index_read:
            await self.load()
        self._catalog.changed_objects.update(self._catalog.objects)
        self._catalog.changed_tags.update(self._catalog.tags)
        self._shelf.sights.all_changed()
        self._shelf.lists.touch_all()
        return True

    async def _look(self) -> None:
        """Whether the directory is still there, and still this process' own: it may be wiped at any time. And writable."""
        probed = self._shelf.monotonic()
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self._keep_lock()
                if self._shelf.health.is_probe_due or (
                    self._shelf.health.takes_writes and self._shelf.monotonic() - probed >= PROBE_EVERY
                ):
                    await self._shelf.health.probe()
                    probed = self._shelf.monotonic()
                if self._index.usable and not await self._shelf.threads.run(self._index.is_there):
                    log.warning("the index below %s is gone; starting a new one", self._shelf.root)
                    await self._shelf.threads.run(self._index.close)
                    self._look_through = True
                if self._look_through:
                    self._look_through = False
                    await self.reconcile()
            except OSError as error:
                log.debug("looking at %s failed: %s", self._shelf.root, error)
            except Exception:
                log.exception("looking at %s failed", self._shelf.root)

    async def _keep_lock(self) -> None:
        shelf = self._shelf
        if shelf.lock.is_held():
            return
        try:
            await shelf.threads.run(shelf.blobs.prepare)
            await shelf.threads.run(shelf.lock.acquire)
        except DirectoryInUse as error:
            shelf.health.lose_directory(error)
            return
        shelf.health.regain_directory()

    # Checking what is stored

    async def check(self, stored: Stored, rate: int = 0) -> bool:
        """Hashes an object's file, `rate` bytes a second at most, and drops what does not match; whether it did match."""
        shelf, digest = self._shelf, stored.digest
        before = (stored.size, stored.stamp)
        try:
            if rate:
                found = await self._hash_slowly(digest, rate)
            else:
                found = await shelf.threads.run(hash_file, shelf.blobs.path(digest), digest.partition(":")[0])
        except OSError:
            return True  # Not now.
        if found == digest:
            return True
        there = self._catalog.objects.get(digest)
        now = await shelf.threads.run(shelf.blobs.stat, digest)
        if there is not stored:
            return True  # It went meanwhile, or was stored anew.
        if now is None:
            shelf.lost(stored)
            return True  # Wiped: nothing wrong with it.
        log.error("%s does not hold what its name says; dropped", shelf.blobs.path(digest))
        self.dropped += 1
        shelf.forget(stored)
        if now == before or found is None:
            await shelf.unlink(digest, now)
        return False

    async def _hash_slowly(self, digest: str, rate: int) -> str | None:
        algorithm = digest.partition(":")[0]
        running = hashlib.new(algorithm)
        try:
            fd = os.open(self._shelf.blobs.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in SHORTAGE:
                raise
            return None
        try:
            at = 0
            while piece := await self._shelf.threads.run(os.pread, fd, SCRUB_PIECE, at):
                await self._shelf.threads.run(running.update, piece)
                at += len(piece)
                self.scrubbed += len(piece)
                await asyncio.sleep(len(piece) / rate)
        except OSError:
            return None
        finally:
            os.close(fd)
        return f"{algorithm}:{running.hexdigest()}"

    async def _scrub(self) -> None:
        while True:
            await asyncio.sleep(SCRUB_IDLE)
            try:
                await self._scrub_pass()
            except Exception:
                log.exception("checking what is stored failed")

    async def _scrub_pass(self) -> None:
        """Checks everything once each `scrub_every`; where it stands outlives the process."""
        row = await self._shelf.threads.run(self._index.get, _SCRUB_KEY) or {}
        now = self._shelf.clock()
        began, cursor = row.get("began"), row.get("cursor")
        if not isinstance(began, int | float) or began > now:
            began, cursor = now, None
            await self._save_scrub(began, "")
        settings = self._shelf.settings
        if not settings.scrub_every or not settings.scrub_rate or not self._shelf.loaded:
            return
        if not cursor:
            if now - began < settings.scrub_every:
                return
            began, cursor = now, "-"
        saved = self._shelf.monotonic()
        for digest in sorted(digest for digest in self._catalog.objects if digest > cursor):
            stored = self._catalog.objects.get(digest)
            settings = self._shelf.settings
            if stored is None or self._shelf.clock() - stored.created < settings.scrub_every:
                continue
            if not settings.scrub_every or not settings.scrub_rate:
                return
            await self.check(stored, settings.scrub_rate)
            if self._shelf.monotonic() - saved >= SAVE_USED_EVERY:
                await self._save_scrub(began, digest)
                saved = self._shelf.monotonic()
        await self._save_scrub(began, "")

    async def _save_scrub(self, began: float, cursor: str) -> None:
        await self._shelf.threads.run(self._index.write, [(_SCRUB_KEY, {"began": began, "cursor": cursor})])


def _freeze() -> None:
    """What was loaded stays: the garbage collector need not stop everything to look at it again and again."""
    gc.collect(1)
    gc.freeze()


def _sort_by_age(tags: list[tuple[str, tuple[TagVariant, ...]]]) -> None:
    """Blocks."""
    tags.sort(key=lambda tag: max((variant.checked for variant in tag[1]), default=0.0))


@dataclass(frozen=True, slots=True)
class _Renewed:
    """An object whose row is to be written anew."""

    stored: Stored


type _Thing = Stored | _Renewed | tuple[str, tuple[TagVariant, ...]] | tuple[str, Listed] | tuple[str, Row]


def _read_pages(pages: Iterator[list[tuple[str, Row]]], read: Callable[[str], bytes | None]) -> Iterator[list[_Thing]]:
    """Rows as what they mean. Blocks."""
    for page in pages:
        found: list[_Thing] = []
        for key, row in page:
            if key.startswith("o:"):
                if (stored := read_stored(key[2:], row)) is not None:
                    found.append(stored if has_own_type(row) else _Renewed(_looked_into(stored, read)))
            elif key.startswith("t:"):
                found.append((key[2:], tuple(read_variants(row))))
            elif key.startswith("l:") and (listed := read_listed(row)) is not None:
                found.append((key[2:], listed))
            elif key.startswith((SEEN, HELD)):
                found.append((key, row))
        yield found


def _looked_into(stored: Stored, read: Callable[[str], bytes | None]) -> Stored:
    """An object of an older row, where the type is what somebody said. If it is no manifest, it is kept as a blob."""
    description = describe(read(stored.digest) if stored.size <= MANIFEST_MAX else None)
    return replace(stored, media_type=description.media_type, needs=description.needs if description.media_type else ())


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
