"""The media types that a client accepts (RFC 9110 section 12.5.1)."""

import hashlib
import re
from functools import lru_cache

# Longer Accept lines are not cached, but parsed each time: invented lines must not fill the memory (characters).
CACHED_ACCEPT = 1 << 10
# The most characters of all Accept lines, the most media types, and the most characters of one media type that the parser
# reads (RFC 6838 section 4.2: no type has more than 255 characters).
MAX_ACCEPT, MAX_TYPES, MAX_TYPE = 4 << 10, 64, 255
# The beginning of the mark that stands for all types that the parser did not read. No media type begins like this.
_MORE = "..."


def accepted_types(accept: tuple[str, ...]) -> frozenset[str]:
    """The media types in Accept lines (RFC 9110 section 12.5.1), in lower case, without parameters and without types of q=0.

    If there are far too many types, the result has the first types and one mark for all others (see `are_all`).
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
    """Whether `types` holds all types that the client accepts, without a mark for others."""
    return not any(name.startswith(_MORE) for name in types)


def accepts(types: frozenset[str], media_type: str) -> bool:
    """Whether a client that named `types` accepts `media_type`. A client without Accept accepts everything (RFC 9110)."""
    if not types or media_type.lower() in types or "*/*" in types:
        return True
    return f"{media_type.lower().partition('/')[0]}/*" in types
