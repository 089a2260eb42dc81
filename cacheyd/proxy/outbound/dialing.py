"""Dials upstreams: looks the host name up, checks each address, and takes the first connection that succeeds."""

import asyncio
import socket
from collections.abc import Sequence

from aiohappyeyeballs import AddrInfoType, start_connection
from OpenSSL import SSL

from cacheyd.proxy.outbound.connection import Streams
from cacheyd.proxy.outbound.guard import forbidden_kind, related_kinds
from cacheyd.proxy.outbound.names import Names
from cacheyd.proxy.outbound.socket_reader import SocketReader
from cacheyd.proxy.outbound.trust import Origin, Trust, make_ssl_context
from cacheyd.settings.live import Live

# How long one address is tried before the next address is tried beside it (seconds).
HAPPY_EYEBALLS = 0.25
# The most addresses of a host that are looked at: the host itself decides how many it has.
MAX_ADDRESSES = 16


class Dialer:
    """Makes connections to upstreams, and the TLS contexts for them."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._names = Names()
        self._ssl_contexts: dict[Trust, SSL.Context] = {}

    async def dial(self, origin: Origin, host: str, port: int) -> Streams:
        """Connects to an address of the host. Checks the addresses after the look-up. Raises OSError, TimeoutError."""
        trusted = origin.trusted_address or (bool(origin.proxy) and host != origin.host)
        async with asyncio.timeout(self._live.settings.connect_timeout):
            found = (await self._names.addresses(host, port))[:MAX_ADDRESSES]
            allowed = found if trusted else _of_kinds(found, {""})
            if not allowed and origin.registry_hosts:
                # An operator's registry at an address of this kind can have its CDN or token service at the same kind.
                own = [info for name in origin.registry_hosts for info in await self._names.addresses(name, port)]
                allowed = _of_kinds(found, related_kinds(forbidden_kind(str(info[4][0])) for info in own))
            if not allowed:
                raise PermissionError(f"{host} is at {found[0][4][0]}, an address that only a configured registry may have")
            sock = await start_connection(allowed, happy_eyeballs_delay=HAPPY_EYEBALLS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return await asyncio.get_running_loop().create_connection(SocketReader, sock=sock)

    def ssl_context(self, trust: Trust) -> SSL.Context:
        """The context for TLS to an upstream. Raises OSError if the certificates can no longer be used."""
        if trust not in self._ssl_contexts:
            try:
                self._ssl_contexts[trust] = make_ssl_context(trust)
            except SSL.Error:
                # cacheyd could read these files at the start, or at the last reload.
                files = filter(None, (trust.ca_file, trust.client_cert, trust.client_key))
                raise OSError(f"certificates that cannot be used: {', '.join(map(str, files))}") from None
        return self._ssl_contexts[trust]

    def forget(self) -> None:
        """Forgets names and certificates, so that they are looked up and read anew after a change of settings."""
        self._names.forget()
        self._ssl_contexts.clear()


def _of_kinds(found: Sequence[AddrInfoType], kinds: set[str]) -> list[AddrInfoType]:
    return [info for info in found if forbidden_kind(str(info[4][0])) in kinds]
