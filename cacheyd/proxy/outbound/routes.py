"""How cacheyd reaches a URL for a registry: with which trust, through which proxy, and whether it may ask the URL at all."""

from functools import lru_cache

from cacheyd.protocol.errors import Blame, Code, Failure, RequestError
from cacheyd.protocol.urls import Url, is_upgrade, parse_url
from cacheyd.proxy.outbound.guard import forbidden_name, related_kinds
from cacheyd.proxy.outbound.trust import Origin, Trust
from cacheyd.settings.settings import Settings

_base = lru_cache(maxsize=1024)(parse_url)


def route(settings: Settings, registry: str, url: Url) -> Origin:
    """The origin for a URL of a registry, or of a redirect of this registry. Each hop asks anew. Raises RequestError 403."""
    row = settings.registry(registry)
    bases = [_base(base) for base in settings.upstreams(registry)]
    own = tuple(base.host for base in bases) if row.configured else ()
    if any(url.site == base.site or is_upgrade(base, url) for base in bases):
        # Only the registry itself gets the client certificate and `insecure_skip_verify`, not the target of a redirect.
        trust = Trust(row.ca_file, row.client_cert, row.client_key, row.insecure_skip_verify)
        origin = Origin(*url.site, trust, row.configured, row.proxy)
    else:
        origin = Origin(*url.site, Trust(row.ca_file), False, row.proxy, own)
    # The proxy looks the name up, not cacheyd: so cacheyd can check only the name.
    kind = forbidden_name(url.host) if row.proxy and not origin.trusted_address else ""
    if kind and kind not in related_kinds(map(forbidden_name, own)):
        raise denied(f"{url.host} is an address that only a configured registry may have")
    return origin


def is_same(settings: Settings, registry: str, known: Origin, target: Origin) -> bool:
    """Whether `target` may get a login for `known`: it is the same site, or the same host with TLS instead of plain HTTP."""
    if known.same_site(target):
        return True
    url = target.url
    bases = [_base(base) for base in settings.upstreams(registry)]
    configured = known.scheme == "http" and known.host == url.host and url.site in [base.site for base in bases]
    return is_upgrade(known.url, url) or (configured and url.scheme == "https")


def denied(why: str) -> RequestError:
    """The error 403 for an address that cacheyd may not ask."""
    return RequestError(Failure(403, Code.DENIED, why, Blame.CLIENT))
