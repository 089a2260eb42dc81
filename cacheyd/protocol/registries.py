"""The canonical names of registries: `host` or `host:port`, and `docker.io` for all of Docker Hub's names."""

import ipaddress

from cacheyd.protocol.errors import Code, client_error
from cacheyd.protocol.hosts import canonical_host, embedded, split_port
from cacheyd.protocol.reference import MAX_NAME

DOCKER_HUB = "docker.io"
_DOCKER_ALIASES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "registry.docker.io"})


def canonical_registry(ns: str) -> str:
    """The canonical name of the registry that a client means by `ns`: `host[:port]`, or `docker.io` for Docker Hub's names.

    Raises RequestError 400 for everything else: user info, paths, control characters, ports over 65535.
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
        # A registry speaks https unless the operator configures http. So port 443 is the same registry as no port.
        name = f"{name}:{int(port)}"
    return DOCKER_HUB if name in _DOCKER_ALIASES else name


def names_of(registry: str) -> tuple[str, ...]:
    """The canonical names of a registry: its own name, and the IPv4 addresses that its IPv6 address contains."""
    if not registry.startswith("["):
        return (registry,)
    host, _, port = registry[1:].partition("]")
    return registry, *(f"{ip}{port}" for ip in embedded(ipaddress.IPv6Address(host)))


def has_registry(name: str) -> bool:
    """Whether a name begins with a registry, by docker's rule: its first part has a dot or a port, or is `localhost`."""
    first, slash, _ = name.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost")
