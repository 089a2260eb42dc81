"""Pumps bodies that cacheyd produces into a response, with backpressure.

mitmproxy drains its writers only when a peer sends something, so a body that a layer produces has no backpressure. Here a
blocking hook stands before each piece. The hook waits until the client has taken the bytes before (`outgoing` has the deadline
for this), and until the next piece exists.
"""

import logging
import mmap
from collections.abc import Callable
from dataclasses import dataclass

from mitmproxy import connection, flow
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import (
    DropStream,
    ErrorCode,
    HttpErrorHook,
    HttpLayer,
    HTTPMode,
    HttpStream,
    ResponseData,
    ResponseHeaders,
    ResponseProtocolError,
    SendHttp,
)

from cacheyd.cache.answer import Answer, error_answer
from cacheyd.cache.bodies import WINDOW, BodyBroken, Source
from cacheyd.protocol.errors import Code, client_error, explain
from cacheyd.proxy.inbound.head import render_head
from cacheyd.proxy.inbound.link import ClientLink
from cacheyd.proxy.inbound.outgoing import Outgoing
from cacheyd.proxy.inbound.server import TLS_WINDOW, CacheHttp1Server, Hits
from cacheyd.resources.budget import Budget

log = logging.getLogger(__name__)

ANSWER = "cacheyd_answer"
SENT = "cacheyd_sent"


class Pump:
    """One body on its way to one client. `advance` sets `piece` (empty at the end) or `error`."""

    def __init__(self, client: connection.Client, source: Source) -> None:
        self.client = client
        self.source = source
        # TLS copies each piece twice, into its own buffer and for the socket. The copies stay until the client takes them.
        self._copied = bool(client.tls)
        self._rest: bytes | memoryview = b""
        self.piece: bytes | memoryview = b""
        self.error: str | None = None
        self.sent = 0

    async def advance(self, outgoing: Outgoing | None, budget: Budget) -> None:
        """Waits until the client has taken the piece before, and until there is a next piece."""
        self.piece = b""
        try:
            if outgoing is None:
                raise BodyBroken("the client has left")
            await outgoing.taken()
            outgoing.hold(budget, 0)
            rest = self._rest or await self.source.read()
            limit = WINDOW
            if self._copied:
                limit = min(budget.share(2 * TLS_WINDOW) // 2, outgoing.memory.window(TLS_WINDOW))
            self.piece, self._rest = rest[:limit], rest[limit:]
            await outgoing.taken()
            outgoing.hold(budget, 2 * len(self.piece) if self._copied else _in_memory(self.piece))
            if self._copied:
                outgoing.memory.encrypt(len(self.piece))
        except (BodyBroken, OSError) as error:
            # The bytes that were sent stay in memory until the client takes them or the connection is closed.
            self.error = str(error) or "broken"
        except Exception as error:
            # Without this, the failure would look like the regular end of a body of unknown length.
            log.error("sending a body failed: %s", explain(error))
            self.piece, self.error = b"", f"failed: {type(error).__name__}"
        self.sent += len(self.piece)


def _in_memory(piece: bytes | memoryview) -> int:
    """The bytes of memory that a piece keeps: 0 if it is a view of a mapped file, else the whole object behind the view."""
    whole = piece.obj if isinstance(piece, memoryview) else piece
    return 0 if isinstance(whole, mmap.mmap) else len(whole)  # type: ignore[arg-type]


@dataclass
class CacheydPumpHook(commands.StartHook):
    """The hook that gets the next piece of a body; the addon's `cacheyd_pump` calls `Pump.advance`."""

    pump: Pump


class CacheHttpStream(HttpStream):
    """mitmproxy's stream, with a response whose body cacheyd can produce."""

    def send_response(self, already_streamed: bool = False) -> layer.CommandGenerator[None]:
        """Sends the head and the pieces of the body, then goes on as mitmproxy does after a streamed response."""
        answer: Answer | None = self.flow.metadata.get(ANSWER)
        if already_streamed or answer is None or answer.source is None:
            yield from super().send_response(already_streamed)
            return
        assert self.flow.response
        yield SendHttp(ResponseHeaders(self.stream_id, self.flow.response, end_stream=False), self.context.client)
        pump = Pump(self.context.client, answer.source)
        while True:
            yield CacheydPumpHook(pump)
            if pump.error is not None or not pump.piece:
                break
            # mitmproxy passes a view of a mapped file through without a copy on its way to the socket.
            yield SendHttp(ResponseData(self.stream_id, pump.piece), self.context.client)  # type: ignore[arg-type]
        self.flow.metadata[SENT] = pump.sent
        answer.source.close()
        if pump.error is None and (answer.length is None or pump.sent == answer.length):
            yield from super().send_response(already_streamed=True)
        else:
            yield from self._break_off(pump.error or "the body ended early")

    def _break_off(self, message: str) -> layer.CommandGenerator[None]:
        """Closes the connection (FIN) before the announced length: after the head, no other report of an error is possible."""
        self.flow.error = flow.Error(message)
        yield HttpErrorHook(self.flow)
        error = ResponseProtocolError(self.stream_id, message, ErrorCode.GENERIC_SERVER_ERROR)
        yield SendHttp(error, self.context.client)
        self.client_state = self.server_state = self.state_errored
        self.flow.live = False  # mitmproxy's own stream does the same at its end.
        yield DropStream(self.stream_id)


class CacheHttpLayer(HttpLayer):
    """mitmproxy's HTTP layer, with a server that answers hits, and with streams that pump bodies."""

    def __init__(self, context: Context, hits: Hits, link: ClientLink) -> None:
        super().__init__(context, HTTPMode.transparent)
        self.connections[context.client] = CacheHttp1Server(context.fork(), hits, self._pump, link)

    def _pump(self, client: connection.Client, source: Source) -> tuple[Pump, Callable[[], commands.Command]]:
        pump = Pump(client, source)
        return pump, lambda: CacheydPumpHook(pump)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        """As in the base class, but makes a CacheHttpStream."""
        self.streams[stream_id] = CacheHttpStream(self.context.fork(), stream_id)
        yield from self.event_to_child(self.streams[stream_id], events.Start())


class PlainRefused(layer.Layer):
    """The layer for plain HTTP on a TLS port: answers 400 with the reason, then closes the connection."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.DataReceived):
            answer = error_answer(client_error(400, Code.UNSUPPORTED, "this port speaks https"))
            yield commands.SendData(self.context.client, render_head(answer, keep_alive=False) + answer.body)
        if isinstance(event, events.DataReceived | events.ConnectionClosed):
            yield commands.CloseConnection(self.context.client)


class Gone(layer.Layer):
    """The layer for a client that left before cacheyd saw its first bytes: closes the connection."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield commands.CloseConnection(self.context.client)
