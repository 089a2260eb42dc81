"""A store in memory, for tests of code that uses the store: the same parts, but no directory, thread or background work.

Objects are descriptors of `memfd_create`, so they can be read and mapped like files. `test_conformance` checks that this
store and the real store behave in the same way.
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
    """The partials: objects on their way in."""

    def __init__(self) -> None:
        self.reservations = Reservations()
        self._open: set[Partial] = set()
        self._idle: dict[Path, int] = {}

    @property
    def size(self) -> int:
        """The size of all partials (bytes)."""
        return self.idle_bytes + sum(partial.size for partial in self._open) + self.reservations.being_written

    @property
    def held(self) -> int:
        """The size of all partials, plus the bytes that are still to come and for which room was made."""
        return self.size + self.reservations.promised

    @property
    def idle_bytes(self) -> int:
        """The size of the partials that no fetch uses (bytes)."""
        return sum(os.fstat(fd).st_size for fd in self._idle.values())

    def drop_one(self) -> bool:
        """Removes one partial that no fetch uses. Gives whether there was one."""
        if not self._idle:
            return False
        os.close(self._idle.pop(next(iter(self._idle))))
        return True

    async def open(self, digest: str, origin: str = "") -> Partial:
        """Opens the partial of the object from this registry, with the bytes that came before."""
        path = Path(f"{digest}@{origin}")
        fd = self._idle.pop(path, None)
        partial = Partial(path, os.memfd_create(digest, os.MFD_CLOEXEC) if fd is None else fd, digest)
        while data := partial.read(partial.size, partial.size + (1 << 20)):
            partial.hash([data])
            partial.advance(len(data))
        self._open.add(partial)
        return partial

    async def append(self, partial: Partial, chunks: Sequence[bytes | bytearray | memoryview]) -> int:
        """Hashes and writes the chunks. Gives the new size (bytes)."""
        partial.write(chunks)
        partial.hash(chunks)
        return partial.advance(sum(map(len, chunks)))

    async def read(self, partial: Partial, start: int, end: int) -> bytes:
        """The bytes of the partial from `start`, up to `end`, as far as they have come."""
        return partial.read(start, end)

    def release(self, partial: Partial, *, close: bool = True, keep: bool = True) -> None:
        """Takes a partial back from its fetch; its bytes stay for the next fetch. `close`: no client reads it either."""
        if partial in self._open:
            self._open.discard(partial)
            if partial.size and keep and partial.path not in self._idle:
                self._idle[partial.path] = os.dup(partial.fd)
        if close:
            partial.close()

    async def discard(self, partial: Partial) -> None:
        """Removes a partial that cannot be used."""
        self._open.discard(partial)
        partial.close()

    def committed(self, partial: Partial) -> None:
        """Notes that the partial has become an object."""
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
        """The object; None if it is not stored."""
        return self._catalog.objects.get(digest)

    async def recover(self, digest: str, *, wait: float | None = None) -> Stored | None:
        """The same as `find`: this store has no files without a row."""
        return self.find(digest)

    def body(self, stored: Stored) -> bytes | Mapped | None:
        """The object's bytes; None if they are lost."""
        fd = self._files.get(stored.digest)
        if fd is None:
            return None
        return Mapped(fd, os.fstat(fd)) if stored.size > SMALL else os.pread(fd, stored.size, 0)

    def lost(self, stored: Stored) -> None:
        """Forgets an object that cannot be read."""
        self._catalog.remove(stored.digest)

    def touch(self, digest: str, hits: int = 1) -> None:
        """Notes that the object was used now."""
        self._catalog.touch(digest, self._clock(), hits)

    def add_repository(self, stored: Stored, within: str) -> None:
        """Records that upstream serves the object in another repository, too."""
        self._catalog.add_repository(stored, within, MAX_REPOSITORIES)

    def keep(self, digest: str, fd: int) -> None:
        """Keeps the bytes of an object."""
        if (old := self._files.get(digest)) is not None:
            os.close(old)
        self._files[digest] = os.dup(fd)

    async def remove(self, digests: Iterable[str], reason: str) -> tuple[int, int]:
        """Removes objects. Gives their number and their bytes."""
        removed = [stored for digest in digests if (stored := self._catalog.remove(digest)) is not None]
        self.drop(removed, reason)
        return len(removed), sum(stored.size for stored in removed)

    def drop(self, removed: Sequence[Stored], reason: str) -> None:
        """Removes the bytes of objects that the catalogue has forgotten."""
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
    """Makes room like the real store, but only within `max_size`."""

    def __init__(self, catalog: Catalog, objects: MemoryObjects, partials: MemoryPartials, live: Live) -> None:
        self._catalog = catalog
        self._objects = objects
        self._partials = partials
        self._live = live

    def can_take(self, size: int, credit: int = 0) -> bool:
        """Whether there would be room for an object of `size` bytes whose bytes have not come yet."""
        return self._missing(size, 1.0) <= self._partials.idle_bytes + self._spare(credit)

    async def make(self, size: int, *, unverified: bool = False, credit: int = 0) -> bool:
        """Removes partials and objects until `size` more bytes fit. Gives whether they fit."""
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
        """The bytes of objects that a registry's unverified bytes may displace, beyond a tenth of `max_size`."""
        delivered = self._catalog.delivered(registry)
        return delivered and delivered + max(0, self._live.settings.max_size.of(0) * 9 // 10 - self._catalog.bytes)

    def _spare(self, credit: int) -> int:
        kept = self._live.settings.max_size.of(0) * 9 // 10 - credit
        return max(0, self._catalog.bytes - max(0, kept))

    def _missing(self, size: int, low: float) -> int:
        held = self._catalog.bytes + self._partials.held
        return to_free(held, self._live.settings.max_size.of(0), None, 0, low=low, size=size)


class MemoryHealth:
    """The health of the disk: refuses writes after a test reports an error."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._broken_until = 0.0
        self.write_errors = 0

    @property
    def writable(self) -> bool:
        """False for a while after `report_write_error`."""
        return self._monotonic() >= self._broken_until

    def report_write_error(self, error: OSError) -> None:
        """Notes a failed write: for a while, this disk refuses writes."""
        self.write_errors += 1
        self._broken_until = self._monotonic() + BROKEN_PAUSE


class MemoryTags:
    """Tags by name."""

    def __init__(self, catalog: Catalog, sights: Sights) -> None:
        self._catalog = catalog
        self._sights = sights

    def variants(self, registry: str, repository: str, tag: str) -> Sequence[TagVariant]:
        """The variants of a tag, the newest first."""
        return self._catalog.tags.get(f"{registry}/{repository}:{tag}", ())

    def set(self, registry: str, repository: str, tag: str, variant: TagVariant) -> None:
        """Records the upstream's answer about a tag for clients that accept `variant.asked`."""
        others = [v for v in self.variants(registry, repository, tag) if v.asked != variant.asked]
        self._catalog.tags.put(f"{registry}/{repository}:{tag}", (variant, *others)[:MAX_VARIANTS])

    def delete(self, registry: str, repository: str, tag: str) -> None:
        """Forgets a tag."""
        self._catalog.tags.forget(f"{registry}/{repository}:{tag}")
        self._sights.let_go(f"{registry}/{repository}:{tag}")


class MemoryStore:
    """A store whose objects and tags exist only as long as the store."""

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
        """Starts the store. It has nothing to read."""
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
        """The size of all objects (bytes)."""
        return self.catalog.bytes

    @property
    def counts(self) -> dict[Kind, int]:
        """The number of objects of each kind."""
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
        """Stores a small object (a manifest) at once. None if its bytes do not have the digest."""
        partial = Partial(Path(digest), os.memfd_create(digest, os.MFD_CLOEXEC), digest)
        try:
            await self.partials.append(partial, [memoryview(data)])
            known = description or describe(data)
            return await self.commit(partial, media_type, within=within, manifest=known) if partial.verified() else None
        finally:
            partial.close()
