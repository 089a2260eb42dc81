"""A store in memory, for tests of what uses the store: the same parts, no directory, no thread, no background work.

Objects are descriptors of `memfd_create`, so they are read and mapped as files are. `test_conformance` holds this one and
the real one to the same behaviour.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cacheyd.observe.events import Events
from cacheyd.protocol.description import Description, describe
from cacheyd.protocol.reference import Kind
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.store.catalog import Catalog
from cacheyd.store.health import BROKEN_PAUSE
from cacheyd.store.lists import Lists
from cacheyd.store.mapped import Mapped
from cacheyd.store.objects import SMALL
from cacheyd.store.partial import Partial
from cacheyd.store.records import MAX_REPOSITORIES, MAX_VARIANTS, Stored, TagVariant, add_repository
from cacheyd.store.reservations import Reservations
from cacheyd.store.sights import Sights
from cacheyd.store.space import to_free


class MemoryPartials:
    """Objects on their way in."""

    def __init__(self) -> None:
        self.reservations = Reservations()
        self._open: set[Partial] = set()
        self._idle: dict[Path, int] = {}

    @property
    def size(self) -> int:
        """The size of all partial files."""
        return self.idle_bytes + sum(partial.size for partial in self._open) + self.reservations.being_written

    @property
    def held(self) -> int:
        """The same, with what is still to come of those for which room was made."""
        return self.size + self.reservations.promised

    @property
    def idle_bytes(self) -> int:
        """The size of the files that no fetch has."""
        return sum(os.fstat(fd).st_size for fd in self._idle.values())

    def drop_one(self) -> bool:
        """Removes a file that no fetch has; whether there was one."""
        if not self._idle:
            return False
        os.close(self._idle.pop(next(iter(self._idle))))
        return True

    async def open(self, digest: str, origin: str = "") -> Partial:
        """What came of the object from this registry already."""
        path = Path(f"{digest}@{origin}")
        fd = self._idle.pop(path, None)
        partial = Partial(path, os.memfd_create(digest, os.MFD_CLOEXEC) if fd is None else fd, digest)
        while data := partial.read(partial.size, partial.size + (1 << 20)):
            partial.hash([data])
            partial.advance(len(data))
        self._open.add(partial)
        return partial

    async def append(self, partial: Partial, chunks: Sequence[bytes | bytearray | memoryview]) -> int:
        """Hashes and writes; the new size."""
        partial.write(chunks)
        partial.hash(chunks)
        return partial.advance(sum(map(len, chunks)))

    async def read(self, partial: Partial, start: int, end: int) -> bytes:
        """Up to `end - start` bytes from `start` of what has come."""
        return partial.read(start, end)

    def release(self, partial: Partial, *, close: bool = True, keep: bool = True) -> None:
        """No fetch has the partial any more; what came stays for the next one. `close`: nobody reads it either."""
        if partial in self._open:
            self._open.discard(partial)
            if partial.size and keep and partial.path not in self._idle:
                self._idle[partial.path] = os.dup(partial.fd)
        if close:
            partial.close()

    async def discard(self, partial: Partial) -> None:
        """Removes a partial that is of no use."""
        self._open.discard(partial)
        partial.close()

    def committed(self, partial: Partial) -> None:
        """It is an object now."""
        self._open.discard(partial)

    def stop(self) -> None:
        """Gives all descriptors back."""
        for fd in self._idle.values():
            os.close(fd)
        for partial in self._open:
            partial.close()
        self._idle.clear()


class MemoryObjects:
    """Stored objects."""

    def __init__(self, catalog: Catalog, clock: Callable[[], float], events: Events) -> None:
        self._catalog = catalog
        self._clock = clock
        self._events = events
        self._files: dict[str, int] = {}

    def find(self, digest: str) -> Stored | None:
        """The object if it is there."""
        return self._catalog.objects.get(digest)

    async def recover(self, digest: str, *, wait: float | None = None) -> Stored | None:
        """Nothing is there that does not count."""
        return self.find(digest)

    def body(self, stored: Stored) -> bytes | Mapped | None:
        """The object's bytes."""
        fd = self._files.get(stored.digest)
        if fd is None:
            return None
        return Mapped(fd, os.fstat(fd)) if stored.size > SMALL else os.pread(fd, stored.size, 0)

    def lost(self, stored: Stored) -> None:
        """The object cannot be read."""
        self._catalog.remove(stored.digest)

    def touch(self, digest: str, hits: int = 1) -> None:
        """The object was used just now."""
        self._catalog.touch(digest, self._clock(), hits)

    def add_repository(self, stored: Stored, within: str) -> None:
        """Records that upstream serves an object in another repository, too."""
        self._catalog.add_repository(stored, within, MAX_REPOSITORIES)

    def keep(self, digest: str, fd: int) -> None:
        """Takes the bytes of an object over."""
        if (old := self._files.get(digest)) is not None:
            os.close(old)
        self._files[digest] = os.dup(fd)

    async def remove(self, digests: Iterable[str], reason: str) -> tuple[int, int]:
        """Removes objects; how many there were, and their bytes."""
        removed = [stored for digest in digests if (stored := self._catalog.remove(digest)) is not None]
        self.drop(removed, reason)
        return len(removed), sum(stored.size for stored in removed)

    def drop(self, removed: Sequence[Stored], reason: str) -> None:
        """The bytes of objects that were taken out of the catalogue."""
        for stored in removed:
            os.close(self._files.pop(stored.digest))
        if removed:
            self._events.evicted(reason, len(removed))

    def stop(self) -> None:
        """Gives all descriptors back."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()


class MemoryBounds:
    """Makes room as the real one does, within `max_size` alone."""

    def __init__(self, catalog: Catalog, objects: MemoryObjects, partials: MemoryPartials, live: Live) -> None:
        self._catalog = catalog
        self._objects = objects
        self._partials = partials
        self._live = live

    def can_take(self, size: int, credit: int = 0) -> bool:
        """Whether an object of `size` bytes that is only promised so far could be kept."""
        return self._missing(size, 1.0) <= self._partials.idle_bytes + self._spare(credit)

    async def make(self, size: int, *, unverified: bool = False, credit: int = 0) -> bool:
        """Removes what is needed for `size` bytes more; whether they fit then."""
        settings = self._live.settings
        max_size = settings.max_size.of(0)
        if (max_size and size > max_size) or (unverified and not self.can_take(size, credit)):
            return False
        low = 1.0 if unverified else settings.low_watermark.share
        expected = self._partials.reservations.expected()
        while over := self._missing(size, low):
            most = self._spare(credit) if unverified else None
            if self._partials.drop_one():
                continue
            if taken := self._catalog.take_oldest(over, 200, expected.__contains__, most=most):
                self._objects.drop(taken, "room")
            else:
                return False
        return True

    def credit(self, registry: str) -> int:
        """What a registry's unverified bytes may displace beyond a tenth."""
        delivered = self._catalog.delivered(registry)
        return delivered and delivered + max(0, self._live.settings.max_size.of(0) * 9 // 10 - self._catalog.bytes)

    def _spare(self, credit: int) -> int:
        kept = self._live.settings.max_size.of(0) * 9 // 10 - credit
        return max(0, self._catalog.bytes - max(0, kept))

    def _missing(self, size: int, low: float) -> int:
        held = self._catalog.bytes + self._partials.held
        return to_free(held, self._live.settings.max_size.of(0), None, 0, low=low, size=size)


class MemoryHealth:
    """Writes are refused when a test says so."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._broken_until = 0.0
        self.write_errors = 0

    @property
    def writable(self) -> bool:
        """False for a while after `report_write_error`."""
        return self._monotonic() >= self._broken_until

    def report_write_error(self, error: OSError) -> None:
        """Remembers that writes are refused."""
        self.write_errors += 1
        self._broken_until = self._monotonic() + BROKEN_PAUSE


class MemoryTags:
    """Tags by name."""

    def __init__(self, catalog: Catalog, sights: Sights) -> None:
        self._catalog = catalog
        self._sights = sights

    def variants(self, registry: str, repository: str, tag: str) -> Sequence[TagVariant]:
        """What is known of a tag, newest first."""
        return self._catalog.tags.get(f"{registry}/{repository}:{tag}", ())

    def set(self, registry: str, repository: str, tag: str, variant: TagVariant) -> None:
        """Records what upstream said of a tag to a client that asked with `variant.asked`."""
        others = [v for v in self.variants(registry, repository, tag) if v.asked != variant.asked]
        self._catalog.tags.put(f"{registry}/{repository}:{tag}", (variant, *others)[:MAX_VARIANTS])

    def delete(self, registry: str, repository: str, tag: str) -> None:
        """Forgets a tag."""
        self._catalog.tags.forget(f"{registry}/{repository}:{tag}")
        self._sights.let_go(f"{registry}/{repository}:{tag}")


class MemoryStore:
    """Objects and tags that end with it."""

    def __init__(
        self,
        settings: Settings | Live | None = None,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        events: Events | None = None,
    ) -> None:
        self.live = Live.of(settings or Settings())
        self.clock = clock
        self.catalog = Catalog()
        self.sights = Sights()
        self.lists = Lists()
        self.health = MemoryHealth(monotonic)
        self.partials = MemoryPartials()
        self.objects = MemoryObjects(self.catalog, clock, events or Events())
        self.tags = MemoryTags(self.catalog, self.sights)
        self.bounds = MemoryBounds(self.catalog, self.objects, self.partials, self.live)
        self.live.listen(lambda settings: self.catalog.pin(settings.pin))

    async def start(self) -> None:
        """There is nothing to be read."""
        self.catalog.pin(self.settings.pin)

    async def stop(self) -> None:
        """Gives all descriptors back."""
        self.objects.stop()
        self.partials.stop()

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.live.settings

    @property
    def size(self) -> int:
        """The size of all objects."""
        return self.catalog.bytes

    @property
    def counts(self) -> dict[Kind, int]:
        """How many objects there are."""
        return self.catalog.counts

    async def commit(
        self, partial: Partial, media_type: str = "", *, within: str, manifest: bytes | Description | None = None
    ) -> Stored | None:
        """Makes a verified partial an object."""
        digest = partial.digest
        self.partials.committed(partial)
        there = self.catalog.objects.get(digest)
        if there is not None and (there.media_type or not media_type):
            self.objects.add_repository(there, within)
            self.objects.touch(digest, 0)
            return there
        self.objects.keep(digest, partial.fd)
        repositories = add_repository(there.within if there else (), within, MAX_REPOSITORIES)
        now, needs = self.clock(), (manifest if isinstance(manifest, Description) else describe(manifest)).needs
        stored = Stored(digest, partial.size, media_type, now, repositories, now, needs=needs)
        self.catalog.add(stored, needs)
        return stored

    async def put(
        self, digest: str, data: bytes | bytearray, media_type: str, *, within: str, description: Description | None = None
    ) -> Stored | None:
        """Stores a small verified object (a manifest) whole; None if it does not have its digest."""
        partial = Partial(Path(digest), os.memfd_create(digest, os.MFD_CLOEXEC), digest)
        try:
            await self.partials.append(partial, [memoryview(data)])
            known = description or describe(data)
            return await self.commit(partial, media_type, within=within, manifest=known) if partial.verified() else None
        finally:
            partial.close()
