"""Keeps index and files consistent; the only one that writes.

Order of a commit: file flushed and verified → rename → row. Of a removal: row → unlink. A crash leaves a partial or an
orphan file, never a row without its file that would be served, never a file under a digest that is not its own.
"""

import asyncio
import errno
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from cacheyd import parse, policy
from cacheyd.config import Settings
from cacheyd.reference import Kind
from cacheyd.store.blobs import BlobDir, Mapped, Partial, hash_file
from cacheyd.store.index import Index
from cacheyd.store.rows import (
    Stored,
    TagVariant,
    children,
    guess_media_type,
    read_stored,
    read_variants,
    write_stored,
    write_variants,
)

log = logging.getLogger(__name__)

SMALL = 64 << 10
LARGE_CHUNK = 512 << 10
SMALL_TOTAL = 32 << 20
MAX_REPOSITORIES = 64
PARTIAL_AGE = 24 * 3600.0
FLUSH_EVERY, EVICT_EVERY, SAVE_USED_EVERY = 0.5, 2.0, 60.0
MANIFEST_MAX = 8 << 20
# After the disk refused a write, requests bypass the store for so long before it is tried again (seconds).
BROKEN_PAUSE = 10.0
# Room that is never used up by a fetch (bytes): the index and the log want some, too.
RESERVE = 16 << 20


class Store:
    """Objects by digest, tags by name. All methods but those marked "blocks" are for the event loop."""

    def __init__(
        self,
        root: Path,
        settings: Settings | None = None,
        *,
        clock: Callable[[], float] = time.time,
        on_evicted: Callable[[str, int], None] = lambda reason, count: None,
    ) -> None:
        self.root = root
        self.settings = settings or Settings()
        # What is on its way in: set by who fetches.
        self.busy: Callable[[str], bool] = lambda digest: False
        self.incoming: Callable[[], int] = lambda: 0
        self._on_evicted = on_evicted
        self._used: dict[str, float] = {}
        self._evicting = asyncio.Lock()
        self.blobs = BlobDir(root)
        self._index = Index(root / "index")
        self._clock = clock
        self._small: OrderedDict[str, bytes] = OrderedDict()
        self._small_bytes = 0
        self._broken_until = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self.threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="cacheyd-disk")
        self.objects: dict[Kind, int] = {Kind.MANIFEST: 0, Kind.BLOB: 0}
        self.bytes = 0
        # While the start still counts what is there: what was stored meanwhile, and what went.
        self._counting = True
        self._fresh: set[str] = set()
        self._gone: set[str] = set()
        self.write_errors = 0

    # Lifecycle

    async def start(self) -> None:
        """Makes the directory and opens the index; reconciles in the background. Never raises for a bad disk."""
        try:
            await self._in_thread(self._prepare)
        except OSError as error:
            self.report_write_error(error)
        background = (self._reconcile(), self._flush_forever(), self._evict_forever())
        self._tasks = [asyncio.create_task(work) for work in background]

    def _prepare(self) -> None:
        self.blobs.prepare()
        self._index.open()

    async def stop(self) -> None:
        """Flushes the index and ends the background work."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._save_used()
        await self._in_thread(self._index.close)
        self.threads.shutdown(wait=True)

    async def _in_thread[T](self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *args)

    async def _flush_forever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_EVERY)
            await self._in_thread(self._index.flush)

    async def _reconcile(self) -> None:
        try:
            await self._in_thread(self._index.load)
            counted = await self._in_thread(self._scan)
            for stored in counted.values():
                if stored.digest not in self._gone:
                    self._count(stored, 1)
            self._counting = False
            await self._in_thread(self._drop_rows_without_file, set(counted))
            await self._in_thread(self.blobs.sweep_partials, PARTIAL_AGE)
        except Exception:
            log.exception("reconciling %s failed; what is there is served all the same", self.root)

    def _scan(self) -> dict[str, Stored]:
        """What was there before this process, by digest; not what is stored meanwhile. Blocks.

        Adopts files without a row (an index that was lost), after hashing them.
        """
        found = {}
        for digest, size in self.blobs.scan():
            stored = self._row(digest)
            if stored is None or stored.size != size:
                stored = self._adopt(digest, size)
            if stored is not None and digest not in self._fresh:
                found[digest] = stored
        return found

    def _drop_rows_without_file(self, present: set[str]) -> None:
        """Blocks."""
        for key, _ in self._index.rows("o:"):
            digest = key[2:]
            if digest not in present and self.blobs.size(digest) is None:
                self._index.delete(key)

    def _count(self, stored: Stored, sign: int) -> None:
        self.objects[stored.kind] += sign
        self.bytes += sign * stored.size

    def _adopt(self, digest: str, size: int) -> Stored | None:
        if hash_file(self.blobs.path(digest), digest.partition(":")[0]) != digest:
            log.warning("%s does not hold what its name says; removed", self.blobs.path(digest))
            self._index.delete(f"o:{digest}")
            self.blobs.remove(digest)
            return None
        media_type = guess_media_type(self.blobs.read(digest)) if size <= 4 << 20 else ""
        stored = Stored(digest, size, media_type, self._clock())
        self._put_row(stored)
        return stored

    # Eviction

    async def _evict_forever(self) -> None:
        saved = self._clock()
        while True:
            await asyncio.sleep(EVICT_EVERY)
            if self._clock() - saved >= SAVE_USED_EVERY:
                saved = self._clock()
                self._save_used()
            if over := self._over():
                try:
                    await self._evict("size", over)
                except Exception:
                    log.exception("eviction failed")

    def _over(self) -> int:
        total = self.blobs.total()
        max_size, min_free = self.settings.max_size.of(total), self.settings.min_free.of(total)
        return policy.to_free(self.bytes, max_size, self.blobs.free(), min_free)

    def _save_used(self) -> None:
        """Access times to the index, in a batch."""
        used, self._used = self._used, {}
        for digest, at in used.items():
            if (stored := self._row(digest)) is not None:
                self._put_row(replace(stored, used=at))

    async def _evict(self, reason: str, size: int) -> None:
        """Removes objects of `size` bytes in all, if there are so many that may go."""
        async with self._evicting:
            rows, pinned = await self._in_thread(self._survey)
            count = freed = 0
            for stored in policy.evict_order(rows, self._used, pinned):
                if freed >= size:
                    break
                if not self.busy(stored.digest):
                    self.forget(stored)
                    await self._in_thread(self.blobs.remove, stored.digest)
                    count, freed = count + 1, freed + stored.size
            if count:
                self._on_evicted(reason, count)
                log.info("evicted %d objects, %d bytes", count, freed)

    def _survey(self) -> tuple[list[Stored], set[str]]:
        """Each object, and the digests of those that are pinned. Blocks."""
        objects = [read_stored(key[2:], row) for key, row in self._index.rows("o:")]
        pinned: set[str] = set()
        for key, row in self._index.rows("t:") if self.settings.pin else []:
            if parse.matches(key[2:], self.settings.pin):
                for variant in read_variants(row):
                    self._add_tree(variant.digest, pinned)
        return [stored for stored in objects if stored is not None], pinned

    def _add_tree(self, digest: str, found: set[str]) -> None:
        """A manifest and all that it needs."""
        if digest in found:
            return
        found.add(digest)
        size = self.blobs.size(digest)
        if size is not None and size <= MANIFEST_MAX:
            for child in children(self.blobs.read(digest)):
                self._add_tree(child, found)

    def forget(self, stored: Stored) -> None:
        """Takes an object's row away; its file is to follow."""
        self._index.delete(f"o:{stored.digest}")
        self._forget_small(stored.digest)
        self._used.pop(stored.digest, None)
        if self._counting and stored.digest not in self._fresh:
            self._gone.add(stored.digest)
        else:
            self._count(stored, -1)
        self._fresh.discard(stored.digest)

    def touch(self, digest: str) -> None:
        """The object was used just now."""
        self._used[digest] = self._clock()

    # Objects

    def _row(self, digest: str) -> Stored | None:
        row = self._index.get(f"o:{digest}")
        return None if row is None else read_stored(digest, row)

    def _put_row(self, stored: Stored) -> None:
        self._index.put(f"o:{stored.digest}", write_stored(stored))

    def find(self, digest: str) -> Stored | None:
        """The object if its row and its file are there. One stat; a file that was wiped takes its row along."""
        stored = self._row(digest)
        if stored is None:
            return None
        if (size := self.blobs.size(digest)) != stored.size:
            self.forget(stored)
            if size is not None:
                log.warning("%s has %d bytes and not %d; removed", self.blobs.path(digest), size, stored.size)
                self.blobs.remove(digest)
            return None
        self._used[digest] = self._clock()
        return stored

    def body(self, stored: Stored) -> bytes | Mapped | None:
        """The object's bytes: small ones from memory, others as the shared mapping; None if the file went just now."""
        if stored.size > SMALL:
            mapped = self.blobs.map(stored.digest)
            return mapped if mapped is not None and mapped.size == stored.size else None
        data = self._small.get(stored.digest)
        if data is None:
            data = self.blobs.read(stored.digest)
            if data is None or len(data) != stored.size:
                return None
            self._remember_small(stored.digest, data)
        return data

    def _remember_small(self, digest: str, data: bytes) -> None:
        self._small[digest] = data
        self._small_bytes += len(data)
        while self._small_bytes > SMALL_TOTAL:
            _, old = self._small.popitem(last=False)
            self._small_bytes -= len(old)

    def _forget_small(self, digest: str) -> None:
        self._small_bytes -= len(self._small.pop(digest, b""))

    # Writing

    @property
    def writable(self) -> bool:
        """False for a while after the disk refused a write."""
        return self._clock() >= self._broken_until

    def has_room(self, size: int) -> bool:
        """Whether an object of `size` bytes fits beside those being fetched."""
        free = self.blobs.free()
        max_size = self.settings.max_size.of(self.blobs.total())
        return (not max_size or size <= max_size) and (free is None or free - self.incoming() - RESERVE >= size)

    async def make_room(self, size: int) -> bool:
        """Evicts what is needed for an object of `size` bytes; whether it fits then."""
        if not self.has_room(size):
            await self._evict("room", size + RESERVE + self.incoming() - (self.blobs.free() or 0))
        return self.has_room(size)

    def report_write_error(self, error: OSError) -> None:
        """Remembers that the disk refuses writes: requests go on without being kept. One log line per pause."""
        self.write_errors += 1
        if self.writable:
            name = errno.errorcode.get(error.errno or 0, "?")
            log.error("%s cannot be written (%s: %s); serving without keeping", self.root, name, error.strerror)
        self._broken_until = self._clock() + BROKEN_PAUSE

    async def open_partial(self, digest: str, origin: str = "") -> Partial:
        """The object's partial file with what came of it from this registry already; raises OSError."""
        return await self._in_thread(self.blobs.open_partial, digest, origin)

    async def append(self, partial: Partial, chunks: Sequence[bytes | memoryview]) -> int:
        """Hashes and writes side by side in threads; the new size. Raises OSError.

        Small chunks are joined first: each call then gives the GIL up once, where one per chunk would fight for it with
        the event loop. Unless it is cancelled, both threads are done when this ends.
        """
        length = sum(map(len, chunks))
        if length < LARGE_CHUNK * len(chunks):
            chunks = [b"".join(chunks)]
        written = self._in_thread(partial.write, chunks)
        if length < SMALL:
            await written
            partial.hash(chunks)
        else:
            await _both(written, self._in_thread(partial.hash, chunks))
        return partial.advance(length)

    async def commit(self, partial: Partial, media_type: str = "", *, within: str) -> Stored | None:
        """Makes a verified partial an object; None if the directory was wiped meanwhile. Raises OSError."""
        before = self._row(partial.digest)
        repositories = before.within if before is not None else ()
        stored = Stored(partial.digest, partial.size, media_type, self._clock(), _add(repositories, within))

        def sync_and_rename() -> tuple[bool, bool]:
            partial.sync()
            known = self.blobs.size(partial.digest) is not None
            return self.blobs.commit(partial), known

        done, known = await self._in_thread(sync_and_rename)
        if not done:
            return None
        if not known:
            self._count(stored, 1)
            if self._counting:
                self._fresh.add(stored.digest)
                self._gone.discard(stored.digest)
        self._put_row(stored)
        return stored

    async def put(self, digest: str, data: bytes, media_type: str, *, within: str) -> Stored | None:
        """Stores a small verified object (a manifest) whole; None if it could not be kept."""
        try:
            partial = await self.open_partial(digest)
            try:
                if partial.size:
                    await self._in_thread(self.blobs.discard, partial)
                    partial.close()
                    partial = await self.open_partial(digest)
                await self.append(partial, [data])
                return await self.commit(partial, media_type, within=within) if partial.verified() else None
            finally:
                partial.close()
        except OSError as error:
            self.report_write_error(error)
            return None

    def add_repository(self, stored: Stored, within: str) -> None:
        """Records that upstream serves an object in another repository, too."""
        if within not in stored.within:
            self._put_row(replace(stored, within=_add(stored.within, within)))

    # Tags

    def tag_variants(self, registry: str, repository: str, tag: str) -> list[TagVariant]:
        """What is known of a tag, newest first."""
        row = self._index.get(f"t:{registry}/{repository}:{tag}")
        return [] if row is None else read_variants(row)

    def set_tag(self, registry: str, repository: str, tag: str, variant: TagVariant) -> None:
        """Records what upstream said of a tag to a client that asked with `variant.asked`."""
        others = [v for v in self.tag_variants(registry, repository, tag) if v.asked != variant.asked]
        self._index.put(f"t:{registry}/{repository}:{tag}", write_variants([variant, *others]))

    def delete_tag(self, registry: str, repository: str, tag: str) -> None:
        """Forgets a tag, as upstream says that it is gone."""
        self._index.delete(f"t:{registry}/{repository}:{tag}")


def _add(repositories: tuple[str, ...], one: str) -> tuple[str, ...]:
    return repositories if one in repositories else (*repositories, one)[-MAX_REPOSITORIES:]


async def _both(first: Coroutine[Any, Any, None], second: Coroutine[Any, Any, None]) -> None:
    for result in await asyncio.gather(first, second, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def free_space(path: Path) -> str:
    """The free space below `path` for people, for the start line."""
    try:
        status = os.statvfs(path)
    except OSError:
        return "unknown"
    return parse.shown_size(status.f_bavail * status.f_frsize)
