"""Keeps index and files consistent; the only one that writes.

Order of a commit: file verified → rename → bytes on the disk itself → row. A file without a row is hashed before it counts,
so whatever a crash leaves, nothing wrong is served and nothing is lost for good. Of a removal: catalogue → file; a row whose
file is not there, or not the one that it was written for, is none.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from cacheyd.observe.wording import shown_size
from cacheyd.settings.settings import Settings
from cacheyd.store.blobs import BlobDir, Partial
from cacheyd.store.lock import DirectoryInUse
from cacheyd.store.room import Room
from cacheyd.store.rows import MAX_VARIANTS, Description, Stored, TagVariant, add_repository, describe
from cacheyd.store.shelf import MANIFEST_MAX, MAX_REPOSITORIES, SMALL, Shelf
from cacheyd.store.upkeep import Upkeep

log = logging.getLogger(__name__)

LARGE_CHUNK = 512 << 10
# More tags than this are not remembered, nor what takes more memory (bytes): anybody can ask for a registry that has any
# number of them, with Accept headers of his own.
MAX_TAGS, MAX_TAG_BYTES = 200_000, 96 << 20
# How often the lock of another process is tried again (seconds).
LOCK_EVERY = 0.2


class Store(Shelf):
    """Objects by digest, tags by name. All methods but those marked "blocks" are for the event loop."""

    def __init__(
        self,
        root: Path,
        settings: Settings | None = None,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        on_evicted: Callable[[str, int], None] = lambda reason, count: None,
    ) -> None:
        super().__init__(root, settings or Settings(), clock=clock, monotonic=monotonic, on_evicted=on_evicted)
        self.room = Room(self)
        self.upkeep = Upkeep(self)
        self._tasks: list[asyncio.Task[None]] = []
        # What the start put right, for `collect` to tell.
        self._repaired: Counter[str] = Counter()

    # Lifecycle

    async def start(
        self,
        *,
        background: bool = True,
        wait: float = 0.0,
        give_up: Callable[[], bool] = lambda: False,
        on_busy: Callable[[], None] = lambda: None,
    ) -> None:
        """Takes the directory and opens the index; what is there is read in the background, or before this returns.

        `on_busy` is called if another process has the directory and is waited for.

        Raises DirectoryInUse if another process still has the directory after `wait` seconds (or `give_up`), and nothing
        for a bad disk.
        """
        try:
            await self.in_thread(self.blobs.prepare)
            await self._take_lock(wait, give_up, on_busy)
        except OSError as error:
            self.report_write_error(error)
        else:
            await self.probe()
        await self.in_thread(self.index.open)
        self.catalog.pin(self.settings.pin)
        if background:
            self._tasks = [asyncio.create_task(work) for work in (*self.upkeep.work(), self.room.keep_bounds())]
        else:
            await self.upkeep.load()
            self._repaired.update(await self.upkeep.reconcile())

    async def _take_lock(self, wait: float, give_up: Callable[[], bool], on_busy: Callable[[], None]) -> None:
        deadline, said = self.monotonic() + wait, False
        while True:
            try:
                await self.in_thread(self.lock.acquire)
                return
            except DirectoryInUse as error:
                if self.monotonic() >= deadline or give_up():
                    raise
                if not said:
                    log.info("%s; waiting for it to end", error)
                    on_busy()
                said = True
                await asyncio.sleep(LOCK_EVERY)

    async def stop(self) -> None:
        """Writes what is to be written and ends the background work."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.upkeep.save()
        await self.in_thread(self.index.close)
        self.threads.shutdown(wait=True)
        self.lock.release()

    @property
    def trouble(self) -> str:
        """Why nothing is kept now, for people; empty if all is well."""
        if self.ousted:
            return "another cacheyd has taken the directory"
        if self.refusal:
            return f"the disk refuses writes ({self.refusal})"
        return "there is no room, and nothing more may go" if self.room.full else ""

    # Writing

    def credit(self, registry: str) -> int:
        """What a registry's unverified bytes may displace beyond a tenth of the store: as much as it has delivered of it."""
        return self.room.credit(self.catalog.delivered(registry))

    def can_take(self, size: int, credit: int = 0) -> bool:
        """Whether an object of `size` bytes that is only promised so far could be kept. Removes nothing.

        For the head of a response: with `make_room(more, unverified=True)` for each piece as it comes, all of it will find
        room, unless others take it first.
        """
        return self.room.can_take(size, credit)

    async def make_room(self, size: int, *, unverified: bool = False, credit: int = 0) -> bool:
        """Removes what is needed for `size` bytes more; whether they fit then.

        `unverified` bytes, those on their way in, displace no more than a tenth of the store, and the `credit` of their
        registry when they began to come; verified ones whatever was not used for longest.
        """
        return await self.room.make(size, unverified=unverified, credit=credit)

    async def open_partial(self, digest: str, origin: str = "") -> Partial:
        """The object's partial file with what came of it from this registry already; raises OSError."""
        # First, so that nobody makes room by removing it.
        self.idle.take(str(self.blobs.partial_path(digest, origin)))
        partial = await self.in_thread(self.blobs.open_partial, digest, origin)
        self.open_partials.add(partial)
        return partial

    def release(self, partial: Partial, *, close: bool = True, keep: bool = True) -> None:
        """No fetch has the partial any more. `close`: nobody reads it either; `keep`: what came stays for the next fetch."""
        if partial in self.open_partials:
            self.open_partials.discard(partial)
            if not partial.size or not keep:
                self._discard(partial)
            elif partial.is_linked():
                self.idle[str(partial.path)] = partial.size
        if close:
            partial.close()

    async def discard(self, partial: Partial) -> None:
        """Removes a partial that is of no use."""
        self.open_partials.discard(partial)
        await self.in_thread(self._discard, partial)
        partial.close()

    def _discard(self, partial: Partial) -> None:
        try:
            self.blobs.discard(partial)
        except OSError as error:
            # Who fetched it must be able to say so to those who wait for it.
            self.report_write_error(error)

    async def append(self, partial: Partial, chunks: Sequence[bytes | bytearray | memoryview]) -> int:
        """Hashes and writes side by side in threads; the new size. Raises OSError.

        Small chunks are joined first: each call then gives the GIL up once, where one per chunk would fight for it with
        the event loop. Unless it is cancelled, both threads are done when this ends.
        """
        length = sum(map(len, chunks))
        if length < LARGE_CHUNK * len(chunks):
            chunks = [b"".join(chunks)]
        written = self.in_thread(partial.write, chunks)
        if length < SMALL:
            await written
            partial.hash(chunks)
        else:
            await _both(written, self.in_thread(partial.hash, chunks))
        return partial.advance(length)

    async def commit(
        self, partial: Partial, media_type: str = "", *, within: str, manifest: bytes | Description | None = None
    ) -> Stored | None:
        """Makes a verified partial an object; None if the directory was wiped meanwhile. Raises OSError.

        `media_type` and `manifest` (its bytes, or what they say) are for manifests; the type is to come from the bytes.
        """
        digest = partial.digest
        before = self.catalog.objects.get(digest)
        sync = self.settings.durability == "fsync"
        stamp, known, said = await self.in_thread(self._commit_file, partial, before, sync, manifest)
        self.open_partials.discard(partial)
        if stamp is None:
            return None
        there = self.catalog.objects.get(digest)
        if known and there is not None and there is before and (there.media_type or not media_type):
            self.catalog.add_repository(there, within, MAX_REPOSITORIES)
            self.touch(digest, 0)
            return there
        if known and there is None:
            return None  # It was removed meanwhile.
        now = self.clock()
        repositories = () if there is None else there.within
        media_type = media_type or ("" if there is None else there.media_type)
        repositories = add_repository(repositories, within, MAX_REPOSITORIES)
        stored = Stored(digest, partial.size, media_type, now, repositories, now, stamp=stamp)
        self.add(stored, said, synced=sync)
        self.report_write()
        return stored

    def _commit_file(
        self, partial: Partial, before: Stored | None, sync: bool, manifest: bytes | Description | None
    ) -> tuple[int | None, bool, Description]:
        """The time of change of the object's file, whether it was there already, what it says. Blocks; raises OSError."""
        said = manifest if isinstance(manifest, Description) else describe(manifest)
        if before is not None and self.blobs.stat(partial.digest) == (before.size, before.stamp):
            self.blobs.discard(partial)
            return before.stamp, True, said
        return self.blobs.commit(partial, sync=sync), False, said

    async def put(
        self, digest: str, data: bytes | bytearray, media_type: str, *, within: str, description: Description | None = None
    ) -> Stored | None:
        """Stores a verified manifest whole; None if it could not be kept. `description`: what its bytes say, if known."""
        try:
            partial = await self.open_partial(digest)
            try:
                if partial.size:
                    await self.discard(partial)
                    partial = await self.open_partial(digest)
                await self.append(partial, [memoryview(data)])
                if not partial.verified():
                    await self.discard(partial)
                    return None
                return await self.commit(partial, media_type, within=within, manifest=description or bytes(data))
            finally:
                self.release(partial)
        except OSError as error:
            self.report_write_error(error)
            return None

    async def adopt_file(self, path: Path, digest: str, media_type: str, within: str) -> Stored | None:
        """Makes a file below `partial/` an object, if it has the digest and there is room; None, without the file, if not."""
        if path.parent != self.root / "partial":
            return None
        self.idle.take(str(path))
        try:
            partial = await self.in_thread(self.blobs.open_import, path, digest)
            self.open_partials.add(partial)
            try:
                if not partial.verified() or not await self.make_room(0):
                    return None
                description = await self.in_thread(self._look_into, partial) if media_type else None
                # Whatever the importer says: it is for all who ask, and only the bytes are verified.
                media_type = description.media_type if description is not None else ""
                return await self.commit(partial, media_type, within=within, manifest=description)
            finally:
                self.release(partial, keep=False)
        except OSError as error:
            self.report_write_error(error)
            return None

    @staticmethod
    def _look_into(partial: Partial) -> Description | None:
        """Blocks."""
        return describe(partial.read(0, partial.size)) if partial.size <= MANIFEST_MAX else None

    def add_repository(self, stored: Stored, within: str) -> None:
        """Records that upstream serves an object in another repository, too."""
        self.catalog.add_repository(stored, within, MAX_REPOSITORIES)

    # Tags

    def tag_variants(self, registry: str, repository: str, tag: str) -> Sequence[TagVariant]:
        """What is known of a tag, newest first."""
        name = f"{registry}/{repository}:{tag}"
        return self.catalog.tags.get(name) or self.find_tag(name)

    def set_tag(self, registry: str, repository: str, tag: str, variant: TagVariant) -> None:
        """Records what upstream said of a tag to a client that asked with `variant.asked`."""
        others = [v for v in self.tag_variants(registry, repository, tag) if v.asked != variant.asked]
        self.catalog.set_tag(f"{registry}/{repository}:{tag}", (variant, *others)[:MAX_VARIANTS])
        self.upkeep.drop_tags(MAX_TAGS, MAX_TAG_BYTES)

    def delete_tag(self, registry: str, repository: str, tag: str) -> None:
        """Forgets a tag, as upstream says that it is gone."""
        self.remove_tag(f"{registry}/{repository}:{tag}")

    def remove_tag(self, name: str) -> bool:
        """Forgets a tag (`registry/repository:tag`); whether it was known."""
        known = bool(self.catalog.tags.get(name) or self.find_tag(name))
        if not self.index_read:
            self.gone_tags.add(name)
        self.catalog.delete_tag(name)
        self.sights.let_go(name)
        return known

    # Looking after it

    async def collect(self) -> dict[str, int]:
        """Brings index and files together now, sweeps partial files and old tags, keeps the bounds, compacts the index."""
        before, bytes_before = len(self.catalog.objects), self.size + self.partial_bytes
        found = {name: count + self._repaired[name] for name, count in (await self.upkeep.reconcile()).items()}
        self._repaired.clear()
        evicted = await self.room.keep()
        await self.upkeep.save()
        await self.in_thread(self.index.compact)
        freed = max(0, bytes_before - self.size - self.partial_bytes)
        return found | {"objects": len(self.catalog.objects), "gone": max(0, before - len(self.catalog.objects)),
                        "evicted": evicted, "freed": freed}  # fmt: skip

    async def verify(self, progress: Callable[[int, int, int], None] = lambda done, total, size: None) -> dict[str, Any]:
        """Hashes everything anew and drops what does not match; `progress` gets objects done, in all, and bytes read."""
        digests = sorted(self.catalog.objects)
        read, dropped = 0, []
        for done, digest in enumerate(digests, 1):
            stored = self.catalog.objects.get(digest)
            if stored is not None:
                if not await self.upkeep.check(stored):
                    dropped.append(digest)
                read += stored.size
            progress(done, len(digests), read)
        return {"checked": len(digests), "bytes": read, "dropped": dropped}


async def _both(first: Coroutine[Any, Any, None], second: Coroutine[Any, Any, None]) -> None:
    for result in await asyncio.gather(first, second, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def free_space(path: Path) -> str:
    """The free space below `path` for people, for the start line."""
    free = BlobDir(path).free()
    return "unknown" if free is None else shown_size(free)
