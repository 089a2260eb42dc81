"""Decides which token services may see the login of a registry: its own services, and services that the operator allows."""

from urllib.parse import unquote

from cacheyd.protocol.urls import Url, is_upgrade, parse_url

# Token services whose host has another name than their registry, but the same owner.
_KNOWN_REALMS = {"registry-1.docker.io": ("auth.docker.io",)}


def realm_belongs(realm: str, base: str, allowed: tuple[str, ...]) -> bool:
    """Whether a token service may see a registry's stored login: it is on the registry's own origin, or allowed by name.

    Every host except the registry's own origin needs https. For the origin, the operator chose the scheme: this scheme or
    https is right.
    """
    try:
        url, own = parse_url(realm), parse_url(base)
    except ValueError:
        return False
    if url.site == own.site or is_upgrade(own, url) or any(_is_below(url, parse_url(known)) for known in allowed):
        return True
    if url.scheme != "https" or url.port != 443:
        return False
    return url.host == own.host or url.host in _KNOWN_REALMS.get(own.host, ())


def _is_below(url: Url, known: Url) -> bool:
    base = known.path.rstrip("/")
    if url.site != known.site or not (url.path == base or url.path.startswith((f"{base}/", f"{base}?"))):
        return False
    return not base or not _may_leave(url.path[len(base) :].partition("?")[0])


def _may_leave(path: str) -> bool:
    """Whether some server can read a path below a base as a path outside the base: with dot segments and empty segments,
    encoded any number of times, with backslashes, or with parameters (`..;x`).
    """
    while (plain := unquote(path)) != path:
        path = plain
    segments = [part.partition(";")[0] for part in path.replace("\\", "/").split("/")]
    return any(part in (".", "..") for part in segments) or "" in segments[1:-1]
