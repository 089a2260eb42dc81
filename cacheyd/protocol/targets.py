"""Parses a request target once, at the edge, into frozen values; no other code parses it again.

Sources: OCI distribution-spec ("Pulling manifests", "Pulling blobs") and containerd's `ns` query parameter
(https://github.com/containerd/containerd/blob/main/docs/hosts.md).
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from urllib.parse import unquote, unquote_plus

from cacheyd.protocol.digest import DIGEST
from cacheyd.protocol.errors import Code, RequestError, client_error
from cacheyd.protocol.reference import MAX_NAME, NAME, TAG, Kind, Reference
from cacheyd.protocol.registries import DOCKER_HUB, canonical_registry, has_registry

# The most characters of a target, and of the query of a list. cacheyd refuses a longer one with 414: the longest valid name,
# tag and ns together are below 1 KiB.
MAX_TARGET, MAX_QUERY = 8 << 10, 2 << 10
# Longer targets are not cached, but parsed each time: invented targets must not fill the memory (characters).
CACHED_TARGET = 512


@dataclass(frozen=True, slots=True)
class Page:
    """A path of cacheyd itself: `/`, `/v2/`, `/metrics`, `/healthz`, `/readyz`."""

    path: str


PAGES = frozenset({"/", "/v2/", "/v2", "/metrics", "/healthz", "/readyz"})
_ROUTE = re.compile(r"/v2/(?P<name>.+)/(?P<what>manifests|blobs|referrers)/(?P<ref>[^/]*)")
_TAGS_ROUTE = re.compile(r"/v2/(?P<name>.+)/tags/list")


def _split_prefix(name: str, default_registry: str) -> tuple[str, str]:
    """Registry and repository of a request without `ns`. The first component is the registry if it looks like a host."""
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
    """The repository of a request with `ns`: the name without its first component, if this component names the same registry.

    containerd's `override_path` and buildkit's mirrors name the registry in both places.
    """
    if not has_registry(name):
        return name
    first, _, rest = name.partition("/")
    try:
        return _under(registry, rest)[1] if canonical_registry(first) == registry else name
    except RequestError:
        return name


def _under(registry: str, rest: str) -> tuple[str, str]:
    """Registry and full repository: at Docker Hub, a name of one part is short for an image in `library`.

    Docker Hub itself has no repository with one part. If the client names the registry only by `ns`, the name stays as it is.
    """
    return registry, f"library/{rest}" if registry == DOCKER_HUB and "/" not in rest else rest


def _check(kind: Kind, reference: str) -> str | None:
    """The digest, or None for a tag. Raises RequestError with the status and code that an origin would answer."""
    if DIGEST.fullmatch(reference):
        return reference
    if kind is not Kind.MANIFEST or ":" in reference:
        raise client_error(400, Code.DIGEST_INVALID, "the digest is not valid", digest=reference[:200])
    if not TAG.fullmatch(reference):
        raise client_error(404, Code.MANIFEST_UNKNOWN, "no tag can have this name", tag=reference[:200])
    return None


def parse_target(target: str, default_registry: str = "") -> Reference | Page:
    """The reference or the page that a request target (origin-form, RFC 9112 section 3.2.1) asks for.

    Raises RequestError with the status and code that a registry would answer: 404 for an unknown path, 400 for a missing
    or wrong `ns`, name or digest, 414 if the target is too long.
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
    """The name for a path with which the client of `ref` can ask for the same repository again (with its `ns`, if any)."""
    if ref.scoped and _after_prefix(ref.repository, ref.registry) == ref.repository:
        return ref.repository
    return ref.name


def is_ns(part: str) -> bool:
    """Whether this part of a query is `ns`, which is for this cache and not for a registry."""
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
