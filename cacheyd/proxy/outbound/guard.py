"""The addresses and names that only a configured registry may have: this host, its link, cloud metadata, multicast groups."""

import errno
import ipaddress
import socket
from collections.abc import Iterable
from contextlib import closing
from functools import cache

from cacheyd.protocol.hosts import canonical_host, embedded

type Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# The addresses at which clouds give a machine its secrets, besides link-local ones: Azure, Oracle, Alibaba, AWS, Google,
# Oracle, Linode, Scaleway. All of 169.254.0.0/16 is in the list: no registry is there, but other services are (ECS, EKS).
_METADATA = tuple(
    map(
        ipaddress.ip_network,
        (
            "169.254.0.0/16", "168.63.129.16/32", "192.0.0.192/32", "100.100.100.200/32", "fe80::a9fe:a9fe/128",
            "fd00:ec2::/112", "fd20:ce::254/128", "fd00:c1::a9fe:a9fe/128", "fd00:a9fe:a9fe::1/128", "fd00:42::42/128",
        ),
    )
)  # fmt: skip

_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")

# Names that lead to such addresses, for requests through a proxy: then cacheyd itself does not look names up.
_METADATA_NAMES = frozenset(
    {
        "metadata", "metadata.google.internal", "metadata.goog", "metadata.azure.internal", "metadata.tencentyun.com",
        "instance-data", "instance-data.ec2.internal",
    }
)  # fmt: skip

_LOCAL_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})

# A registry that an operator runs at one kind of address may lead to addresses of these kinds.
_RELATED = {
    "loopback": ("loopback", "this host"),
    "unspecified": ("loopback", "unspecified", "this host"),
    "this host": ("this host",),
    "link-local": ("link-local",),
}


def forbidden_kind(address: str) -> str:
    """The kind of an address that only a configured registry may have: this host, its link, cloud metadata, multicast groups.

    Empty for all other addresses. Private networks are not forbidden: registries are there. Most reserved IPv6 addresses, for
    example NAT64, are not forbidden either.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    return next((kind for one in (*embedded(ip), ip) if (kind := _kind(one))), "") or ("this host" if is_own(ip) else "")


def _kind(ip: Address) -> str:
    reserved = ip.version == 4 and ip.is_reserved  # 240.0.0.0/4 and the broadcast address.
    kinds = {
        "loopback": ip.is_loopback, "unspecified": ip.is_unspecified or ip in _THIS_NETWORK,
        "metadata": any(ip in network for network in _METADATA), "link-local": ip.is_link_local,
        "multicast": ip.is_multicast, "reserved": reserved,
    }  # fmt: skip
    return next((kind for kind, found in kinds.items() if found), "")


def is_own(ip: Address) -> bool:
    """Whether an address belongs to an interface of this host: then the kernel lets a socket be bound to it."""
    if _binds_any(ip.version):
        # The kernel lets sockets be bound to any address (haproxy and keepalived need this). So this asks for the source
        # address of packets to `ip`: the source is `ip` itself if `ip` belongs to this host.
        with closing(_socket(ip.version, socket.SOCK_DGRAM)) as sock:
            try:
                sock.connect((str(ip), 9))  # Sends nothing.
            except OSError:
                return False
            return ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]) == ip
    return _binds(ip)


@cache
def _binds_any(version: int) -> bool:
    """Whether `net.ipv4.ip_nonlocal_bind`, or the same for IPv6, is set: tries an address that is only for documentation."""
    return _binds(ipaddress.ip_address("192.0.2.1" if version == 4 else "2001:db8::1"))


def _binds(ip: Address) -> bool:
    try:
        with closing(_socket(ip.version, socket.SOCK_STREAM)) as sock:
            sock.bind((str(ip), 0))
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return True


def _socket(version: int, kind: socket.SocketKind) -> socket.socket:
    return socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, kind)


def forbidden_name(host: str) -> str:
    """The kind of a host by its name alone; empty if cacheyd may ask it. For requests through a proxy that looks names up."""
    name = host.rstrip(".").lower()
    try:
        name = canonical_host(f"[{name}]" if ":" in name and name[:1] != "[" else name).strip("[]")
        return forbidden_kind(name)
    except ValueError:
        if name in _LOCAL_NAMES or name.endswith(".localhost"):
            return "loopback"
        return "metadata" if name in _METADATA_NAMES else ""


def related_kinds(kinds: Iterable[str]) -> set[str]:
    """The kinds of addresses that a registry at addresses of these kinds may lead to."""
    return {related for kind in kinds for related in _RELATED.get(kind, ())}
