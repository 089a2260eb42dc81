"""A client's connection below mitmproxy: its two directions, its deadlines, and how it is closed."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mitmproxy.proxy import commands, server

from cacheyd.proxy.inbound.idle import Idle
from cacheyd.proxy.inbound.incoming import HEADS, Incoming
from cacheyd.proxy.inbound.outgoing import Outgoing
from cacheyd.proxy.inbound.sent_memory import TlsBuffers
from cacheyd.resources.budget import Budget
from cacheyd.settings.settings import Settings

# The most bytes that one read takes from a client, and that wait unread in asyncio's reader.
READ = 16 << 10
# How long a TLS handshake can take (seconds).
HANDSHAKE_DEADLINE = 30.0


@dataclass
class CacheydTurnHook(commands.StartHook):
    """The hook between the answers of one connection; the addon's `cacheyd_turn` awaits `Outgoing.turn`."""

    outgoing: Outgoing


class ClientLink:
    """Watches one client's transport, from the `client_connected` hook until the socket is closed."""

    def __init__(
        self,
        handler: server.ConnectionHandler,
        settings: Callable[[], Settings],
        on_lost: Callable[[], object],
        heads: Budget | None = None,
        buffers: TlsBuffers | None = None,
    ) -> None:
        # None after the socket is closed, so that this link and the handler do not keep each other in memory.
        self._handler: Any = handler
        self._on_lost = on_lost
        self._handshake: asyncio.Handle | None = None
        io = handler.transports[handler.client]
        # The writer is a stream of asyncio.start_server. mitmproxy's type also allows its UDP streams.
        transport: Any = io.writer.transport  # type: ignore[union-attr]
        self._transport: asyncio.Transport = transport
        self._protocol = transport.get_protocol()
        self._base = self._protocol.pause_writing, self._protocol.resume_writing, self._protocol.connection_lost
        self.outgoing = Outgoing(transport, settings, self._end, buffers)
        self.incoming = Incoming(self.outgoing, heads or Budget(HEADS))
        self._idle = Idle(handler.timeout_watchdog.timeout, self._end)
        self._install(io.reader, handler)

    def _install(self, reader: Any, handler: Any) -> None:
        """Sets limits and callbacks of asyncio and mitmproxy. These attributes are the only seam; contract tests pin them."""
        transport: Any = self._transport
        transport.max_size = READ  # asyncio has no method for this limit.
        reader._limit = READ // 2  # mitmproxy's server makes the reader, and chooses its limit.
        transport.set_write_buffer_limits(high=0)
        # asyncio reports a full or empty buffer only to the protocol.
        self._protocol.pause_writing, self._protocol.resume_writing = self._on_full, self._on_empty
        self._protocol.connection_lost = self._on_connection_lost  # asyncio reports the end only to it, too.
        handler.timeout_watchdog.callback = _nothing  # People can set its clock; there is no other way to stop it.
        handler.timeout_watchdog = self._idle  # The handler has made its own watchdog.
        handler.drain_writers = self._read_on  # mitmproxy calls this after each read.

    # Deadlines and the end

    def expect_handshake(self) -> None:
        """Starts the deadline of the TLS handshake; `established` ends it."""
        self._handshake = asyncio.get_running_loop().call_later(HANDSHAKE_DEADLINE, self._end)

    def established(self) -> None:
        """Ends the deadline: the TLS handshake is complete."""
        if self._handshake is not None:
            self._handshake.cancel()
            self._handshake = None

    def _end(self) -> None:
        """Closes the connection like mitmproxy after a timeout: for a while, the client can still read the sent bytes."""
        io = self._handler.transports.get(self._handler.client)
        if io is not None and io.handler is not None:
            io.handler.cancel("timeout")
        self.close()

    def close(self) -> None:
        """Closes the transport. mitmproxy has ended the connection, but does not close the transport if it has just read more
        from the client.
        """
        self._transport.close()

    # Callbacks of asyncio

    def _on_full(self) -> None:
        self._base[0]()
        self.outgoing.filled()

    def _on_empty(self) -> None:
        self._base[1]()
        self.outgoing.emptied()
        self.incoming.hungry()

    def _on_connection_lost(self, error: Exception | None) -> None:
        self.incoming.keep_head(0)
        self.established()
        self._idle.stop()
        self.outgoing.lost()
        self.incoming.lost()
        self._on_lost()
        self._base[2](error)
        del self._protocol.pause_writing, self._protocol.resume_writing, self._protocol.connection_lost
        self._handler = None

    async def _read_on(self) -> None:
        """Replaces mitmproxy's drain after each read: mitmproxy reads nothing more while this waits."""
        if len(self._handler.transports) > 1:
            # Other addons have flows to upstreams of their own on this handler.
            await server.ConnectionHandler.drain_writers(self._handler)
        await self.incoming.wait()


async def _nothing() -> None:
    """Does nothing: the callback of mitmproxy's own watchdog."""
