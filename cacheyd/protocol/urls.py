"""The URLs of requests. One parser reads them, so cacheyd sends exactly the URL that it has checked.

Sources: RFC 3986 and RFC 9110 section 4.2; for characters that a URI must not have, but that servers send in a Location,
https://github.com/curl/curl/issues/473.
"""

import re
from dataclasses import dataclass
from urllib.parse import quote, urljoin

from cacheyd.protocol.hosts import canonical_host, split_port

_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE | re.DOTALL)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
# The characters that stay unencoded in a path. Brackets should be encoded, but all servers send them as they are, and
# signatures cover them.
_PATH = "!$%&'()*+,/:;=@[]~"
# In a query, all printable characters: the authors of signers test them with Go's clients, which encode none of these.
_QUERY = _PATH + '?"<>\\^`{|}'


@dataclass(frozen=True, slots=True)
class Url:
    """An http or https URL. `host` is canonical, an IPv6 address has no brackets; `path` includes the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def site(self) -> tuple[str, str, int]:
        """Scheme, host and port: the origin in the sense of RFC 9110 section 4.3.1."""
        return self.scheme, self.host, self.port


def default_port(scheme: str) -> int:
    """The default port of http or https."""
    return 443 if scheme == "https" else 80


def parse_url(text: str) -> Url:
    """The parts of a URL. Path and query stay byte for byte, except for percent-encoding where a request must have it.

    Raises ValueError for other schemes than http and https, for user info, for invalid hosts, and for control characters: a
    line break would begin another header, and parsers that skip some control characters would read another host.
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
    """Whether `url` is the host of `known`, but with TLS: from port 80 to port 443, or at the same port.

    Another port is another server, which can belong to somebody else. https to http is never an upgrade: data for TLS must
    not go over http.
    """
    same_place = known.port == url.port or (known.port, url.port) == (80, 443)
    return (known.scheme, url.scheme) == ("http", "https") and known.host == url.host and same_place


def resolve(url: str, location: str) -> str:
    """The URL that a Location leads to from `url`; byte for byte, unless it is a relative path. Raises ValueError."""
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
    """The URL in a header's value, which has one character for each byte (latin-1). Decodes valid UTF-8.

    Raises ValueError.
    """
    return value.encode("latin-1").decode("utf-8", "surrogateescape")
