"""Who needs what: an index its manifests, a manifest its blobs, whatever of it is stored."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice

from cacheyd.store.order import Order
from cacheyd.store.records import Stored, is_index

# So many indexes are looked through for one that lists a new manifest, the newest of each repository first.
MAX_FAMILY = 1000
# The parents of an object are a tuple up to this many, and a table beyond: a tuple takes less memory, and is slow to search.
# A use of a manifest counts for so many of its indexes, the first ones: anybody can make indexes that list somebody else's.
FEW = 16
# So many other manifests are searched for texts of digests to share.
MAX_SHARING = 8
# So many references of all manifests are known (real manifests have about ten each); beyond that, links are missing.
MAX_LINKS = 400_000
# So many bytes of a digest are kept of what an index lists: enough to know it by, and an eighth of the memory.
_HEAD = 4


class Links:
    """The links between the stored objects of a catalogue. What nobody needs is a root: that is for the order of eviction."""

    def __init__(self, objects: Mapping[str, Stored], order: Order) -> None:
        self._objects = objects
        self._order = order
        self._count = 0
        # Of each digest that a stored manifest needs: the one that does, or all of them.
        self.needed_by: dict[str, str | tuple[str, ...] | dict[str, None]] = {}
        # What each index lists, by the heads of the digests in a row: a manifest that comes later finds its index here.
        self._listed: dict[str, bytes] = {}
        self._families: dict[str, dict[str, None]] = {}

    def add(self, stored: Stored, listed: Iterable[str], blobs: Collection[str]) -> None:
        """Links a new object: `listed` is what an index lists, `blobs` what of it are blobs."""
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
        """An object is gone; what only it needed is the next to go."""
        self._count -= len(stored.needs)
        for child in stored.needs:
            self._need_no_more(stored.digest, child)
        if self._listed.pop(stored.digest, None) is not None:
            for name in (*stored.within, ""):
                self.leave_family(name, stored.digest)

    def one(self, digest: str) -> str:
        """The text of this digest that is in memory already, if there is one: each takes as much as the rest of a row."""
        if (stored := self._objects.get(digest)) is not None:
            return stored.digest
        parent = self._objects.get(self._first_parent(digest))
        return digest if parent is None else next((need for need in parent.needs if need == digest), digest)

    def _shared(self, digests: tuple[str, ...]) -> tuple[str, ...]:
        """The same as `_one` for many."""
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
        """Links an index to those of its manifests that are stored, whatever repositories they were found in, and to all of
        its blobs (BuildKit's caches).
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
        """Notes that the parent needs the object; whether that is new."""
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
                # Nobody needs the object now: it is the next to go.
                self._order.put_first(digest)

    def parents(self, digest: str) -> tuple[str, ...]:
        """The stored manifests that need an object, stored or not."""
        known = self.needed_by.get(digest, ())
        return (known,) if isinstance(known, str) else tuple(known)

    def join_families(self, stored: Stored, repositories: tuple[str, ...]) -> None:
        """Links an index to where its manifests will come from, and a manifest to the indexes that list it."""
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
        """Those that may list a manifest of these repositories, the newest first; any where nobody knows its repositories."""
        if not repositories:
            yield from reversed(self._listed)
        share = MAX_FAMILY // (len(repositories) + 1)
        for name in (*reversed(repositories), ""):
            yield from islice(reversed(self._families.get(name, {})), share if len(repositories) > 1 else MAX_FAMILY)

    def leave_family(self, name: str, digest: str) -> None:
        """An index is not looked for in this repository any more."""
        family = self._families.get(name)
        if family is not None:
            family.pop(digest, None)
            if not family:
                del self._families[name]


def _head(digest: str) -> bytes:
    return bytes.fromhex(digest.partition(":")[2][: 2 * _HEAD])
