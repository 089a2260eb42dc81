"""Pure decisions, with `now` as an argument."""

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache

from cacheyd.config import Settings
from cacheyd.reference import Reference, accepts
from cacheyd.store.rows import Stored, TagVariant

# Types of the first manifest schema: nobody serves it any more, some clients still name it.
_SCHEMA_1 = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/json",
    }
)


@lru_cache(maxsize=1024)
def asked_types(types: frozenset[str]) -> frozenset[str]:
    """The media types in Accept that registries choose a manifest by: docker-registry, for one, ignores wildcards."""
    return frozenset(t for t in types if "*" not in t) - _SCHEMA_1


def tag_ttl(settings: Settings, ref: Reference) -> float:
    """How long what is known of a tag holds, in seconds: by the first pattern that matches, else `tag_ttl`."""
    registry = settings.registry(ref.registry)
    return next((ttl for pattern, ttl in registry.tag_ttls if fnmatchcase(ref.reference, pattern)), registry.tag_ttl)


def same_answer(variant: TagVariant, asked: frozenset[str], types: frozenset[str]) -> bool:
    """Whether upstream would give a client that asks with `asked` what it gave for `variant`.

    It does for the same Accept. For a shorter one it does if the type it chose is on it: a client that can do less than
    that one was never offered more. For a longer one it may choose something better, so that is asked for.
    """
    if not accepts(types, variant.media_type):
        return False
    return asked == variant.asked or (variant.media_type.lower() in asked and asked <= variant.asked)


def find_variant(variants: list[TagVariant], asked: frozenset[str], types: frozenset[str]) -> TagVariant | None:
    """The newest of a tag's variants that is right for this client."""
    found = [variant for variant in variants if same_answer(variant, asked, types)]
    return max(found, key=lambda variant: variant.checked, default=None)


def is_fresh(variant: TagVariant, ttl: float, now: float) -> bool:
    """Whether the tag need not be asked for again; a clock that went backwards makes it stale, not eternal."""
    return 0 <= now - variant.checked < ttl


def may_be_stale(variant: TagVariant, stale_if_error: float, now: float) -> bool:
    """Whether the tag may be served although upstream could not confirm it."""
    return now - variant.checked < stale_if_error


def evict_order(objects: Iterable[Stored], used: Mapping[str, float], pinned: Collection[str]) -> list[Stored]:
    """What may be evicted, in the order in which it goes: least recently used first, manifests after all blobs.

    Manifests are small, and a client that has one and not its blobs is better off than one that has neither.
    """
    loose = [stored for stored in objects if stored.digest not in pinned]
    return sorted(loose, key=lambda stored: (bool(stored.media_type), used.get(stored.digest, stored.used)))


def to_free(stored: int, max_size: int, free: int | None, min_free: int) -> int:
    """How many bytes have to go: none below the limits; beyond one of them, down to its low watermark (a tenth below)."""
    over = 0
    if max_size and stored > max_size:
        over = stored - max_size * 9 // 10
    if free is not None and free < min_free:
        over = max(over, min_free * 11 // 10 - free)
    return over
