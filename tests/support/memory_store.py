"""A store in memory, for tests of what uses the store: the same interface, no directory, no thread, no background work.

Objects are descriptors of `memfd_create`, so they are read and mapped as files are. `test_store_conformance` holds this one
and the real one to the same behaviour.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from cacheyd.observe.events import Events
from cacheyd.protocol.reference import Kind
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.store.catalog import Catalog, Snapshot
from cacheyd.store.health import BROKEN_PAUSE
from cacheyd.store.lists import Lists
from cacheyd.store.mapped import Mapped
from cacheyd.store.objects import SMALL
from cacheyd.store.partial import Partial
from cacheyd.store.records import MAX_REPOSITORIES, MAX_VARIANTS, Description, Stored, TagVariant, add_repository, describe
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
        self.clock, self.monotonic = clock, monotonic
        self.partials = MemoryPartials()
        self._events = events or Events()
        self.catalog = Catalog()
        self.sights = Sights()
        self.lists = Lists()
        self.write_errors = 0
        self._files: dict[str, int] = {}
        self._broken_until = 0.0

    async def start(self) -> None:
        """There is nothing to be read."""
        self.catalog.pin(self.settings.pin)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.live.settings

    async def stop(self) -> None:
        """Gives all descriptors back."""
        for fd in self._files.values():
            os.close(fd)
        self.partials.stop()
        self._files.clear()

    # Objects

    @property
    def size(self) -> int:
        """The size of all objects."""
        return self.catalog.bytes

    @property
    def counts(self) -> dict[Kind, int]:
        """How many objects there are."""
        return self.catalog.counts

    def find(self, digest: str) -> Stored | None:
        """The object if it is there."""
        return self.catalog.objects.get(digest)

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
        self.catalog.remove(stored.digest)

    def touch(self, digest: str, hits: int = 1) -> None:
        """The object was used just now."""
        self.catalog.touch(digest, self.clock(), hits)

    def add_repository(self, stored: Stored, within: str) -> None:
        """Records that upstream serves an object in another repository, too."""
        self.catalog.add_repository(stored, within, MAX_REPOSITORIES)

    async def remove(self, digests: Iterable[str], reason: str) -> tuple[int, int]:
        """Removes objects; how many there were, and their bytes."""
        removed = [stored for digest in digests if (stored := self.catalog.remove(digest)) is not None]
        self._close(removed, reason)
        return len(removed), sum(stored.size for stored in removed)

    def _close(self, removed: Sequence[Stored], reason: str) -> None:
        for stored in removed:
            os.close(self._files.pop(stored.digest))
        if removed:
            self._events.evicted(reason, len(removed))

    def snapshot(self) -> Snapshot:
        """A copy of the lists of objects and tags."""
        return self.catalog.snapshot()

    # Room

    @property
    def partial_bytes(self) -> int:
        """The size of all partial files."""
        return self.partials.size

    def can_take(self, size: int, credit: int = 0) -> bool:
        """Whether an object of `size` bytes that is only promised so far could be kept."""
        return self._missing(size, 1.0) <= self.partials.idle_bytes + self._spare(credit)

    def promise(self, size: int) -> None:
        """So many bytes more are to come."""
        self.partials.reservations.promise(size)

    def writing(self, size: int) -> AbstractContextManager[None]:
        """So many bytes are about to be in a partial file."""
        return self.partials.reservations.writing(size)

    async def make_room(self, size: int, *, unverified: bool = False, credit: int = 0) -> bool:
        """Removes what is needed for `size` bytes more; whether they fit then."""
        max_size = self.settings.max_size.of(0)
        if (max_size and size > max_size) or (unverified and not self.can_take(size, credit)):
            return False
        low = 1.0 if unverified else self.settings.low_watermark.share
        while over := self._missing(size, low):
            most = self._spare(credit) if unverified else None
            if self.partials.drop_one():
                continue
            if taken := self.catalog.take_oldest(over, 200, self.partials.reservations.expected().__contains__, most=most):
                self._close(taken, "room")
            else:
                return False
        return True

    def credit(self, registry: str) -> int:
        """What a registry's unverified bytes may displace beyond a tenth."""
        delivered = self.catalog.delivered(registry)
        return delivered and delivered + max(0, self.settings.max_size.of(0) * 9 // 10 - self.size)

    def _spare(self, credit: int) -> int:
        kept = self.settings.max_size.of(0) * 9 // 10 - credit
        return max(0, self.size - max(0, kept))

    def _missing(self, size: int, low: float) -> int:
        held = self.size + self.partials.held
        return to_free(held, self.settings.max_size.of(0), None, 0, low=low, size=size)

    # Writing

    @property
    def writable(self) -> bool:
        """False for a while after `report_write_error`."""
        return self.monotonic() >= self._broken_until

    def report_write_error(self, error: OSError) -> None:
        """Remembers that writes are refused."""
        self.write_errors += 1
        self._broken_until = self.monotonic() + BROKEN_PAUSE

    async def open_partial(self, digest: str, origin: str = "") -> Partial:
        """What came of the object from this registry already."""
        return await self.partials.open(digest, origin)

    async def append(self, partial: Partial, chunks: Sequence[bytes | bytearray | memoryview]) -> int:
        """Hashes and writes; the new size."""
        return await self.partials.append(partial, chunks)

    async def commit(
        self, partial: Partial, media_type: str = "", *, within: str, manifest: bytes | Description | None = None
    ) -> Stored | None:
        """Makes a verified partial an object."""
        digest = partial.digest
        self.partials.committed(partial)
        there = self.catalog.objects.get(digest)
        if there is not None and (there.media_type or not media_type):
            self.add_repository(there, within)
            self.touch(digest, 0)
            return there
        if there is not None:
            os.close(self._files[digest])
        self._files[digest] = os.dup(partial.fd)
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
            await self.append(partial, [memoryview(data)])
            known = description or describe(data)
            return await self.commit(partial, media_type, within=within, manifest=known) if partial.verified() else None
        finally:
            partial.close()

    def release(self, partial: Partial, *, close: bool = True, keep: bool = True) -> None:
        """No fetch has the partial any more."""
        self.partials.release(partial, close=close, keep=keep)

    async def discard(self, partial: Partial) -> None:
        """Removes a partial that is of no use."""
        await self.partials.discard(partial)

    # Tags

    def tag_variants(self, registry: str, repository: str, tag: str) -> Sequence[TagVariant]:
        """What is known of a tag, newest first."""
        return self.catalog.tags.get(f"{registry}/{repository}:{tag}", ())

    def set_tag(self, registry: str, repository: str, tag: str, variant: TagVariant) -> None:
        """Records what upstream said of a tag to a client that asked with `variant.asked`."""
        others = [v for v in self.tag_variants(registry, repository, tag) if v.asked != variant.asked]
        self.catalog.tags.put(f"{registry}/{repository}:{tag}", (variant, *others)[:MAX_VARIANTS])

    def delete_tag(self, registry: str, repository: str, tag: str) -> None:
        """Forgets a tag."""
        self.catalog.tags.forget(f"{registry}/{repository}:{tag}")
        self.sights.let_go(f"{registry}/{repository}:{tag}")
