"""What is stored, in memory: objects, tags, who needs what, and the order in which things would go. No I/O.

Images go as a whole. What nobody needs (the index or manifest of an image, a blob without a manifest) is a root; the order
of eviction has only roots, least recently used first. When a root goes, what only it needs goes with it, from the blobs up.
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
    """A copy of the lists, to be read in another thread."""

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
        """What is there now."""
        return Snapshot(list(self.objects.values()), dict(self.tags))

    def add(self, stored: Stored, listed: Iterable[str] = (), blobs: Collection[str] = ()) -> None:
        """Adds an object as the one used last, or puts it in the place of an earlier one.

        `listed` is what an index lists, `blobs` what of it are blobs.
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
        """Upstream serves the object in this repository, too; `limit` of them are remembered."""
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
        for registry in {name.partition("/")[0] for name in stored.within} or {""}:
            self._delivered[registry] += sign * stored.size
            if not self._delivered[registry]:
                del self._delivered[registry]

    def delivered(self, registry: str) -> int:
        """The size of all objects that this registry has delivered, or of which nobody knows who did (bytes)."""
        return self._delivered[registry] + self._delivered[""]

    def remove(self, digest: str) -> Stored | None:
        """Takes an object out; what only it needed is the next to go."""
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
        """An object was used: with it, what it is the only reason to be kept for moves away from eviction."""
        stored = self.objects.get(digest)
        if stored is None:
            return
        stored.hits += hits  # Set here, and `used` below, as this runs for each hit: a method would be felt.
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
                # A layer of many images says nothing of any of them. A manifest in several indexes is used through all.
                for one in islice(parent, FEW) if stored.media_type else ():
                    self._touch_root(one, now)
                return
            stored = self.objects[parent]

    def _touch_root(self, digest: str, now: float) -> None:
        if self._order.move_to_end(digest):
            self.objects[digest].used_at(now)
            self.used_objects.add(digest)

    def sort(self) -> None:
        """Puts the order right by when things were used, after objects were added in another order."""
        self._order.sort(lambda digest: self.objects[digest].used)

    def roots(self) -> Iterator[Stored]:
        """What may go, in this order; not what is pinned."""
        return (self.objects[digest] for digest in self._order if not self.pins.match(self.objects[digest]))

    def may_go(self) -> bool:
        """Whether there is something, among the oldest, that is not pinned."""
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

        Those with something `in_use` are passed over, pinned ones stay, and with `before` only what was not used since goes.
        With `most`, no more bytes than that go, if need be a part of an image. Returned are the objects, each after what it
        needs.
        """
        return self._oldest.take_oldest(size, limit, in_use, before, most)

    def take(self, root: Stored, most: int = EVERYTHING) -> list[Stored]:
        """Takes out an object and what only it needs, from the blobs up; not what is pinned below it.

        No more than `most` bytes and `MAX_TAKEN` objects: of a larger image a part, and the rest stays where it was.
        """
        return self._oldest.take(root, most)

    # Pins

    def pin(self, patterns: tuple[str, ...]) -> None:
        """Images whose `registry/repository:tag` (or `registry/repository@digest`) matches are never evicted."""
        self.pins.pin(patterns, self.tags)

    def is_pinned(self, digest: str) -> bool:
        """Whether an object stays whatever happens: pinned itself, or needed by what is."""
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
