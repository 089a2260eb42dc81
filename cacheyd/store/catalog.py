"""The catalogue of the store in memory: objects, tags, links between objects, and the order of eviction. No I/O.

The store evicts whole images. An object that no other object needs is a root: the index or manifest of an image, a blob
without a manifest. The order of eviction has only roots, least recently used first. When the store removes a root, it also
removes the objects that only this root needs, from the blobs up.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from cacheyd.protocol.reference import Kind
from cacheyd.store.links import FEW, Links
from cacheyd.store.oldest import EVERYTHING, MAX_DEPTH, Oldest
from cacheyd.store.order import Order
from cacheyd.store.pins import Pins
from cacheyd.store.records import Stored, TagVariant, add_repository, shared
from cacheyd.store.tag_table import TagTable


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of all objects and tags, for another thread to read."""

    objects: list[Stored]
    tags: dict[str, tuple[TagVariant, ...]]


class Catalog:
    """All objects and tags. Each change leaves its keys in `changed_objects`, `used_objects` or `tags.changed`."""

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.bytes = 0
        self.counts: dict[Kind, int] = {Kind.MANIFEST: 0, Kind.BLOB: 0}
        self._delivered: Counter[str] = Counter()
        self.changed_objects: set[str] = set()
        self.used_objects: set[str] = set()
        self._order = Order()
        self.links = Links(self.objects, self._order)
        self.pins = Pins(self._order)
        self.tags = TagTable(self.objects, self.links, self.pins)
        self._oldest = Oldest(self.objects, self._order, self.links, self.pins, self.remove)

    def snapshot(self) -> Snapshot:
        """A copy of the present objects and tags."""
        return Snapshot(list(self.objects.values()), dict(self.tags))

    def add(self, stored: Stored, listed: Iterable[str] = (), blobs: Collection[str] = ()) -> None:
        """Adds an object as the last used one, in place of an earlier object with its digest.

        `listed` are the digests that an index lists, `blobs` those of them that are blobs.
        """
        stored.name(self.links.one(stored.digest), shared(stored.within))
        if (old := self.remove(stored.digest)) is not None:
            stored.take_hits(old)
        self.objects[stored.digest] = stored
        self.bytes += stored.size
        self._count(stored, 1)
        self.counts[stored.kind] += 1
        self.changed_objects.add(stored.digest)
        self.links.add(stored, listed, blobs)
        if stored.digest not in self.links.needed_by:
            self._order.add(stored.digest)

    def add_repository(self, stored: Stored, name: str, limit: int) -> None:
        """Notes that upstream serves the object in this repository, too; `limit` repositories are remembered."""
        if name in stored.within:
            return
        kept = add_repository(stored.within, name, limit)
        for old in stored.within:
            if old not in kept:
                self.links.leave_family(old, stored.digest)
        self._count(stored, -1)
        stored.delivered_in(shared(kept))
        self._count(stored, 1)
        self.links.join_families(stored, (name,))
        self.changed_objects.add(stored.digest)

    def _count(self, stored: Stored, sign: int) -> None:
        for registry in stored.registries or {""}:
            self._delivered[registry] += sign * stored.size
            if not self._delivered[registry]:
                del self._delivered[registry]

    def delivered(self, registry: str) -> int:
        """The size of all objects that this registry has delivered, or whose registry is unknown (bytes)."""
        return self._delivered[registry] + self._delivered[""]

    def remove(self, digest: str) -> Stored | None:
        """Takes an object out; objects that only it needed are the next to be evicted."""
        stored = self.objects.pop(digest, None)
        if stored is None:
            return None
        self.bytes -= stored.size
        self._count(stored, -1)
        self.counts[stored.kind] -= 1
        self.changed_objects.add(digest)
        self.used_objects.discard(digest)
        self._order.discard(digest)
        self.links.remove(stored)
        return stored

    def parents(self, digest: str) -> tuple[str, ...]:
        """The stored manifests that need an object, stored or not."""
        return self.links.parents(digest)

    # Use and eviction

    def touch(self, digest: str, now: float, hits: int) -> None:
        """Notes `hits` uses of an object: the image that needs it moves to the end of the order of eviction."""
        stored = self.objects.get(digest)
        if stored is None:
            return
        stored.hits += hits  # Set here, and `used` below, as this runs for each hit: a method call would cost too much.
        needed_by = self.links.needed_by
        for _ in range(MAX_DEPTH):
            stored.used = now  # As above.
            self.used_objects.add(stored.digest)
            if self._order.move_to_end(stored.digest):
                return
            parent = needed_by.get(stored.digest)
            if parent is None:
                return
            if not isinstance(parent, str):
                # The use of a layer of many images does not show which image is used. A manifest counts for all its indexes.
                for one in islice(parent, FEW) if stored.media_type else ():
                    self._touch_root(one, now)
                return
            stored = self.objects[parent]

    def _touch_root(self, digest: str, now: float) -> None:
        if self._order.move_to_end(digest):
            self.objects[digest].used_at(now)
            self.used_objects.add(digest)

    def sort(self) -> None:
        """Sorts the order of eviction by the time of the last use, after objects were added in another order."""
        self._order.sort(lambda digest: self.objects[digest].used)

    def roots(self) -> Iterator[Stored]:
        """The roots that may be evicted, in this order; without pinned objects."""
        return (self.objects[digest] for digest in self._order if not self.pins.match(self.objects[digest]))

    def may_go(self) -> bool:
        """Whether any of the oldest roots is not pinned."""
        return self._oldest.may_go()

    def take_oldest(
        self,
        size: int,
        limit: int,
        in_use: Callable[[str], bool] = lambda digest: False,
        *,
        before: float | None = None,
        most: int | None = None,
    ) -> list[Stored]:
        """Takes out whole images, least recently used first, until `size` bytes or `limit` objects are reached.

        Passes over images with an object `in_use`, and keeps pinned images. With `before`, takes only images that were not
        used since then (seconds since the epoch). With `most`, takes no more than `most` bytes, if necessary only a part of
        an image. Gives the objects, each after the objects that it needs.
        """
        return self._oldest.take_oldest(size, limit, in_use, before, most)

    def take(self, root: Stored, most: int = EVERYTHING) -> list[Stored]:
        """Takes out an object and the objects that only it needs, from the blobs up; but no pinned objects below it.

        Takes no more than `most` bytes and `MAX_TAKEN` objects: of a larger image it takes a part, and the rest stays.
        """
        return self._oldest.take(root, most)

    # Pins

    def pin(self, patterns: tuple[str, ...]) -> None:
        """Pins images whose `registry/repository:tag` (or `registry/repository@digest`) matches: they are never evicted."""
        self.pins.pin(patterns, self.tags)

    def is_pinned(self, digest: str) -> bool:
        """Whether an object is never evicted: it is pinned itself, or a pinned object needs it."""
        if not self.pins:
            return False
        above, seen = [digest], {digest}
        while above:
            one = above.pop()
            stored = self.objects.get(one)
            if stored is not None and self.pins.match(stored):
                return True
            more = [parent for parent in self.parents(one) if parent not in seen]
            above += more
            seen.update(more)
        return False
