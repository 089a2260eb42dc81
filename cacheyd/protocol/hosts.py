"""The canonical form of host names, addresses and ports; the IPv4 addresses that an IPv6 address leads to."""

import ipaddress
import re
import socket
from collections.abc import Iterator

import idna

# Import it here: otherwise idna would load it on demand, on the event loop, at the first such host.
import idna.uts46data

_HOST = re.compile(r"[a-z0-9](?:[a-z0-9_.-]*[a-z0-9])?")
_IPV6 = re.compile(r"\[[0-9a-f:.]+\]")
# A host whose last part is a number is an IPv4 address or invalid (https://url.spec.whatwg.org/#ends-in-a-number-checker).
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[0-9]{1,5}")
# The last 32 bits of these are an IPv4 address: IPv4-compatible, IPv4-translated (RFC 2765), NAT64 (RFC 6052, RFC 8215).
_EMBEDDING = tuple(
    map(ipaddress.IPv6Network, ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")),
)
# The most characters of a host and of a label: RFC 1035 section 2.3.4, without the length bytes.
MAX_HOST, MAX_LABEL = 253, 63


def canonical_host(host: str) -> str:
    """The canonical form of a host: ASCII (IDNA 2008), lower case, an IPv6 address in brackets. Raises ValueError if invalid.

    Reads numbers like inet_aton(3), as resolvers and proxies do: `127.1`, `2130706433` and `0x7f000001` are 127.0.0.1.
    `[::ffff:127.0.0.1]` is 127.0.0.1, too: Linux connects to it by IPv4 (RFC 4291 section 2.5.5.2).
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
        # Reads a typed name (UTS 46) as browsers and Go's clients do; an IDNAError is a ValueError.
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
    """Host and port of an authority; the port is None if missing. Checks only the port: a number of at most 5 digits.

    Raises ValueError.
    """
    at = authority.find(":", authority.find("]") + 1 if authority.startswith("[") else 0)
    if at < 0:
        return authority, None
    if not _PORT.fullmatch(authority, at + 1) or not 0 < int(authority[at + 1 :]) < 65536:
        raise ValueError("no port")
    return authority[:at], authority[at + 1 :]


def embedded(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    """The IPv4 addresses that can receive packets to an IPv6 address."""
    if not isinstance(ip, ipaddress.IPv6Address) or ip.is_loopback or ip.is_unspecified:
        return
    yield from filter(None, (ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())))
    # ISATAP (RFC 5214) has its mark in the middle of the address, in every network.
    if any(ip in network for network in _EMBEDDING) or (int(ip) >> 32) & 0xFDFFFFFF == 0x5EFE:
        yield ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
