"""Base URLs of upstreams: the URLs below them, and the upstream's own names for the registry and its images."""

from cacheyd.protocol.reference import Reference
from cacheyd.protocol.registries import canonical_registry
from cacheyd.protocol.urls import parse_url
from cacheyd.settings.settings import Settings


def target(base: str, ref: Reference) -> str:
    """The URL of `ref` at an upstream. If the base has `/v2` in its path, this does not add another (Harbor:
    https://host/v2/project).
    """
    has_v2 = "/v2/" in f"/{base.partition('://')[2].partition('/')[2]}/"
    return base + (ref.path.removeprefix("/v2") if has_v2 else ref.path)


def server_name(settings: Settings, registry: str) -> str:
    """The registry name with which to ask for a login: the host of the first upstream, which can differ from `registry`."""
    url = parse_url(settings.upstreams(registry)[0])
    host = f"[{url.host}]" if ":" in url.host else url.host
    return canonical_registry(host if url.port == 443 else f"{host}:{url.port}")


def image_of(settings: Settings, ref: Reference) -> str:
    """The image (`registry/repository`) by the name of its own registry. A base with `/v2` in its path has the beginning of
    the repository.
    """
    base = settings.upstreams(ref.registry)[0]
    _, _, within = f"{parse_url(base).path.rstrip('/')}/".partition("/v2/")
    return f"{server_name(settings, ref.registry)}/{within}{ref.repository}"
