"""What is stored, in memory: objects, tags, who needs what, and the order in which things would go. No I/O.

Images go as a whole. What nobody needs (the index or manifest of an image, a blob without a manifest) is a root; the order
of eviction has only roots, least recently used first. When a root goes, what only it needs goes with it, from the blobs up.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from cacheyd.protocol.reference import Kind
from cacheyd.settings import values as parse
from cacheyd.store.records import Stored, TagVariant, add_repository, is_index, shared

# How deep indexes within indexes are followed (real ones: one level).
MAX_DEPTH = 8
# So many indexes are looked through for one that lists a new manifest, the newest of each repository first.
MAX_FAMILY = 1000
# So many objects are looked at in one go whether they are in use; what is not looked at may go.
MAX_TREE = 5000
# An image of more objects than this goes in several goes, from the blobs up.
MAX_TAKEN = 1000
# Of what more manifests than this need, they are kept as a table: a tuple is shorter, and slow to search. Through so many
# of them a manifest is used, the first ones: anybody can make indexes that list somebody else's.
FEW = 16
# The texts of digests are shared with so many other manifests.
MAX_SHARING = 8
# The look for what was not used for long ends after so many roots that were.
MAX_YOUNG = 100
EVERYTHING = 2**62
# What all manifests together may refer to (real ones refer to about ten each): beyond that, it is not known what is needed.
MAX_LINKS = 400_000
# So many bytes of a digest are kept of what an index lists: enough to know it by, and an eighth of the memory.
_HEAD = 4


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of the lists, to be read in another thread."""

    objects: list[Stored]
    tags: dict[str, tuple[TagVariant, ...]]


class _Looks:
    """Whether something is in use, as long as it may be looked at."""

    def __init__(self, in_use: Callable[[str], bool], left: int) -> None:
        self._in_use = in_use
        self.left = left

    def find(self, digest: str) -> bool:
        self.left -= 1
        return self._in_use(digest)


class _Taking:
    """What was taken so far, and how much more may be."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.looks = MAX_TREE
        self.taken: list[Stored] = []


def _tag_bytes(name: str, variants: Iterable[TagVariant]) -> int:
    """What a tag takes in memory at the most: a text has some fifty bytes of its own, a tuple or a set some hundred."""
    return 200 + len(name) + sum(300 + sum(60 + len(one) for one in v.asked) + len(v.media_type) for v in variants)


class Catalog:
    """All objects and tags. Each change leaves its keys in `changed_objects`, `used_objects` or `changed_tags`."""

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.tags: dict[str, tuple[TagVariant, ...]] = {}
        self.bytes = 0
        self._delivered: Counter[str] = Counter()
        self._links = 0
        # What all tags take in memory at the most, if nothing of them is shared.
        self.tag_bytes = 0
        self.counts: dict[Kind, int] = {Kind.MANIFEST: 0, Kind.BLOB: 0}
        self.changed_objects: set[str] = set()
        self.used_objects: set[str] = set()
        self.changed_tags: set[str] = set()
        # Of each digest that a stored manifest needs: the one that does, or all of them.
        self._parents: dict[str, str | tuple[str, ...] | dict[str, None]] = {}
        # What each index lists, by the heads of the digests in a row: a manifest that comes later finds its index here.
        self._listed: dict[str, bytes] = {}
        self._families: dict[str, dict[str, None]] = {}
        self._order: OrderedDict[str, None] = OrderedDict()
        self._held: dict[str, None] = {}
        self._pin: tuple[str, ...] = ()
        self._pinned: Counter[str] = Counter()

    def snapshot(self) -> Snapshot:
        """What is there now."""
        return Snapshot(list(self.objects.values()), dict(self.tags))

    # Objects

    def add(self, stored: Stored, listed: Iterable[str] = (), blobs: Collection[str] = ()) -> None:
        """Adds an object as the one used last, or puts it in the place of an earlier one.

        `listed` is what an index lists, `blobs` what of it are blobs.
        """
        stored.digest, stored.within = self._one(stored.digest), shared(stored.within)
        if (old := self.remove(stored.digest)) is not None:
            stored.hits = max(stored.hits, old.hits)
        self.objects[stored.digest] = stored
        self.bytes += stored.size
        self._count(stored, 1)
        self.counts[stored.kind] += 1
        self.changed_objects.add(stored.digest)
        if is_index(stored.media_type):
            stored.needs = ()
            self._listed[stored.digest] = b"".join(map(_head, listed))
            self.link(stored.digest, listed, blobs)
        else:
            stored.needs = self._shared(stored.needs) if self._links + len(stored.needs) <= MAX_LINKS else ()
            for digest in stored.needs:
                self._need(stored, digest)
            self._links += len(stored.needs)
        self._join_families(stored, stored.within)
        if stored.digest not in self._parents:
            self._order[stored.digest] = None

    def _one(self, digest: str) -> str:
        """The text of this digest that is in memory already, if there is one: each takes as much as the rest of a row."""
        if (stored := self.objects.get(digest)) is not None:
            return stored.digest
        parent = self.objects.get(self._first_parent(digest))
        return digest if parent is None else next((need for need in parent.needs if need == digest), digest)

    def _shared(self, digests: tuple[str, ...]) -> tuple[str, ...]:
        """The same as `_one` for many."""
        known: dict[str, dict[str, str]] = {}
        return tuple([self._one_of(digest, known) for digest in digests])

    def _one_of(self, digest: str, known: dict[str, dict[str, str]]) -> str:
        if (stored := self.objects.get(digest)) is not None:
            return stored.digest
        first = self._first_parent(digest)
        if first not in known and len(known) < MAX_SHARING and (parent := self.objects.get(first)) is not None:
            known[first] = dict(zip(parent.needs, parent.needs, strict=True))
        return known.get(first, {}).get(digest, digest)

    def _first_parent(self, digest: str) -> str:
        found = self._parents.get(digest, "")
        return found if isinstance(found, str) else next(iter(found), "")

    def indexes(self) -> list[str]:
        """The digests of all indexes."""
        return list(self._listed)

    def link(self, digest: str, listed: Iterable[str], blobs: Collection[str] = ()) -> None:
        """Links an index to those of its manifests that are stored, whatever repositories they were found in, and to all of
        its blobs (BuildKit's caches).
        """
        index = self.objects.get(digest)
        if index is None:
            return
        new = list[str]()
        for child in listed:
            stored = self.objects.get(child)
            if self._links + len(new) >= MAX_LINKS:
                break
            if stored is not None and (stored.media_type or child in blobs):
                child = stored.digest  # noqa: PLW2901
            elif child not in blobs:
                continue
            if self._need(index, child):
                new.append(child)
        if new:
            index.needs += tuple(new)
            self._links += len(new)

    def _need(self, parent: Stored, digest: str) -> bool:
        """Notes that the parent needs it; whether that is new."""
        known = self._parents.get(digest)
        if known is None:
            self._parents[digest] = parent.digest
        elif isinstance(known, dict):
            if parent.digest in known:
                return False
            known[parent.digest] = None
        else:
            parents = known if isinstance(known, tuple) else (known,)
            if parent.digest in parents:
                return False
            parents = (*parents, parent.digest)
            self._parents[digest] = parents if len(parents) <= FEW else dict.fromkeys(parents)
        self._order.pop(digest, None)
        self._held.pop(digest, None)
        return True

    def _need_no_more(self, parent: str, digest: str) -> None:
        known = self._parents.get(digest)
        if isinstance(known, dict) and len(known) > FEW:
            known.pop(parent, None)
            return
        left = tuple(p for p in known if p != parent) if isinstance(known, tuple | dict) else ()
        if len(left) > 1:
            self._parents[digest] = left
        elif left:
            self._parents[digest] = left[0]
        else:
            self._parents.pop(digest, None)
            if digest in self.objects:
                # Nobody needs it now: it is the next to go.
                self._order[digest] = None
                self._order.move_to_end(digest, last=False)

    def parents(self, digest: str) -> tuple[str, ...]:
        """The stored manifests that need an object, stored or not."""
        known = self._parents.get(digest, ())
        return (known,) if isinstance(known, str) else tuple(known)

    def _join_families(self, stored: Stored, repositories: tuple[str, ...]) -> None:
        """Links an index to where its manifests will come from, and a manifest to the indexes that list it."""
        if stored.digest in self._listed:
            for name in repositories or ("",):
                self._families.setdefault(name, {})[stored.digest] = None
        if stored.media_type:
            head = _head(stored.digest)
            for digest in islice(self._indexes(repositories), MAX_FAMILY):
                if self._links >= MAX_LINKS:
                    break
                if self._listed[digest].find(head) % _HEAD == 0 and self._need(index := self.objects[digest], stored.digest):
                    index.needs += (stored.digest,)
                    self._links += 1

    def _indexes(self, repositories: tuple[str, ...]) -> Iterator[str]:
        """Those that may list a manifest of these repositories, the newest first; any where nobody knows its repositories."""
        if not repositories:
            yield from reversed(self._listed)
        share = MAX_FAMILY // (len(repositories) + 1)
        for name in (*reversed(repositories), ""):
            yield from islice(reversed(self._families.get(name, {})), share if len(repositories) > 1 else MAX_FAMILY)

    def add_repository(self, stored: Stored, name: str, limit: int) -> None:
        """Upstream serves the object in this repository, too; `limit` of them are remembered."""
        if name in stored.within:
            return
        kept = add_repository(stored.within, name, limit)
        for old in stored.within:
            if old not in kept:
                self._leave_family(old, stored.digest)
        self._count(stored, -1)
        stored.within = shared(kept)
        self._count(stored, 1)
        self._join_families(stored, (name,))
        self.changed_objects.add(stored.digest)

    def _count(self, stored: Stored, sign: int) -> None:
        for registry in {name.partition("/")[0] for name in stored.within} or {""}:
            self._delivered[registry] += sign * stored.size
            if not self._delivered[registry]:
                del self._delivered[registry]

    def delivered(self, registry: str) -> int:
        """The size of all objects that this registry has delivered, or of which nobody knows who did (bytes)."""
        return self._delivered[registry] + self._delivered[""]

    def _leave_family(self, name: str, digest: str) -> None:
        family = self._families.get(name)
        if family is not None:
            family.pop(digest, None)
            if not family:
                del self._families[name]

    def remove(self, digest: str) -> Stored | None:
        """Takes an object out; what only it needed is the next to go."""
        stored = self.objects.pop(digest, None)
        if stored is None:
            return None
        self.bytes -= stored.size
        self._count(stored, -1)
        self._links -= len(stored.needs)
        self.counts[stored.kind] -= 1
        self.changed_objects.add(digest)
        self.used_objects.discard(digest)
        self._order.pop(digest, None)
        self._held.pop(digest, None)
        for child in stored.needs:
            self._need_no_more(digest, child)
        if self._listed.pop(digest, None) is not None:
            for name in (*stored.within, ""):
                self._leave_family(name, digest)
        return stored

    def touch(self, digest: str, now: float, hits: int) -> None:
        """An object was used: with it, what it is the only reason to be kept for moves away from eviction."""
        stored = self.objects.get(digest)
        if stored is None:
            return
        stored.hits += hits
        for _ in range(MAX_DEPTH):
            stored.used = now
            self.used_objects.add(stored.digest)
            if self._move_to_end(stored.digest):
                return
            parent = self._parents.get(stored.digest)
            if parent is None:
                return
            if not isinstance(parent, str):
                # A layer of many images says nothing of any of them. A manifest in several indexes is used through all.
                for one in islice(parent, FEW) if stored.media_type else ():
                    self._touch_root(one, now)
                return
            stored = self.objects[parent]

    def _touch_root(self, digest: str, now: float) -> None:
        if self._move_to_end(digest):
            self.objects[digest].used = now
            self.used_objects.add(digest)

    def _move_to_end(self, digest: str) -> bool:
        """A root is the last to go now; whether it is one."""
        if digest in self._held:
            del self._held[digest]
            self._order[digest] = None
        elif digest in self._order:
            self._order.move_to_end(digest)
        else:
            return False
        return True

    def sort(self) -> None:
        """Puts the order right by when things were used, after objects were added in another order."""
        self._order = OrderedDict.fromkeys(sorted(self._order, key=lambda digest: self.objects[digest].used))

    # Eviction

    def roots(self) -> Iterator[Stored]:
        """What may go, in this order; not what is pinned."""
        return (self.objects[digest] for digest in list(self._order) if not self._is_pinned(self.objects[digest]))

    def may_go(self) -> bool:
        """Whether there is something, among the oldest, that is not pinned."""
        return any(not self._is_pinned(self.objects[digest]) for digest in islice(self._order, MAX_YOUNG))

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
        taken: list[Stored] = []
        passed: list[str] = []
        freed, looks = 0, _Looks(in_use, MAX_TREE)
        while self._order and freed < size and len(taken) < limit:
            root = self.objects[next(iter(self._order))]
            young = before is not None and root.used >= before
            if young and len(passed) >= MAX_YOUNG:
                break
            if young:
                # Perhaps it is here because the image that it was used with is gone.
                del self._order[root.digest]
                passed.append(root.digest)
            elif self._is_pinned(root):
                del self._order[root.digest]
                self._held[root.digest] = None
            elif any(map(looks.find, islice(self._tree(root), max(0, looks.left)))):
                del self._order[root.digest]
                passed.append(root.digest)
            else:
                tree = self.take(root, EVERYTHING if most is None else most - freed)
                taken += tree
                freed += sum(stored.size for stored in tree)
                if tree and most is not None and root.digest in self.objects:
                    break  # One image in pieces is enough.
                if not tree:
                    # It is larger than what may go.
                    del self._order[root.digest]
                    passed.append(root.digest)
                    if len(passed) >= MAX_YOUNG:
                        break
        for digest in reversed(passed):
            self._order[digest] = None
            self._order.move_to_end(digest, last=False)
        return taken

    def take(self, root: Stored, most: int = EVERYTHING) -> list[Stored]:
        """Takes out an object and what only it needs, from the blobs up; not what is pinned below it.

        No more than `most` bytes and `MAX_TAKEN` objects: of a larger image a part, and the rest stays where it was.
        """
        taking = _Taking(most)
        self._take(root, taking, MAX_DEPTH)
        return taking.taken

    def _take(self, stored: Stored, taking: "_Taking", depth: int) -> bool:
        """Whether all of it went."""
        whole = True
        for digest in stored.needs if depth else ():
            taking.looks -= 1
            child = self.objects.get(digest)
            if child is None or self._parents.get(digest) != stored.digest:
                continue
            if not self._is_pinned(child) and not self._take(child, taking, depth - 1):
                whole = False
            if taking.looks <= 0 or len(taking.taken) >= MAX_TAKEN:
                return False
        if not whole or stored.size > taking.most:
            return False
        if self.remove(stored.digest) is not None:
            taking.most -= stored.size
            taking.taken.append(stored)
        return True

    def _tree(self, stored: Stored, depth: int = MAX_DEPTH) -> Iterator[str]:
        """The digests of an object and of all that it needs, stored or not."""
        yield stored.digest
        for digest in stored.needs if depth else ():
            child = self.objects.get(digest)
            if child is None:
                yield digest
            else:
                yield from self._tree(child, depth - 1)

    # Tags and pins

    def set_tag(self, name: str, variants: tuple[TagVariant, ...]) -> None:
        """Sets what is known of a tag (`registry/repository:tag`); `tags` has those set last at its end."""
        self._unpin_tag(name)
        self._pop_tag(name)
        self.tags[name] = tuple(map(self._alike, variants))
        self.tag_bytes += _tag_bytes(name, variants)
        self.changed_tags.add(name)
        self._pin_tag(name)

    def _alike(self, variant: TagVariant) -> TagVariant:
        """The same, with the digest and the size of the object itself."""
        stored = self.objects.get(variant.digest)
        size = stored.size if stored is not None and stored.size == variant.size else variant.size
        return replace(variant, digest=self._one(variant.digest), size=size)

    def delete_tag(self, name: str) -> bool:
        """Forgets a tag; whether it was known."""
        self._unpin_tag(name)
        self.changed_tags.add(name)
        return self._pop_tag(name)

    def _pop_tag(self, name: str) -> bool:
        variants = self.tags.pop(name, None)
        if variants is not None:
            self.tag_bytes -= _tag_bytes(name, variants)
        return variants is not None

    def pin(self, patterns: tuple[str, ...]) -> None:
        """Images whose `registry/repository:tag` (or `registry/repository@digest`) matches are never evicted."""
        if patterns == self._pin:
            return
        self._pin = patterns
        self._pinned.clear()
        for name in self.tags:
            self._pin_tag(name)
        self._let_go()

    def _let_go(self) -> None:
        """What was held as pinned is looked at again; it was the oldest when it was."""
        for digest in reversed(self._held):
            self._order[digest] = None
            self._order.move_to_end(digest, last=False)
        self._held.clear()

    def _pin_tag(self, name: str) -> None:
        if self._pin and parse.matches(name, self._pin):
            self._pinned.update(variant.digest for variant in self.tags[name])

    def _unpin_tag(self, name: str) -> None:
        if self._pin and name in self.tags and parse.matches(name, self._pin):
            for variant in self.tags[name]:
                self._pinned[variant.digest] -= 1
                if self._pinned[variant.digest] <= 0:
                    del self._pinned[variant.digest]
            self._let_go()

    def _is_pinned(self, stored: Stored) -> bool:
        if not self._pin:
            return False
        if stored.digest in self._pinned:
            return True
        return bool(stored.media_type) and any(parse.matches(f"{n}@{stored.digest}", self._pin) for n in stored.within)

    def is_pinned(self, digest: str) -> bool:
        """Whether an object stays whatever happens: pinned itself, or needed by what is."""
        if not self._pin:
            return False
        above, seen = [digest], {digest}
        while above:
            one = above.pop()
            stored = self.objects.get(one)
            if stored is not None and self._is_pinned(stored):
                return True
            more = [parent for parent in self.parents(one) if parent not in seen]
            above += more
            seen.update(more)
        return False


def _head(digest: str) -> bytes:
    return bytes.fromhex(digest.partition(":")[2][: 2 * _HEAD])
