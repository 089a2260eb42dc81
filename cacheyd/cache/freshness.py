"""Decides how long a tag's stored answer counts, and for which clients. All decisions are pure: `now` is an argument."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache

from cacheyd.protocol.accept import accepts, are_all
from cacheyd.protocol.media_types import SCHEMA_1, SCHEMA_1_SIGNED
from cacheyd.protocol.reference import Reference
from cacheyd.settings.settings import Settings
from cacheyd.store.records import TagVariant

_SCHEMA_1 = frozenset({SCHEMA_1, SCHEMA_1_SIGNED, "application/json"})
# With more types, or longer types, nothing is remembered: registries know about ten types, of 80 characters at most.
MAX_ASKED, MAX_ASKED_TYPE = 32, 127


def asked_types(types: frozenset[str]) -> frozenset[str]:
    """The media types in Accept by which registries choose a manifest: docker-registry, for example, ignores wildcards."""
    return _asked_cached(types) if len(types) <= MAX_ASKED else _asked(types)


def _asked(types: frozenset[str]) -> frozenset[str]:
    return frozenset(t for t in types if "*" not in t) - _SCHEMA_1


_asked_cached = lru_cache(maxsize=1024)(_asked)


def is_memorable(asked: frozenset[str]) -> bool:
    """Whether the cache remembers a tag's answer for clients with these types: it has to remember the types, too."""
    return len(asked) <= MAX_ASKED and all(len(name) <= MAX_ASKED_TYPE for name in asked) and are_all(asked)


def tag_ttl(settings: Settings, ref: Reference) -> float:
    """How long a tag's answer counts (seconds): by the first pattern that matches, else `tag_ttl`."""
    registry = settings.registry(ref.registry)
    return next((ttl for pattern, ttl in registry.tag_ttls if fnmatchcase(ref.reference, pattern)), registry.tag_ttl)


def same_answer(variant: TagVariant, asked: frozenset[str], types: frozenset[str]) -> bool:
    """Whether upstream would give a client that asks with `asked` the same image as for `variant`.

    With the same Accept upstream gives the same image. With fewer types it does so if the type that it chose is among them:
    fewer types offer upstream no better choice. With more types upstream can choose a better type, so the cache asks.
    """
    if not accepts(types, variant.media_type):
        return False
    return asked == variant.asked or (variant.media_type.lower() in asked and asked <= variant.asked)


def find_variant(variants: Iterable[TagVariant], asked: frozenset[str], types: frozenset[str]) -> TagVariant | None:
    """The newest of a tag's variants that is right for this client; None if none is."""
    found = [variant for variant in variants if same_answer(variant, asked, types)]
    return max(found, key=lambda variant: variant.checked, default=None)


def is_fresh(variant: TagVariant, ttl: float, now: float) -> bool:
    """Whether the cache need not ask for the tag again; a clock that went backwards makes a tag stale, not fresh for ever."""
    return 0 <= now - variant.checked < ttl


def may_be_stale(variant: TagVariant, stale_if_error: float, now: float) -> bool:
    """Whether the tag may be served although upstream could not confirm it."""
    return now - variant.checked < stale_if_error
