"""A request as it came in, parsed once at the edge."""

from dataclasses import dataclass

from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.reference import Reference


@dataclass(frozen=True, slots=True)
class Request:
    """A GET or HEAD of something in a registry, as the client sent it; `headers` are those that may go upstream."""

    method: str
    ref: Reference
    headers: HeaderList
    accept: tuple[str, ...] = ()
    range: str | None = None
    if_range: str | None = None
    if_none_match: str | None = None

    @property
    def head(self) -> bool:
        """Whether no body is wanted."""
        return self.method == "HEAD"


# The client's headers that an upstream is to see, and no others: never cookies, hop-by-hop headers or ns.
FORWARDED = {"accept": "Accept", "authorization": "Authorization", "user-agent": "User-Agent"}


def parse_request(method: str, ref: Reference, headers: HeaderList) -> Request:
    """The request of a client; of its headers only those that count here, or that an upstream may see."""
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
