"""Remembers for `min_age` when digests were first seen, and which tags are held: in memory, and as rows of the index.

Both tables are bounded in number and bytes. Above a bound the oldest entries of the largest group are forgotten: each
configured registry is a group, and all other registries together are one group, so that strangers cannot push out the entries
of a configured registry. In this one group the largest owner loses its oldest entries: all names below one domain count as
one owner, as such names cost nothing.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any

from cacheyd.store.index import Row
from cacheyd.store.records import MAX_VARIANTS, TagVariant, read_variants, write_variants

MAX_SEEN, MAX_SEEN_BYTES = 50_000, 16 << 20
MAX_HELD, MAX_HELD_BYTES = 5_000, 8 << 20
# The memory of an entry beside its texts (bytes).
_SEEN_COST, _HELD_COST, _VARIANT_COST, _TYPE_COST = 350, 300, 800, 60
# The keys of the rows.
SEEN, HELD = "s:", "h:"


@dataclass(frozen=True, slots=True)
class Sight:
    """The known age of a digest in a repository, in seconds since the epoch.

    `first` is when this cache first saw the digest under a tag. `created` is the image's own date: None before it was looked
    up, 0 if the image has none. `released`: an operator released the image.
    """

    first: float
    created: float | None = None
    released: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """A tag that leads to an image that is too young. `candidate` is upstream's last answer, `served` the image that clients
    get during the hold (None: no image), `until` the end of the hold in seconds since the epoch.
    """

    candidate: TagVariant
    served: TagVariant | None
    until: float


@dataclass(slots=True)
class _Share[V]:
    """The values of one owner, and their memory (bytes)."""

    values: dict[str, V] = field(default_factory=dict)
    size: int = 0


@dataclass(slots=True)
class _Group[V]:
    """Shares by owner. `_sizes` has at least one entry for each share, not below the share's size: a heap, as each value above
    the bound needs the largest share, even if there are many owners.
    """

    shares: dict[str, _Share[V]] = field(default_factory=dict)
    size: int = 0
    _sizes: list[tuple[int, str]] = field(default_factory=list)

    def add(self, owner: str, size: int) -> None:
        """Notes that the share of this owner has grown by `size` bytes (or shrunk, if negative)."""
        share = self.shares[owner]
        share.size += size
        self.size += size
        if not share.values:
            del self.shares[owner]
        elif size > 0:
            heappush(self._sizes, (-share.size, owner))
            if len(self._sizes) > 2 * len(self.shares) + 1000:
                self._sizes = [(-share.size, owner) for owner, share in self.shares.items()]
                heapify(self._sizes)

    def largest(self) -> _Share[V]:
        """The share that takes the most memory."""
        while True:
            size, owner = self._sizes[0]
            share = self.shares.get(owner)
            if share is not None and -size <= share.size:
                return share
            if share is None:
                heappop(self._sizes)
            else:
                heapreplace(self._sizes, (-share.size, owner))


def _size(group: _Group[Any]) -> int:
    return group.size


def _owner(registry: str) -> str:
    """The possible owner of a registry: the domain of a name, or an address without its port."""
    host = registry if registry.startswith("[") else registry.partition(":")[0]
    return host.partition("]")[0] if host.startswith("[") or _is_address(host) else ".".join(host.split(".")[-2:])


def _is_address(host: str) -> bool:
    return host.rpartition(".")[2].isdecimal()


class Table[V]:
    """Values by key; each key begins with a registry."""

    def __init__(self, limit: int, size: int, cost: Callable[[str, V], int]) -> None:
        self._limit, self._size, self._cost = limit, size, cost
        self._configured: Collection[str] = frozenset()
        # All registries that are not configured are one group, under the empty name; in a group, each owner has a share.
        self._groups: dict[str, _Group[V]] = {}
        self._count = 0
        self.changed: set[str] = set()

    def _place(self, key: str) -> tuple[str, str]:
        """The group and the owner of a key."""
        registry = key.partition("/")[0]
        return (registry, "") if registry in self._configured else ("", _owner(registry))

    def _share(self, key: str) -> _Share[V] | None:
        name, owner = self._place(key)
        group = self._groups.get(name)
        return None if group is None else group.shares.get(owner)

    def __len__(self) -> int:
        return self._count

    @property
    def size(self) -> int:
        """The most memory that all values take (bytes)."""
        return sum(group.size for group in self._groups.values())

    def __iter__(self) -> Iterator[str]:
        for group in self._groups.values():
            for share in group.shares.values():
                yield from share.values

    def get(self, key: str) -> V | None:
        """The value; None if there is none."""
        share = self._share(key)
        return None if share is None else share.values.get(key)

    def set(self, key: str, value: V, *, load: bool = False) -> None:
        """Sets a value; a new value is the last to be forgotten. `load`: the value came from its row."""
        self.discard(key, keep=load)
        name, owner = self._place(key)
        group = self._groups.setdefault(name, _Group())
        group.shares.setdefault(owner, _Share()).values[key] = value
        group.add(owner, self._cost(key, value))
        self._count += 1
        if not load:
            self.changed.add(key)
        while self._count > self._limit or self.size > self._size:
            group = max(self._groups.values(), key=_size)
            self.discard(next(iter(group.largest().values)))

    def discard(self, key: str, *, keep: bool = False) -> None:
        """Forgets a value, and its row unless `keep` is set."""
        share = self._share(key)
        if share is None or key not in share.values:
            return
        name, owner = self._place(key)
        group = self._groups[name]
        group.add(owner, -self._cost(key, share.values.pop(key)))
        self._count -= 1
        if not group.shares:
            del self._groups[name]
        if not keep:
            self.changed.add(key)

    def configure(self, registries: Collection[str]) -> None:
        """Gives each of these registries a group of its own."""
        self._configured = frozenset(registries)
        values = [pair for group in self._groups.values() for share in group.shares.values() for pair in share.values.items()]
        self._groups, self._count = {}, 0
        for key, value in values:
            self.set(key, value, load=True)


class Sights:
    """Both tables: sights by `registry/repository@digest`, holds by `registry/repository:tag`.

    `find_row` looks up a single row until all rows were read.
    """

    def __init__(self, find_row: Callable[[str], Row | None] = lambda key: None) -> None:
        self._find_row = find_row
        self.seen: Table[Sight] = Table(MAX_SEEN, MAX_SEEN_BYTES, lambda key, _: _SEEN_COST + len(key))
        self.held: Table[tuple[Hold, ...]] = Table(MAX_HELD, MAX_HELD_BYTES, _held_cost)

    def configure(self, registries: Collection[str]) -> None:
        """Gives each of these registries a group of its own in both tables."""
        self.seen.configure(registries)
        self.held.configure(registries)

    def sight(self, key: str) -> Sight | None:
        """The sight of a digest in a repository; None if there is none."""
        found = self.seen.get(key)
        if found is None and key not in self.seen.changed and (row := self._find_row(SEEN + key)) is not None:
            self.load(SEEN + key, row)
            found = self.seen.get(key)
        return found

    def holds(self, tag: str) -> tuple[Hold, ...]:
        """The holds of a tag, one for each set of types that clients asked with."""
        found = self.held.get(tag)
        if found is None and tag not in self.held.changed and (row := self._find_row(HELD + tag)) is not None:
            self.load(HELD + tag, row)
            found = self.held.get(tag)
        return found or ()

    def hold(self, tag: str, hold: Hold) -> None:
        """Sets a hold of a tag, in place of the earlier hold for the same types."""
        others = [one for one in self.holds(tag) if one.candidate.asked != hold.candidate.asked]
        self.held.set(tag, (hold, *others)[:MAX_VARIANTS])

    def let_go(self, tag: str, asked: frozenset[str] | None = None) -> None:
        """Ends the hold of a tag for these types, or all its holds."""
        left = tuple(one for one in self.holds(tag) if asked is not None and one.candidate.asked != asked)
        if left:
            self.held.set(tag, left)
        elif self.held.get(tag) is not None:
            self.held.discard(tag)

    def drop(self, tag: str, digest: str) -> None:
        """Ends the holds of a tag that wait for this digest, for all types."""
        holds = self.holds(tag)
        left = tuple(one for one in holds if one.candidate.digest != digest)
        if left and len(left) < len(holds):
            self.held.set(tag, left)
        elif holds and not left:
            self.held.discard(tag)

    # Rows

    def take_changed(self, limit: int) -> list[str]:
        """Takes up to `limit` keys of changed rows out."""
        taken: list[str] = []
        for prefix, table in ((SEEN, self.seen.changed), (HELD, self.held.changed)):
            while table and len(taken) < limit:
                taken.append(prefix + table.pop())
        return taken

    def put_back(self, keys: Collection[str]) -> None:
        """Marks rows as changed again that could not be written."""
        for key in keys:
            (self.seen if key.startswith(SEEN) else self.held).changed.add(key[2:])

    def all_changed(self) -> None:
        """Marks all rows as changed, so that all are written."""
        self.seen.changed.update(self.seen)
        self.held.changed.update(self.held)

    def row(self, key: str) -> Row | None:
        """The row to be written under a key; None if the row must be deleted."""
        if key.startswith(SEEN):
            sight = self.seen.get(key[2:])
            if sight is None:
                return None
            return {"at": sight.first, "created": sight.created} | ({"ok": True} if sight.released else {})
        holds = self.held.get(key[2:])
        if holds is None:
            return None
        return {
            "candidates": write_variants([hold.candidate for hold in holds])["variants"],
            "served": [write_variants([hold.served] if hold.served else [])["variants"] for hold in holds],
            "until": [hold.until for hold in holds],
        }

    def load(self, key: str, row: Row) -> None:
        """Takes up a row; ignores a row that is not valid, and a row whose value has changed since."""
        table, name = (self.seen if key.startswith(SEEN) else self.held), key[2:]
        if name in table.changed or table.get(name) is not None:
            return
        try:
            if key.startswith(SEEN):
                created = row.get("created")
                sight = Sight(float(row["at"]), None if created is None else float(created), row.get("ok") is True)
                self.seen.set(name, sight, load=True)
            elif holds := tuple(_read_holds(row)):
                self.held.set(name, holds, load=True)
        except (KeyError, TypeError, ValueError, OverflowError):
            pass


def _read_holds(row: Row) -> Iterator[Hold]:
    candidates = read_variants({"variants": row["candidates"]})
    for candidate, served, until in zip(candidates, row["served"], row["until"], strict=True):
        yield Hold(candidate, next(iter(read_variants({"variants": served})), None), float(until))


def _held_cost(key: str, holds: tuple[Hold, ...]) -> int:
    types = sum(_TYPE_COST + len(name) for hold in holds for name in hold.candidate.asked)
    return _HELD_COST + len(key) + _VARIANT_COST * len(holds) + types
