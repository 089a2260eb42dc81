"""What the index's rows mean, and what manifests refer to."""

import sys
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from cacheyd.protocol.digest import DIGEST
from cacheyd.protocol.media_types import DOCKER_LIST, OCI_INDEX
from cacheyd.protocol.reference import Kind
from cacheyd.store.index import Row

MAX_VARIANTS = 8
INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
MAX_SHARED = 1024


@dataclass(slots=True)
class Stored:
    """A verified object on disk, changed by the store alone. `media_type` is empty for blobs.

    `created` and `used` are in seconds since the epoch; `stamp` is the file's time of change in nanoseconds, by which a
    file that somebody put in its place is told from it; `within` names the repositories (`registry/repository`) that
    upstream served it in, of each registry the last ones: each registry in it has itself delivered these bytes; `needs`
    are the digests that an image is made of, and of an index its blobs (BuildKit's caches), and those of its manifests
    that are stored (or were, and are looked for again).
    """

    digest: str
    size: int
    media_type: str
    created: float
    within: tuple[str, ...] = ()
    used: float = 0.0
    hits: int = 0
    stamp: int = 0
    needs: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """Manifest if it was stored with a media type."""
        return Kind.MANIFEST if self.media_type else Kind.BLOB

    def name(self, digest: str, within: tuple[str, ...]) -> None:
        """The same names, as the copies that all objects share."""
        self.digest, self.within = digest, within

    def delivered_in(self, within: tuple[str, ...]) -> None:
        """The repositories that upstream served the object in."""
        self.within = within

    def need(self, digests: tuple[str, ...]) -> None:
        """The digests that the object is made of, in place of those that were known."""
        self.needs = digests

    def need_also(self, digests: tuple[str, ...]) -> None:
        """More digests that the object is made of."""
        self.needs += digests

    def used_at(self, when: float) -> None:
        """When the object was used last (seconds since the epoch)."""
        self.used = when

    def take_history(self, earlier: "Stored") -> None:
        """The object was stored before: it is as old as it was then, and was used as often."""
        self.created, self.hits = min(self.created, earlier.created), max(self.hits, earlier.hits)

    def take_hits(self, earlier: "Stored") -> None:
        """The object takes the place of an earlier one, which was used so often."""
        self.hits = max(self.hits, earlier.hits)


@dataclass(frozen=True, slots=True)
class TagVariant:
    """What a tag meant when upstream was last asked with these media types in Accept (`asked`)."""

    asked: frozenset[str]
    digest: str
    media_type: str
    size: int
    checked: float


def read_stored(digest: str, row: Row) -> Stored | None:
    """An object's row; None if it is not one. See `has_own_type`."""
    try:
        created = float(row["at"])
        used = float(row.get("used", created))
        within, needs = row.get("in", ()), row.get("needs", ())
        if not all(isinstance(text, str) for text in within) or not all(map(DIGEST.fullmatch, (digest, *needs))):
            return None
        return Stored(
            digest,
            int(row["size"]),
            sys.intern(str(row["type"])),
            created,
            tuple(map(sys.intern, within)),
            created if used == created else used,  # One number in memory for most.
            int(row.get("hits", 0)),
            int(row["stamp"]),
            tuple(needs),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def has_own_type(row: Row) -> bool:
    """Whether the media type in an object's row is what its bytes say; in older rows it is what some upstream said."""
    return not row.get("type") or row.get("own") is True


def write_stored(stored: Stored) -> Row:
    """The row of an object; of an index, all that it lists is to be added as `needs` (what of it is stored is seen later)."""
    row: Row = {
        "size": stored.size,
        "type": stored.media_type,
        "at": stored.created,
        "in": list(stored.within),
        "used": stored.used or stored.created,
        "hits": stored.hits,
        "stamp": stored.stamp,
    }
    if stored.media_type:
        row["own"] = True
    return row | {"needs": list(stored.needs)} if stored.needs and not is_index(stored.media_type) else row


def read_variants(row: Row) -> list[TagVariant]:
    """A tag's row; empty if it is not one."""
    try:
        return [
            TagVariant(
                shared(frozenset(v["asked"])),
                str(v["digest"]),
                sys.intern(str(v["type"])),
                shared(int(v["size"])),
                shared(float(v["at"])),
            )
            for v in row["variants"]
        ]
    except (KeyError, TypeError, ValueError, OverflowError):
        return []


_SHARED: dict[Hashable, Any] = {}


def shared[T: Hashable](value: T) -> T:
    """The same value as before, if there was one lately: one for all who are alike takes the memory once."""
    if len(_SHARED) >= MAX_SHARED:
        _SHARED.clear()
    found: T = _SHARED.setdefault(value, value)
    return found


def write_variants(variants: Sequence[TagVariant]) -> Row:
    """The row of a tag, with its newest variants."""
    return {
        "variants": [
            {"asked": sorted(v.asked), "digest": v.digest, "type": v.media_type, "size": v.size, "at": v.checked}
            for v in variants[:MAX_VARIANTS]
        ]
    }


def add_repository(names: tuple[str, ...], name: str, limit: int) -> tuple[str, ...]:
    """The repositories of an object with one more, the last ones that fit.

    What is too many is at the cost of the registry that has the most: nobody pushes others out by naming ever more
    repositories of his own. Where each has one, the first stays: what is private was there before a stranger had it.
    """
    if name in names:
        return names
    kept = [*names, name]
    while len(kept) > limit:
        counts = Counter(map(_registry, kept))
        most = max(counts.values())
        kept.remove(next(one for one in kept[most == 1 :] if counts[_registry(one)] == most))
    return tuple(kept)


def _registry(name: str) -> str:
    return name.partition("/")[0]


def is_index(media_type: str) -> bool:
    """Whether this is the type of a list of manifests (OCI index, Docker manifest list)."""
    return media_type.lower() in INDEXES


MAX_REPOSITORIES = 64
