"""A client's request, parsed once when it comes in."""

from dataclasses import dataclass
from functools import cached_property

from cacheyd.cache.freshness import asked_types
from cacheyd.protocol.accept import accepted_types, accepts
from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.ranges import Part, RangeRequest, if_range_holds, parse_range
from cacheyd.protocol.reference import Reference


@dataclass(frozen=True)
class Request:
    """A GET or HEAD of an object, tag or list, as the client sent it; `headers` are those that upstream may see.

    The other headers are parsed only when they are needed, and once: most hits need few of them.
    """

    method: str
    ref: Reference
    headers: HeaderList
    accept: tuple[str, ...] = ()
    range: str | None = None
    if_range: str | None = None
    if_none_match: str | None = None

    @property
    def head(self) -> bool:
        """Whether the client wants no body."""
        return self.method == "HEAD"

    @cached_property
    def types(self) -> frozenset[str]:
        """The media types that the client accepts."""
        return accepted_types(self.accept)

    @cached_property
    def asked(self) -> frozenset[str]:
        """The media types of `types` by which registries choose a manifest."""
        return asked_types(self.types)

    @cached_property
    def ranges(self) -> RangeRequest | None:
        """The ranges in the Range header, whether or not the answer must follow it."""
        return parse_range(self.range)

    @cached_property
    def wanted(self) -> RangeRequest | None:
        """The parts of the object that the client asks for; None for the whole object (no Range, HEAD, a stale If-Range)."""
        if self.head or not if_range_holds(self.if_range, f'"{self.ref.digest}"'):
            return None
        return self.ranges

    def parts(self, size: int) -> tuple[Part, ...]:
        """The parts of `size` bytes that the answer must have; empty for the whole object. Raises Unsatisfiable."""
        wanted = self.wanted
        parts = () if wanted is None else wanted.parts(size)
        if wanted is None or len(wanted.specs) == 1:
            return parts
        # Clients that ask for several ranges do not expect a 206 with one part. Ranges of more bytes than the object has are
        # an attack, or from a client that is better served with the whole object (RFC 9110 section 14.2).
        return parts if len(parts) > 1 and sum(part.length for part in parts) <= size else ()

    def takes(self, media_type: str) -> bool:
        """Whether the client accepts an object of this type; False if the type is unknown."""
        return bool(media_type) and accepts(self.types, media_type)

    def knows(self, digest: str) -> bool:
        """Whether the client has this object already (RFC 9110 section 13.1.2, weak comparison)."""
        if self.if_none_match is None:
            return False
        tags = {tag.strip().removeprefix("W/") for tag in self.if_none_match.split(",")}
        return "*" in tags or f'"{digest}"' in tags


# The client's headers that an upstream may see, and no others: never cookies, hop-by-hop headers or ns.
FORWARDED = {"accept": "Accept", "authorization": "Authorization", "user-agent": "User-Agent"}


def parse_request(method: str, ref: Reference, headers: HeaderList) -> Request:
    """The request of a client, with only those of its headers that the cache uses or that an upstream may see."""
    forwarded, accept = [], []
    range_ = if_range = if_none_match = None
    for name, value in headers:
        key = name.lower()
        if key in FORWARDED:
            forwarded.append((FORWARDED[key], value))
            if key == "accept":
                accept.append(value)
        elif key == "range":
            range_ = value
        elif key == "if-range":
            if_range = value
        elif key == "if-none-match":
            if_none_match = value
    return Request(method, ref, tuple(forwarded), tuple(accept), range_, if_range, if_none_match)
