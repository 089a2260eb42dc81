"""Keeps index and files consistent; only the store writes to them.

Order of a commit: file verified → rename → bytes on the disk itself → row. The store hashes a file without a row before the
file counts: so after any crash nothing wrong is served, and nothing is lost for good. Order of a removal: catalogue → file.
A row does not count if its file is missing, or is not the file that the row was written for.
"""

import time
from collections.abc import Callable
from pathlib import Path

from cacheyd.observe.events import Events
from cacheyd.observe.wording import shown_size
from cacheyd.protocol.description import Description, describe
from cacheyd.protocol.reference import Kind
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.store.blobs import BlobDir
from cacheyd.store.bounds import Bounds
from cacheyd.store.catalog import Catalog
from cacheyd.store.eviction import Eviction
from cacheyd.store.fullness import Fullness
from cacheyd.store.health import Health
from cacheyd.store.index import Index
from cacheyd.store.journal import Journal
from cacheyd.store.lists import Lists
from cacheyd.store.loading import Loading
from cacheyd.store.objects import MANIFEST_MAX, Objects
from cacheyd.store.partial import Partial
from cacheyd.store.partial_dir import PartialDir
from cacheyd.store.partials import Partials
from cacheyd.store.reconcile import Reconciliation
from cacheyd.store.records import MAX_REPOSITORIES, Stored, add_repository
from cacheyd.store.scrub import Scrub
from cacheyd.store.sights import Sights
from cacheyd.store.space import Space
from cacheyd.store.tags import Tags
from cacheyd.store.threads import DiskThreads
from cacheyd.store.unread import Unread
from cacheyd.store.upkeep import Upkeep
from cacheyd.store.watch import Watch


class Store:
    """Stores objects by digest and tags by name. All methods but those marked "blocks" are for the event loop."""

    def __init__(
        self,
        root: Path,
        settings: Settings | Live | None = None,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        events: Events | None = None,
    ) -> None:
        self.live = live = Live.of(settings or Settings())
        self.clock = clock
        self.blobs = blobs = BlobDir(root)
        self.catalog = catalog = Catalog()
        self.lists = Lists()
        threads = DiskThreads()
        index = Index(root / "index", sync=live.settings.durability == "fsync")
        unread = Unread(index, catalog, clock)
        self.sights = Sights(unread.find_row)
        self.health = health = Health(blobs, threads, monotonic)
        self.partials = partials = Partials(PartialDir(blobs), threads, health)
        self.objects = objects = Objects(blobs, catalog, unread, health, threads, clock=clock, events=events or Events())
        self.tags = Tags(catalog, unread, self.sights)
        self.bounds = Bounds(
            Space(blobs, catalog, partials, unread, live), Eviction(catalog, objects, blobs, partials.reservations, unread),
            Fullness(blobs, catalog, monotonic), catalog, partials, unread, health, live=live, clock=clock,
        )  # fmt: skip
        loading = Loading(index, catalog, self.lists, self.sights, unread, blobs, threads)
        looking = Reconciliation(blobs, catalog, objects, partials, threads, live=live, clock=clock)
        self.upkeep = Upkeep(
            index, threads, loading=loading, reconciliation=looking, bounds=self.bounds,
            watch=Watch(blobs, index, health, looking, threads, monotonic=monotonic),
            journal=Journal(
                index, catalog, self.lists, self.sights, objects, loading, looking, health, blobs, threads, monotonic=monotonic
            ),
            scrub=Scrub(catalog, objects, unread, blobs, index, threads, live=live, clock=clock, monotonic=monotonic),
        )  # fmt: skip
        live.listen(self._settings_changed)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.live.settings

    def _settings_changed(self, settings: Settings) -> None:
        self.catalog.pin(settings.pin)

    @property
    def root(self) -> Path:
        """The cache directory, CACHE_DIR."""
        return self.blobs.root

    # Lifecycle

    async def start(
        self,
        *,
        background: bool = True,
        wait: float = 0.0,
        give_up: Callable[[], bool] = lambda: False,
        on_busy: Callable[[], None] = lambda: None,
    ) -> None:
        """Takes the directory, opens the index, and reads what is stored: in the background, or before this method returns.

        Calls `on_busy` before it waits for another process that has the directory.

        Raises DirectoryInUse if another process still has the directory after `wait` seconds (or `give_up`). A bad disk
        raises nothing.
        """
        self.catalog.pin(self.settings.pin)
        await self.upkeep.start(background=background, wait=wait, give_up=give_up, on_busy=on_busy)

    async def stop(self) -> None:
        """Writes all rows that are not written yet, and ends the background work."""
        await self.upkeep.stop()

    @property
    def size(self) -> int:
        """The size of all objects (bytes)."""
        return self.catalog.bytes

    @property
    def counts(self) -> dict[Kind, int]:
        """How many objects are stored, by kind."""
        return self.catalog.counts

    @property
    def loaded(self) -> bool:
        """Whether the store has read all that it can read of its index."""
        return self.upkeep.loading.unread.loaded

    @property
    def trouble(self) -> str:
        """Why the store keeps nothing now, for people; empty if all is well."""
        return self.health.trouble or ("there is no room, and no more objects can be evicted" if self.bounds.full else "")

    # From a partial file to an object

    async def commit(
        self, partial: Partial, media_type: str = "", *, within: str, manifest: bytes | Description | None = None
    ) -> Stored | None:
        """Makes a verified partial an object; None if somebody wiped the directory during this. Raises OSError.

        `media_type` and `manifest` (its bytes, or their description) are for manifests; take the type from the bytes.
        """
        digest = partial.digest
        before = self.catalog.objects.get(digest)
        sync = self.settings.durability == "fsync"
        stamp, known, said = await self.upkeep.threads.run(self._commit_file, partial, before, sync, manifest)
        self.partials.committed(partial)
        if stamp is None:
            return None
        there = self.catalog.objects.get(digest)
        if known and there is not None and there is before and (there.media_type or not media_type):
            self.catalog.add_repository(there, within, MAX_REPOSITORIES)
            self.objects.touch(digest, 0)
            return there
        if known and there is None:
            return None  # The object was removed during the commit.
        now = self.clock()
        repositories = () if there is None else there.within
        media_type = media_type or ("" if there is None else there.media_type)
        repositories = add_repository(repositories, within, MAX_REPOSITORIES)
        stored = Stored(digest, partial.size, media_type, now, repositories, now, stamp=stamp)
        self.objects.add(stored, said, synced=sync)
        self.health.report_write()
        return stored

    def _commit_file(
        self, partial: Partial, before: Stored | None, sync: bool, manifest: bytes | Description | None
    ) -> tuple[int | None, bool, Description]:
        """The file's time of change, whether the object was stored already, its description. Blocks; raises OSError."""
        said = manifest if isinstance(manifest, Description) else describe(manifest)
        if before is not None and self.blobs.stat(partial.digest) == (before.size, before.stamp):
            self.partials.directory.discard(partial)
            return before.stamp, True, said
        return self.blobs.commit(partial, sync=sync), False, said

    async def put(
        self, digest: str, data: bytes | bytearray, media_type: str, *, within: str, description: Description | None = None
    ) -> Stored | None:
        """Stores a whole manifest; None if it could not be kept. `description`: what the manifest's bytes say, if known."""
        try:
            partial = await self.partials.open(digest)
            try:
                if partial.size:
                    await self.partials.discard(partial)
                    partial = await self.partials.open(digest)
                await self.partials.append(partial, [memoryview(data)])
                if not partial.verified():
                    await self.partials.discard(partial)
                    return None
                return await self.commit(partial, media_type, within=within, manifest=description or bytes(data))
            finally:
                self.partials.release(partial)
        except OSError as error:
            self.health.report_write_error(error)
            return None

    async def adopt_file(self, path: Path, digest: str, media_type: str, within: str) -> Stored | None:
        """Makes a file below `partial/` an object, if it has the digest and there is room; else removes it and gives None."""
        if path.parent != self.partials.directory.path:
            return None
        try:
            partial = await self.partials.open_import(path, digest)
            try:
                if not partial.verified() or not await self.bounds.make(0):
                    return None
                description = await self.upkeep.threads.run(self._look_into, partial) if media_type else None
                # The bytes give the type, not the importer: all clients get the object, and only its bytes are verified.
                media_type = description.media_type if description is not None else ""
                return await self.commit(partial, media_type, within=within, manifest=description)
            finally:
                self.partials.release(partial, keep=False)
        except OSError as error:
            self.health.report_write_error(error)
            return None

    @staticmethod
    def _look_into(partial: Partial) -> Description | None:
        """The description of a partial's bytes; None if it is too large for a manifest. Blocks."""
        return describe(partial.read(0, partial.size)) if partial.size <= MANIFEST_MAX else None

    # Upkeep

    async def collect(self) -> dict[str, int]:
        """Compares index and files now, sweeps partial files and old tags, keeps the bounds, and compacts the index."""
        before, bytes_before = len(self.catalog.objects), self.size + self.partials.size
        found = await self.upkeep.put_right()
        evicted = await self.bounds.keep()
        await self.upkeep.journal.save()
        await self.upkeep.threads.run(self.upkeep.index.compact)
        freed = max(0, bytes_before - self.size - self.partials.size)
        return found | {"objects": len(self.catalog.objects), "gone": max(0, before - len(self.catalog.objects)),
                        "evicted": evicted, "freed": freed}  # fmt: skip


def free_space(path: Path) -> str:
    """The free space below `path` as a text for the start line."""
    free = BlobDir(path).free()
    return "unknown" if free is None else shown_size(free)
