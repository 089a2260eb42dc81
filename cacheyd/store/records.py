"""The records of objects and tags, and their rows in the index."""

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
    """A verified object on disk. Only the store changes it. `media_type` is empty for blobs.

    `created` and `used` are in seconds since the epoch. `stamp` is the file's time of change in nanoseconds: it shows whether
    somebody put another file in the object's place. `within` names the repositories (`registry/repository`) in which upstream
    served the object, the last ones of each registry: each of these registries has itself delivered the bytes. `needs` are
    the digests that an image is made of; for an index, its blobs (BuildKit's caches) and those of its manifests that are
    stored, or were stored and will be looked for again.
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
        """Manifest if the object was stored with a media type, else blob."""
        return Kind.MANIFEST if self.media_type else Kind.BLOB

    @property
    def registries(self) -> set[str]:
        """The registries that have delivered the object."""
        return set(map(_registry, self.within))

    def name(self, digest: str, within: tuple[str, ...]) -> None:
        """Sets the same digest and repositories, as the copies that all objects share."""
        self.digest, self.within = digest, within

    def delivered_in(self, within: tuple[str, ...]) -> None:
        """Sets the repositories in which upstream served the object."""
        self.within = within

    def need(self, digests: tuple[str, ...]) -> None:
        """Sets the digests that the object is made of, in place of those that were known."""
        self.needs = digests

    def need_also(self, digests: tuple[str, ...]) -> None:
        """Adds digests that the object is made of."""
        self.needs += digests

    def used_at(self, when: float) -> None:
        """Sets the time of the last use (seconds since the epoch)."""
        self.used = when

    def take_history(self, earlier: "Stored") -> None:
        """Takes over age and hits of the earlier record of the same object."""
        self.created, self.hits = min(self.created, earlier.created), max(self.hits, earlier.hits)

    def take_hits(self, earlier: "Stored") -> None:
        """Takes over the hits of the earlier object that this object replaces."""
        self.hits = max(self.hits, earlier.hits)


@dataclass(frozen=True, slots=True)
class TagVariant:
    """Upstream's last answer about a tag to clients with these media types in Accept (`asked`)."""

    asked: frozenset[str]
    digest: str
    media_type: str
    size: int
    checked: float


def read_stored(digest: str, row: Row) -> Stored | None:
    """The object of a row; None if the row is not an object's. See `has_own_type`."""
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
            created if used == created else used,  # Most objects then have one number in memory for both.
            int(row.get("hits", 0)),
            int(row["stamp"]),
            tuple(needs),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def has_own_type(row: Row) -> bool:
    """Whether the media type in an object's row is from the object's bytes; in older rows it is from an upstream."""
    return not row.get("type") or row.get("own") is True


def write_stored(stored: Stored) -> Row:
    """The row of an object. For an index, the caller must add all digests that it lists as `needs`, stored or not."""
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
    """The variants of a tag's row; empty if the row is not a tag's."""
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
    """An equal value from before, if there was one lately: so equal values take their memory only once."""
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
    """The repositories of an object with one more, at most `limit`.

    Above the limit, the registry with the most repositories loses its first: so nobody can push other registries out by naming
    more and more repositories of his own. If each registry has one repository, the first stays: a private repository had the
    object before a stranger did.
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
    """Whether this is the type of an index (OCI index, Docker manifest list)."""
    return media_type.lower() in INDEXES


MAX_REPOSITORIES = 64
