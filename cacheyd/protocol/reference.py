"""Parses a request target once, at the edge, into frozen values; nothing behind it parses again.

Sources: OCI distribution-spec ("Pulling manifests", "Pulling blobs", the grammar of names, tags and digests) and
containerd's `ns` query parameter (https://github.com/containerd/containerd/blob/main/docs/hosts.md).
"""

import hashlib
import ipaddress
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from urllib.parse import unquote, unquote_plus

import idna

# Loaded on demand else: on the event loop, at the first such host.
import idna.uts46data

from cacheyd.protocol.errors import Code, RequestError, client_error

NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
DIGEST = re.compile(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}")
# A digest, or the beginning of one as tools show it: docker takes it for no name, either.
_BARE_DIGEST = re.compile(r"sha(?:256|512):[a-f0-9]{12,128}")
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9_.-]*[a-z0-9])?")
_IPV6 = re.compile(r"\[[0-9a-f:.]+\]")
# What ends in a number is an address or nothing (https://url.spec.whatwg.org/#ends-in-a-number-checker).
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[0-9]{1,5}")
# The last 32 bits of these are an IPv4 address: IPv4-compatible, IPv4-translated (RFC 2765), NAT64 (RFC 6052, RFC 8215).
_EMBEDDING = tuple(
    map(ipaddress.IPv6Network, ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")),
)
MAX_NAME = 255
# RFC 1035 section 2.3.4, without the length bytes.
MAX_HOST, MAX_LABEL = 253, 63
# A longer target, or query of a list, is refused with 414 (characters): the longest right name, tag and ns are below 1 KiB.
MAX_TARGET, MAX_QUERY = 8 << 10, 2 << 10
# Longer ones are parsed each time: what strangers make up must not fill the memory (characters).
CACHED_TARGET, CACHED_ACCEPT = 512, 1 << 10
# Of more than this, media types are not all looked at (RFC 6838 section 4.2: none has more than 255 characters).
MAX_ACCEPT, MAX_TYPES, MAX_TYPE = 4 << 10, 64, 255
# Stands among the types for those that were not looked at; no media type begins like that.
_MORE = "..."

DOCKER_HUB = "docker.io"
_DOCKER_ALIASES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "registry.docker.io"})

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCTET_STREAM = "application/octet-stream"
# The first manifest schema, plain and signed: nobody serves it any more, some clients still name it.
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+json"
SCHEMA_1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"


class Kind(StrEnum):
    """What a request is about."""

    MANIFEST = "manifest"
    BLOB = "blob"
    TAGS = "tags"
    REFERRERS = "referrers"


@dataclass(frozen=True, slots=True)
class Reference:
    """One thing in one repository of one registry.

    `registry` is the canonical namespace (`docker.io` for each of Docker Hub's names); `ns` is what the client called it.
    `reference` is a tag or a digest; `digest` is the same where it is a digest, else None. `query` is what goes upstream
    for tag lists and referrers: the client's query without `ns`, byte for byte.
    """

    registry: str
    repository: str
    kind: Kind
    reference: str
    digest: str | None
    ns: str
    query: str = ""

    @property
    def name(self) -> str:
        """Registry and repository, as objects and tags remember them."""
        return f"{self.registry}/{self.repository}"

    @property
    def path(self) -> str:
        """The path at the upstream, with its query."""
        match self.kind:
            case Kind.MANIFEST:
                tail = f"manifests/{self.reference}"
            case Kind.BLOB:
                tail = f"blobs/{self.reference}"
            case Kind.TAGS:
                tail = "tags/list"
            case Kind.REFERRERS:
                tail = f"referrers/{self.reference}"
        return f"/v2/{self.repository}/{tail}" + (f"?{self.query}" if self.query else "")

    @property
    def scoped(self) -> bool:
        """Whether the client named the registry with `ns` (and so is owed `OCI-Namespace`)."""
        return bool(self.ns)


@dataclass(frozen=True, slots=True)
class ImageName:
    """An image as people and containerd name it: `docker.io/library/alpine:3.22`, `ghcr.io/acme/app@sha256:…`.

    A digest says more than a tag; what has both is what has the digest.
    """

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Registry and repository, as objects and tags remember them."""
        return f"{self.registry}/{self.repository}"

    @property
    def reference(self) -> str:
        """What the manifest is asked for by."""
        return self.digest or self.tag

    def __str__(self) -> str:
        tag, digest = (f":{self.tag}" if self.tag else ""), (f"@{self.digest}" if self.digest else "")
        return f"{self.name}{tag}{digest}"

    def part(self, kind: Kind, reference: str, ns: str = "") -> Reference:
        """A manifest or blob of this repository."""
        digest = reference if DIGEST.fullmatch(reference) else None
        return Reference(self.registry, self.repository, kind, reference, digest, ns)


@dataclass(frozen=True, slots=True)
class Page:
    """A path of cacheyd itself: `/`, `/v2/`, `/metrics`, `/healthz`, `/readyz`."""

    path: str


PAGES = frozenset({"/", "/v2/", "/v2", "/metrics", "/healthz", "/readyz"})

_ROUTE = re.compile(r"/v2/(?P<name>.+)/(?P<what>manifests|blobs|referrers)/(?P<ref>[^/]*)")
_TAGS_ROUTE = re.compile(r"/v2/(?P<name>.+)/tags/list")


def canonical_host(host: str) -> str:
    """The one form of a host: ASCII (IDNA 2008), lower case, an IPv6 address in brackets. Raises ValueError for what is none.

    Numbers are read as inet_aton(3) does, which is what resolvers and proxies make of them: `127.1`, `2130706433` and
    `0x7f000001` are 127.0.0.1. So is `[::ffff:127.0.0.1]`, to which Linux connects by IPv4 (RFC 4291 section 2.5.5.2).
    """
    name = host.lower()
    if len(name) > MAX_HOST:
        raise ValueError("too long")
    if name.startswith("["):
        if not _IPV6.fullmatch(name):
            raise ValueError("no IPv6 address")
        address = ipaddress.IPv6Address(name[1:-1])
        return f"[{address}]" if address.ipv4_mapped is None else str(address.ipv4_mapped)
    if not name.isascii():
        # Of what users type (UTS 46) as browsers and Go's clients read it; an IDNAError is a ValueError.
        name = idna.encode(host, uts46=True, std3_rules=False).decode("ascii")
    labels = name.split(".")
    if not _HOST.fullmatch(name) or len(name) > MAX_HOST or not all(0 < len(label) <= MAX_LABEL for label in labels):
        raise ValueError("no host name")
    if not _NUMBER.fullmatch(labels[-1]):
        return name
    try:
        return socket.inet_ntoa(socket.inet_aton(name))
    except OSError:
        raise ValueError("no IPv4 address") from None


def split_port(authority: str) -> tuple[str, str | None]:
    """Host and port, None where there is none. Not checked, but for a port that is a number of at most 5 digits.

    Raises ValueError.
    """
    at = authority.find(":", authority.find("]") + 1 if authority.startswith("[") else 0)
    if at < 0:
        return authority, None
    if not _PORT.fullmatch(authority, at + 1) or not 0 < int(authority[at + 1 :]) < 65536:
        raise ValueError("no port")
    return authority[:at], authority[at + 1 :]


def canonical_registry(ns: str) -> str:
    """The registry that a client means by `ns`: `host[:port]` in one form, Docker Hub's names as `docker.io`.

    Raises RequestError 400 for anything else: user info, paths, control characters, ports over 65535.
    """
    try:
        if len(ns) > MAX_NAME:
            raise ValueError("too long")
        host, port = split_port(ns)
        name = canonical_host(host)
    except ValueError:
        message = "ns is not a registry: it must be host or host:port"
        raise client_error(400, Code.NAME_INVALID, message, ns=ns[:MAX_NAME]) from None
    if port is not None and int(port) != 443:
        # https is what a registry speaks unless it is configured: its port may be left out, and means no other registry.
        name = f"{name}:{int(port)}"
    return DOCKER_HUB if name in _DOCKER_ALIASES else name


def embedded(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    """The IPv4 addresses that packets to an IPv6 address may end at."""
    if not isinstance(ip, ipaddress.IPv6Address) or ip.is_loopback or ip.is_unspecified:
        return
    yield from filter(None, (ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())))
    # ISATAP (RFC 5214) has its mark in the middle, whatever the network.
    if any(ip in network for network in _EMBEDDING) or (int(ip) >> 32) & 0xFDFFFFFF == 0x5EFE:
        yield ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)


def names_of(registry: str) -> tuple[str, ...]:
    """The canonical names of a registry: its own one, and those of the IPv4 addresses in an IPv6 address."""
    if not registry.startswith("["):
        return (registry,)
    host, _, port = registry[1:].partition("]")
    return registry, *(f"{ip}{port}" for ip in embedded(ipaddress.IPv6Address(host)))


def has_registry(name: str) -> bool:
    """Whether a name begins with a registry, as docker tells: its first part has a dot or a port, or is `localhost`."""
    first, slash, _ = name.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost")


def _split_prefix(name: str, default_registry: str) -> tuple[str, str]:
    """Registry and repository of a request without `ns`: the first component if it looks like a host."""
    if has_registry(name):
        first, _, rest = name.partition("/")
        return _under(canonical_registry(first), rest)
    if default_registry:
        return _under(default_registry, name)
    raise client_error(
        400,
        Code.NAME_INVALID,
        "which registry? cacheyd needs ?ns=<registry> (containerd's hosts.toml adds it) or /v2/<registry host>/<name>/…",
        name=name[:MAX_NAME],
    )


def _after_prefix(name: str, registry: str) -> str:
    """The repository of a request with `ns`: what follows the first component if that, too, names the registry of `ns`.

    containerd's `override_path` and buildkit's mirrors send both.
    """
    if not has_registry(name):
        return name
    first, _, rest = name.partition("/")
    try:
        return _under(registry, rest)[1] if canonical_registry(first) == registry else name
    except RequestError:
        return name


def _under(registry: str, rest: str) -> tuple[str, str]:
    """Registry and repository as images are named: one part under Docker Hub is short for an image in `library`.

    Docker Hub itself has no repository of one part; what is asked for by `ns` alone is passed on as it is.
    """
    return registry, f"library/{rest}" if registry == DOCKER_HUB and "/" not in rest else rest


def parse_image(name: str, *, default_tag: str = "latest") -> ImageName:
    """The image that docker means by a name: `alpine` is `docker.io/library/alpine:latest`. Raises ValueError."""
    if _BARE_DIGEST.fullmatch(name):
        raise ValueError(f"{name!r} is a digest without a name; an image is named like ghcr.io/acme/app@{name}")
    rest, at, digest = name.partition("@")
    first, _, path = rest.partition("/")
    named = has_registry(rest)
    try:
        registry = canonical_registry(first) if named else DOCKER_HUB
    except RequestError:
        raise ValueError(f"{name!r} does not begin with a registry: it must be host or host:port") from None
    repository, colon, tag = (path if named else rest).partition(":")
    if registry == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    if len(repository) > MAX_NAME or not NAME.fullmatch(repository):
        raise ValueError(f"{name!r} is not the name of an image (lower case, like ghcr.io/acme/app:1.0)")
    if colon and not TAG.fullmatch(tag):
        raise ValueError(f"{name!r}: no tag can be {tag!r}")
    if at and not DIGEST.fullmatch(digest):
        raise ValueError(f"{name!r}: the digest is not one (sha256: and 64 hexadecimal digits)")
    return ImageName(registry, repository, tag or ("" if at else default_tag), digest)


def _check(kind: Kind, reference: str) -> str | None:
    """The digest, or None for a tag; raises what an origin registry would answer."""
    if DIGEST.fullmatch(reference):
        return reference
    if kind is not Kind.MANIFEST or ":" in reference:
        raise client_error(400, Code.DIGEST_INVALID, "the digest is not valid", digest=reference[:200])
    if not TAG.fullmatch(reference):
        raise client_error(404, Code.MANIFEST_UNKNOWN, "no tag can have this name", tag=reference[:200])
    return None


def parse_target(target: str, default_registry: str = "") -> Reference | Page:
    """What a request target (origin-form, RFC 9112 section 3.2.1) asks for.

    Raises RequestError with the status and code that a registry gives for it: 404 for an unknown path, 400 for a missing
    or wrong `ns`, name or digest, 414 for what is too long.
    """
    if len(target) <= CACHED_TARGET:
        return _parse_cached(target, default_registry)
    if len(target) > MAX_TARGET:
        raise client_error(414, Code.UNSUPPORTED, f"the request target has more than {MAX_TARGET} bytes")
    return _parse_target(target, default_registry)


def _parse_target(target: str, default_registry: str) -> Reference | Page:
    raw_path, _, raw_query = target.partition("?")
    path = unquote(raw_path)
    if path in PAGES:
        return Page("/v2/" if path == "/v2" else path)
    ns = next((unquote_plus(part.partition("=")[2]) for part in raw_query.split("&") if is_ns(part)), "")
    registry = canonical_registry(ns) if ns else ""
    try:
        return _parse_path(path, raw_query, registry, ns, default_registry)
    except RequestError as error:
        if not ns:
            raise
        headers = (*error.failure.headers, ("OCI-Namespace", ns))
        raise RequestError(replace(error.failure, headers=headers)) from None


_parse_cached = lru_cache(maxsize=8192)(_parse_target)


def name_to_ask(ref: Reference) -> str:
    """The name in the path by which who sent `ref` asks for the same repository again, with `ns` if there was one."""
    if ref.scoped and _after_prefix(ref.repository, ref.registry) == ref.repository:
        return ref.repository
    return ref.name


def is_ns(part: str) -> bool:
    """Whether this part of a query is `ns`, which is for this cache and no registry."""
    name = part.partition("=")[0]
    return name == "ns" or ("%" in name and unquote_plus(name) == "ns")


def _parse_path(path: str, raw_query: str, registry: str, ns: str, default_registry: str) -> Reference:
    if match := _ROUTE.fullmatch(path):
        kind = {"manifests": Kind.MANIFEST, "blobs": Kind.BLOB, "referrers": Kind.REFERRERS}[match["what"]]
        name, reference = match["name"], match["ref"]
    elif match := _TAGS_ROUTE.fullmatch(path):
        kind, name, reference = Kind.TAGS, match["name"], ""
    else:
        raise client_error(404, Code.UNSUPPORTED, "no such path: cacheyd serves /v2/<name>/manifests, blobs, tags, referrers")
    if registry:
        repository = _after_prefix(name, registry)
    else:
        registry, repository = _split_prefix(name, default_registry)
    if len(repository) > MAX_NAME or not NAME.fullmatch(repository):
        raise client_error(400, Code.NAME_INVALID, "the repository name is not valid", name=repository[:MAX_NAME])
    digest = None if kind is Kind.TAGS else _check(kind, reference)
    query = ""
    if kind in (Kind.TAGS, Kind.REFERRERS):
        query = "&".join(part for part in raw_query.split("&") if part and not is_ns(part))
        if len(query) > MAX_QUERY:
            raise client_error(414, Code.UNSUPPORTED, f"the query has more than {MAX_QUERY} bytes")
    return Reference(registry, repository, kind, reference, digest, ns, query)


def accepted_types(accept: tuple[str, ...]) -> frozenset[str]:
    """The media types that Accept lines (RFC 9110 section 12.5.1) name, lower case, without parameters; q=0 excludes one.

    Where they are absurdly many, only the first ones, and a mark of their own for the rest (`are_all` tells).
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
