"""The media types that a client accepts (RFC 9110 section 12.5.1)."""

import hashlib
import re
from functools import lru_cache

# Longer lines are parsed each time: what strangers make up must not fill the memory (characters).
CACHED_ACCEPT = 1 << 10
# Of more than this, media types are not all looked at (RFC 6838 section 4.2: none has more than 255 characters).
MAX_ACCEPT, MAX_TYPES, MAX_TYPE = 4 << 10, 64, 255
# Begins the mark that stands for all types that were not looked at. No media type begins like that.
_MORE = "..."


def accepted_types(accept: tuple[str, ...]) -> frozenset[str]:
    """The media types that Accept lines (RFC 9110 section 12.5.1) name, lower case, without parameters; q=0 excludes one.

    Of absurdly many, these are the first ones, and one mark that stands for all others (see `are_all`).
    """
    return _types_cached(accept) if sum(map(len, accept)) <= CACHED_ACCEPT else _types(accept)


def _types(accept: tuple[str, ...]) -> frozenset[str]:
    text, types = ",".join(accept), set[str]()
    whole = len(text) <= MAX_ACCEPT
    for item in (text if whole else text[:MAX_ACCEPT].rpartition(",")[0]).split(","):
        name, *params = (part.strip().lower() for part in item.split(";"))
        if name and len(name) <= MAX_TYPE and not any(re.fullmatch(r"q=0(\.0*)?", param) for param in params):
            types.add(name)
        if len(types) > MAX_TYPES:
            whole = False
            break
    if not whole:
        types.add(_MORE + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest())
    return frozenset(types)


_types_cached = lru_cache(maxsize=1024)(_types)


def are_all(types: frozenset[str]) -> bool:
    """Whether these are all the types that a client accepts."""
    return not any(name.startswith(_MORE) for name in types)


def accepts(types: frozenset[str], media_type: str) -> bool:
    """Whether a client that named `types` takes `media_type`. No Accept at all takes everything (RFC 9110)."""
    if not types or media_type.lower() in types or "*/*" in types:
        return True
    return f"{media_type.lower().partition('/')[0]}/*" in types
