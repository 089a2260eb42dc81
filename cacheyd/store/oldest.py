"""Takes whole images out of the catalogue, those first that were not used for the longest time."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from cacheyd.store.links import Links
from cacheyd.store.order import Order
from cacheyd.store.pins import Pins
from cacheyd.store.records import Stored

# How many levels of indexes within indexes are followed (real indexes have one level).
MAX_DEPTH = 8
# The most objects that one call checks for use; more objects count as not in use.
MAX_TREE = 5000
# The most objects of an image that one call takes out; a larger image takes several calls, from the blobs up.
MAX_TAKEN = 1000
# How many images the search passes over before it ends.
MAX_YOUNG = 100
EVERYTHING = 2**62


class _Looks:
    """Checks whether objects are in use, and counts the checks that are left."""

    def __init__(self, in_use: Callable[[str], bool], left: int) -> None:
        self._in_use = in_use
        self.left = left

    def find(self, digest: str) -> bool:
        self.left -= 1
        return self._in_use(digest)


class _Taking:
    """The objects taken so far, and the bytes and checks that are left."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.looks = MAX_TREE
        self.taken: list[Stored] = []


class Oldest:
    """Goes through the order of eviction. `remove` takes a single object out of the catalogue."""

    def __init__(
        self,
        objects: Mapping[str, Stored],
        order: Order,
        links: Links,
        pins: Pins,
        remove: Callable[[str], Stored | None],
    ) -> None:
        self._objects = objects
        self._order = order
        self._links = links
        self._pins = pins
        self._remove = remove

    def may_go(self) -> bool:
        """Whether any of the oldest roots is not pinned."""
        return any(not self._pins.match(self._objects[digest]) for digest in self._order.first(MAX_YOUNG))

    def take_oldest(
        self, size: int, limit: int, in_use: Callable[[str], bool], before: float | None, most: int | None
    ) -> list[Stored]:
        """See `Catalog.take_oldest`."""
        order, taken, passed = self._order, list[Stored](), list[str]()
        freed, looks = 0, _Looks(in_use, MAX_TREE)
        while order and freed < size and len(taken) < limit:
            root = self._objects[next(order.first(1))]
            young = before is not None and root.used >= before
            if young and len(passed) >= MAX_YOUNG:
                break
            if not young and self._pins.match(root):
                order.hold(root.digest)
            elif young or any(map(looks.find, islice(self._tree(root), max(0, looks.left)))):
                # A young root can be here if the image that it was used with is gone.
                order.discard(root.digest)
                passed.append(root.digest)
            elif tree := self.take(root, EVERYTHING if most is None else most - freed):
                taken += tree
                freed += sum(stored.size for stored in tree)
                if most is not None and root.digest in self._objects:
                    break  # One image of which only a part was taken is enough.
            else:
                # The image is larger than the bytes that may be taken.
                order.discard(root.digest)
                passed.append(root.digest)
                if len(passed) >= MAX_YOUNG:
                    break
        order.put_back(passed)
        return taken

    def take(self, root: Stored, most: int = EVERYTHING) -> list[Stored]:
        """Takes out an object and the objects that only it needs, from the blobs up; but no pinned objects below it.

        Takes no more than `most` bytes and `MAX_TAKEN` objects: of a larger image it takes a part, and the rest stays.
        """
        taking = _Taking(most)
        self._take(root, taking, MAX_DEPTH)
        return taking.taken

    def _take(self, stored: Stored, taking: "_Taking", depth: int) -> bool:
        """Takes out an object with the objects that only it needs, as far as allowed; gives whether all were taken."""
        whole = True
        for digest in stored.needs if depth else ():
            taking.looks -= 1
            child = self._objects.get(digest)
            if child is None or self._links.needed_by.get(digest) != stored.digest:
                continue
            if not self._pins.match(child) and not self._take(child, taking, depth - 1):
                whole = False
            if taking.looks <= 0 or len(taking.taken) >= MAX_TAKEN:
                return False
        if not whole or stored.size > taking.most:
            return False
        if self._remove(stored.digest) is not None:
            taking.most -= stored.size
            taking.taken.append(stored)
        return True

    def _tree(self, stored: Stored, depth: int = MAX_DEPTH) -> Iterator[str]:
        """The digests of an object and of all that it needs, stored or not."""
        yield stored.digest
        for digest in stored.needs if depth else ():
            child = self._objects.get(digest)
            if child is None:
                yield digest
            else:
                yield from self._tree(child, depth - 1)
