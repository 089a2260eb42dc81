"""A client's connection below mitmproxy: its two directions, its deadlines, and its end."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mitmproxy.proxy import commands, server

from cacheyd.proxy.inbound.idle import Idle
from cacheyd.proxy.inbound.incoming import HEADS, Incoming
from cacheyd.proxy.inbound.outgoing import Outgoing
from cacheyd.resources.budget import Budget
from cacheyd.settings.settings import Settings

# What is read of a client at once, and what may wait unread in asyncio's reader (bytes).
READ = 16 << 10
# A TLS handshake has to be complete after so long (seconds).
HANDSHAKE_DEADLINE = 30.0


@dataclass
class CacheydTurnHook(commands.StartHook):
    """Stands between the answers of one connection; the addon's `cacheyd_turn` awaits `Outgoing.turn`."""

    outgoing: Outgoing


class ClientLink:
    """Watches one client's transport from the `client_connected` hook until its socket is closed."""

    def __init__(
        self,
        handler: server.ConnectionHandler,
        settings: Callable[[], Settings],
        on_lost: Callable[[], object],
        heads: Budget | None = None,
    ) -> None:
        # None once the socket is closed, so that nothing keeps anything else.
        self._handler: Any = handler
        self._on_lost = on_lost
        self._handshake: asyncio.Handle | None = None
        io = handler.transports[handler.client]
        # The streams of asyncio.start_server; mitmproxy's types allow for its UDP streams, too.
        transport: Any = io.writer.transport  # type: ignore[union-attr]
        self._transport: asyncio.Transport = transport
        self._protocol = transport.get_protocol()
        self._base = self._protocol.pause_writing, self._protocol.resume_writing, self._protocol.connection_lost
        self.outgoing = Outgoing(transport, settings, self._end)
        self.incoming = Incoming(self.outgoing, heads or Budget(HEADS))
        self._idle = Idle(handler.timeout_watchdog.timeout, self._end)
        self._install(io.reader, handler)

    def _install(self, reader: Any, handler: Any) -> None:
        """Neither asyncio nor mitmproxy has another seam for this than these attributes; contract tests hold them."""
        transport: Any = self._transport
        transport.max_size = READ  # asyncio has no call for it.
        reader._limit = READ // 2  # mitmproxy's server chooses the limit.
        transport.set_write_buffer_limits(high=0)
        # asyncio tells the protocol alone: of a full and an empty buffer,
        self._protocol.pause_writing, self._protocol.resume_writing = self._on_full, self._on_empty
        self._protocol.connection_lost = self._on_connection_lost  # and of the end.
        handler.timeout_watchdog.callback = _nothing  # Its clock may be set; it is not to be stopped otherwise.
        handler.timeout_watchdog = self._idle  # The handler makes its own.
        handler.drain_writers = self._read_on  # Called after each read.

    # Deadlines and the end

    def expect_handshake(self) -> None:
        """From now on `established` has to be called in time."""
        self._handshake = asyncio.get_running_loop().call_later(HANDSHAKE_DEADLINE, self._end)

    def established(self) -> None:
        """The TLS handshake is complete."""
        if self._handshake is not None:
            self._handshake.cancel()
            self._handshake = None

    def _end(self) -> None:
        """Closes as mitmproxy does after a timeout: what the client was sent it may still take, for a while."""
        io = self._handler.transports.get(self._handler.client)
        if io is not None and io.handler is not None:
            io.handler.cancel("timeout")
        self.close()

    def close(self) -> None:
        """mitmproxy is done with the connection, but may have left it open: it does not close a connection if it has just
        read more from the client.
        """
        self._transport.close()

    # What asyncio says

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
        """Stands where mitmproxy drains after each read: nothing more is read while this waits."""
        if len(self._handler.transports) > 1:
            # Flows of other addons to upstreams of their own.
            await server.ConnectionHandler.drain_writers(self._handler)
        await self.incoming.wait()


async def _nothing() -> None:
    """What mitmproxy's own watchdog does in the end."""
