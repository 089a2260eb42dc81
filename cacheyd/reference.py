"""Parses a request target once, at the edge, into frozen values; nothing behind it parses again.

Sources: OCI distribution-spec ("Pulling manifests", "Pulling blobs", the grammar of names, tags and digests) and
containerd's `ns` query parameter (https://github.com/containerd/containerd/blob/main/docs/hosts.md).
"""

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from urllib.parse import parse_qsl, unquote

from cacheyd.errors import Code, RequestError, client_error

NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
DIGEST = re.compile(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}")
HOST = re.compile(r"(?P<host>[a-z0-9](?:[a-z0-9_.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
MAX_NAME = 255

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


def canonical_registry(ns: str) -> str:
    """The registry that a client means by `ns`: `host[:port]`, lower case, Docker Hub's names as `docker.io`.

    Raises RequestError 400 for anything else: user info, paths, control characters, ports over 65535.
    """
    name = ns.lower()
    if not name.isascii():
        try:
            host, colon, port = name.partition(":")
            name = host.encode("idna").decode() + colon + port
        except UnicodeError:
            name = ""
    match = HOST.fullmatch(name)
    if not match or ".." in name or len(name) > MAX_NAME or not 0 < int(match["port"] or 1) < 65536:
        raise client_error(400, Code.NAME_INVALID, "ns is not a registry: it must be host or host:port", ns=ns[:MAX_NAME])
    if match["port"]:
        # https is what a registry speaks unless it is configured: its port may be left out, and means no other registry.
        name = match["host"] if int(match["port"]) == 443 else f"{match['host']}:{int(match['port'])}"
    return DOCKER_HUB if name in _DOCKER_ALIASES else name


def has_registry(name: str) -> bool:
    """Whether a name begins with a registry, as docker tells: its first part has a dot or a port, or is `localhost`."""
    first, slash, _ = name.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost")


def _split_prefix(name: str, default_registry: str) -> tuple[str, str]:
    """Registry and repository of a request without `ns`: the first component if it looks like a host."""
    if has_registry(name):
        first, _, rest = name.partition("/")
        return canonical_registry(first), rest
    if default_registry:
        return default_registry, name
    raise client_error(
        400,
        Code.NAME_INVALID,
        "which registry? cacheyd needs ?ns=<registry> (containerd's hosts.toml adds it) or /v2/<registry host>/<name>/…",
        name=name[:MAX_NAME],
    )


def parse_image(name: str, *, default_tag: str = "latest") -> ImageName:
    """The image that docker means by a name: `alpine` is `docker.io/library/alpine:latest`. Raises ValueError."""
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


@lru_cache(maxsize=8192)
def parse_target(target: str, default_registry: str = "") -> Reference | Page:
    """What a request target (origin-form, RFC 9112 section 3.2.1) asks for.

    Raises RequestError with the status and code that a registry gives for it: 404 for an unknown path, 400 for a missing
    or wrong `ns`, name or digest.
    """
    raw_path, _, raw_query = target.partition("?")
    path = unquote(raw_path)
    if path in PAGES:
        return Page("/v2/" if path == "/v2" else path)
    ns = next((value for key, value in parse_qsl(raw_query, keep_blank_values=True) if key == "ns"), "")
    registry = canonical_registry(ns) if ns else ""
    try:
        return _parse_path(path, raw_query, registry, ns, default_registry)
    except RequestError as error:
        if not ns:
            raise
        headers = (*error.failure.headers, ("OCI-Namespace", ns))
        raise RequestError(replace(error.failure, headers=headers)) from None


def _parse_path(path: str, raw_query: str, registry: str, ns: str, default_registry: str) -> Reference:
    if match := _ROUTE.fullmatch(path):
        kind = {"manifests": Kind.MANIFEST, "blobs": Kind.BLOB, "referrers": Kind.REFERRERS}[match["what"]]
        name, reference = match["name"], match["ref"]
    elif match := _TAGS_ROUTE.fullmatch(path):
        kind, name, reference = Kind.TAGS, match["name"], ""
    else:
        raise client_error(404, Code.UNSUPPORTED, "no such path: cacheyd serves /v2/<name>/manifests, blobs, tags, referrers")
    repository = name
    if not registry:
        registry, repository = _split_prefix(name, default_registry)
    if len(repository) > MAX_NAME or not NAME.fullmatch(repository):
        raise client_error(400, Code.NAME_INVALID, "the repository name is not valid", name=repository[:MAX_NAME])
    digest = None if kind is Kind.TAGS else _check(kind, reference)
    query = ""
    if kind in (Kind.TAGS, Kind.REFERRERS):
        query = "&".join(part for part in raw_query.split("&") if part and unquote(part.partition("=")[0]) != "ns")
    return Reference(registry, repository, kind, reference, digest, ns, query)


@lru_cache(maxsize=1024)
def accepted_types(accept: tuple[str, ...]) -> frozenset[str]:
    """The media types that Accept lines (RFC 9110 section 12.5.1) name, lower case, without parameters; q=0 excludes one."""
    types = set()
    for line in accept:
        for item in line.split(","):
            name, *params = (part.strip().lower() for part in item.split(";"))
            if name and not any(re.fullmatch(r"q=0(\.0*)?", param) for param in params):
                types.add(name)
    return frozenset(types)


def accepts(types: frozenset[str], media_type: str) -> bool:
    """Whether a client that named `types` takes `media_type`. No Accept at all takes everything (RFC 9110)."""
    if not types or media_type.lower() in types or "*/*" in types:
        return True
    return f"{media_type.lower().partition('/')[0]}/*" in types
