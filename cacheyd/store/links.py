"""The links between stored objects: an index needs its manifests, a manifest needs its blobs."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice

from cacheyd.store.order import Order
from cacheyd.store.records import Stored, is_index

# The most indexes that are searched for a new manifest, the newest indexes of each repository first.
MAX_FAMILY = 1000
# The most parents of an object that are kept in a tuple; more are kept in a table: a tuple takes less memory, but is slow to
# search. Also the most indexes, the first ones, for which a use of their manifest counts: anybody can make indexes that list
# another user's manifests.
FEW = 16
# The most other manifests that are searched for texts of digests to share.
MAX_SHARING = 8
# The most links that are known (real manifests have about ten each); more links are not noted.
MAX_LINKS = 400_000
# How many bytes are kept of each digest that an index lists: enough to find the digest, for an eighth of the memory.
_HEAD = 4


class Links:
    """The links between the stored objects of a catalogue. Objects that no object needs are roots of the eviction order."""

    def __init__(self, objects: Mapping[str, Stored], order: Order) -> None:
        self._objects = objects
        self._order = order
        self._count = 0
        # For each digest that stored manifests need: the digest of this manifest, or the digests of all of them.
        self.needed_by: dict[str, str | tuple[str, ...] | dict[str, None]] = {}
        # For each index: the first bytes of all digests that it lists. A manifest that comes later finds its index here.
        self._listed: dict[str, bytes] = {}
        self._families: dict[str, dict[str, None]] = {}

    def add(self, stored: Stored, listed: Iterable[str], blobs: Collection[str]) -> None:
        """Links a new object: `listed` are the digests that an index lists, `blobs` those of them that are blobs."""
        if is_index(stored.media_type):
            stored.need(())
            self._listed[stored.digest] = b"".join(map(_head, listed))
            self.link(stored.digest, listed, blobs)
        else:
            stored.need(self._shared(stored.needs) if self._count + len(stored.needs) <= MAX_LINKS else ())
            for digest in stored.needs:
                self._need(stored, digest)
            self._count += len(stored.needs)
        self.join_families(stored, stored.within)

    def remove(self, stored: Stored) -> None:
        """Removes the links of an object that was removed; objects that only it needed are the next to be evicted."""
        self._count -= len(stored.needs)
        for child in stored.needs:
            self._need_no_more(stored.digest, child)
        if self._listed.pop(stored.digest, None) is not None:
            for name in (*stored.within, ""):
                self.leave_family(name, stored.digest)

    def one(self, digest: str) -> str:
        """The text of this digest that is already in memory, else `digest`: a text takes as much as the rest of a row."""
        if (stored := self._objects.get(digest)) is not None:
            return stored.digest
        parent = self._objects.get(self._first_parent(digest))
        return digest if parent is None else next((need for need in parent.needs if need == digest), digest)

    def _shared(self, digests: tuple[str, ...]) -> tuple[str, ...]:
        """The same as `one`, for many digests."""
        known: dict[str, dict[str, str]] = {}
        return tuple([self._one_of(digest, known) for digest in digests])

    def _one_of(self, digest: str, known: dict[str, dict[str, str]]) -> str:
        if (stored := self._objects.get(digest)) is not None:
            return stored.digest
        first = self._first_parent(digest)
        if first not in known and len(known) < MAX_SHARING and (parent := self._objects.get(first)) is not None:
            known[first] = dict(zip(parent.needs, parent.needs, strict=True))
        return known.get(first, {}).get(digest, digest)

    def _first_parent(self, digest: str) -> str:
        found = self.needed_by.get(digest, "")
        return found if isinstance(found, str) else next(iter(found), "")

    def indexes(self) -> list[str]:
        """The digests of all indexes."""
        return list(self._listed)

    def link(self, digest: str, listed: Iterable[str], blobs: Collection[str] = ()) -> None:
        """Links an index to those of its manifests that are stored, in any repository, and to all of its blobs (BuildKit's
        caches).
        """
        index = self._objects.get(digest)
        if index is None:
            return
        new = list[str]()
        for child in listed:
            stored = self._objects.get(child)
            if self._count + len(new) >= MAX_LINKS:
                break
            if stored is not None and (stored.media_type or child in blobs):
                child = stored.digest  # noqa: PLW2901
            elif child not in blobs:
                continue
            if self._need(index, child):
                new.append(child)
        if new:
            index.need_also(tuple(new))
            self._count += len(new)

    def _need(self, parent: Stored, digest: str) -> bool:
        """Notes that the parent needs the object; gives whether the link is new."""
        known = self.needed_by.get(digest)
        if known is None:
            self.needed_by[digest] = parent.digest
        elif isinstance(known, dict):
            if parent.digest in known:
                return False
            known[parent.digest] = None
        else:
            parents = known if isinstance(known, tuple) else (known,)
            if parent.digest in parents:
                return False
            parents = (*parents, parent.digest)
            self.needed_by[digest] = parents if len(parents) <= FEW else dict.fromkeys(parents)
        self._order.discard(digest)
        return True

    def _need_no_more(self, parent: str, digest: str) -> None:
        known = self.needed_by.get(digest)
        if isinstance(known, dict) and len(known) > FEW:
            known.pop(parent, None)
            return
        left = tuple(p for p in known if p != parent) if isinstance(known, tuple | dict) else ()
        if len(left) > 1:
            self.needed_by[digest] = left
        elif left:
            self.needed_by[digest] = left[0]
        else:
            self.needed_by.pop(digest, None)
            if digest in self._objects:
                # No object needs this object now, so it is the next to be evicted.
                self._order.put_first(digest)

    def parents(self, digest: str) -> tuple[str, ...]:
        """The stored manifests that need an object, stored or not."""
        known = self.needed_by.get(digest, ())
        return (known,) if isinstance(known, str) else tuple(known)

    def join_families(self, stored: Stored, repositories: tuple[str, ...]) -> None:
        """Notes an index for the repositories that its manifests will come from; links a manifest to indexes that list it."""
        if stored.digest in self._listed:
            for name in repositories or ("",):
                self._families.setdefault(name, {})[stored.digest] = None
        if stored.media_type:
            head = _head(stored.digest)
            for digest in islice(self._indexes(repositories), MAX_FAMILY):
                if self._count >= MAX_LINKS:
                    break
                if self._listed[digest].find(head) % _HEAD == 0 and self._need(index := self._objects[digest], stored.digest):
                    index.need_also((stored.digest,))
                    self._count += 1

    def _indexes(self, repositories: tuple[str, ...]) -> Iterator[str]:
        """The indexes that may list a manifest of these repositories, the newest first; all if `repositories` is empty."""
        if not repositories:
            yield from reversed(self._listed)
        share = MAX_FAMILY // (len(repositories) + 1)
        for name in (*reversed(repositories), ""):
            yield from islice(reversed(self._families.get(name, {})), share if len(repositories) > 1 else MAX_FAMILY)

    def leave_family(self, name: str, digest: str) -> None:
        """Forgets that an index is in this repository."""
        family = self._families.get(name)
        if family is not None:
            family.pop(digest, None)
            if not family:
                del self._families[name]


def _head(digest: str) -> bytes:
    return bytes.fromhex(digest.partition(":")[2][: 2 * _HEAD])
