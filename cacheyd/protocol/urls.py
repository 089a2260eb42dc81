"""URLs that requests go to, as one parser reads them: what is checked is what is sent.

Sources: RFC 3986 and RFC 9110 section 4.2; of what is not allowed in a URI but met in a Location,
https://github.com/curl/curl/issues/473.
"""

import re
from dataclasses import dataclass
from urllib.parse import quote, urljoin

from cacheyd.protocol.hosts import canonical_host, split_port

_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE | re.DOTALL)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
# What is not encoded in a path. Brackets should be, but everybody sends them as they are, and signatures cover them.
_PATH = "!$%&'()*+,/:;=@[]~"
# In a query, all that is printable: signers are tested with Go's clients, which encode none of it.
_QUERY = _PATH + '?"<>\\^`{|}'


@dataclass(frozen=True, slots=True)
class Url:
    """An http or https URL. `host` is canonical, an IPv6 address without brackets; `path` has the query with it."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def site(self) -> tuple[str, str, int]:
        """Scheme, host and port: the origin in the sense of RFC 9110 section 4.3.1."""
        return self.scheme, self.host, self.port


def default_port(scheme: str) -> int:
    """The port of http and https."""
    return 443 if scheme == "https" else 80


def parse_url(text: str) -> Url:
    """The parts of a URL. Path and query stay byte for byte; only what cannot be sent like that is percent-encoded.

    Raises ValueError for other schemes than http and https, for user info, for wrong hosts, and for control characters: a
    line break would begin another header, and parsers that skip some controls read another host.
    """
    match = _URL.fullmatch(text)
    if match is None or _CONTROLS.search(text):
        raise ValueError("no http or https URL")
    host, port = split_port(match[2])
    scheme = match[1].lower()
    path, question, query = match[3].partition("?")
    path = quote(path, safe=_PATH, errors="surrogateescape")
    query = question + quote(query, safe=_QUERY, errors="surrogateescape")
    return Url(
        scheme,
        canonical_host(host.removesuffix(".")).strip("[]"),
        int(port) if port else default_port(scheme),
        (path or "/") + query,
    )


def is_upgrade(known: Url, url: Url) -> bool:
    """Whether `url` is the same host as `known`, by TLS: at the ports of both schemes (80, 443), or at the very same one.

    Another port is another server, which may be anybody's. Never the other way: what was sent by TLS must not go by http.
    """
    same_place = known.port == url.port or (known.port, url.port) == (80, 443)
    return (known.scheme, url.scheme) == ("http", "https") and known.host == url.host and same_place


def resolve(url: str, location: str) -> str:
    """Where a Location leads to from `url`; byte for byte, unless it is a relative path. Raises ValueError."""
    if _CONTROLS.search(location):
        raise ValueError("no URL")
    if _SCHEME.match(location):
        return location
    scheme, _, rest = url.partition("//")
    if location.startswith("//"):
        return scheme + location
    if location.startswith("/") and "/." not in location:
        return f"{scheme}//{re.split('[/?#]', rest, maxsplit=1)[0]}{location}"
    return urljoin(url, location)


def from_field(value: str) -> str:
    """A URL out of a header's value, which has a character for each byte (latin-1): UTF-8 where it is that.

    Raises ValueError.
    """
    return value.encode("latin-1").decode("utf-8", "surrogateescape")
