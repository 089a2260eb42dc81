"""Bodies that cacheyd produces, pumped into a response with backpressure.

mitmproxy drains its writers only when a peer sends something, so a body that a layer produces has none: here a blocking
hook stands before each piece. It waits for the client to take what was sent (`outgoing` has the deadline on that) and for the
next piece to exist.
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
    """One body on its way to one client: the hook sets `piece` (empty at the end) or `error`."""

    def __init__(self, client: connection.Client, source: Source) -> None:
        self.client = client
        self.source = source
        # TLS copies what it gets, into its own buffer and for the socket; it stays there until the client has taken it.
        self._copied = bool(client.tls)
        self._rest: bytes | memoryview = b""
        self.piece: bytes | memoryview = b""
        self.error: str | None = None
        self.sent = 0

    async def advance(self, outgoing: Outgoing | None, budget: Budget) -> None:
        """Waits until the client has taken what was sent and there is a next piece."""
        self.piece = b""
        try:
            if outgoing is None:
                raise BodyBroken("the client has left")
            await outgoing.taken()
            outgoing.hold(budget, 0)
            rest = self._rest or await self.source.read()
            limit = budget.share(2 * TLS_WINDOW) // 2 if self._copied else WINDOW
            self.piece, self._rest = rest[:limit], rest[limit:]
            await outgoing.taken()
            outgoing.hold(budget, 2 * len(self.piece) if self._copied else _in_memory(self.piece))
        except (BodyBroken, OSError) as error:
            # What was sent stays where it is until the client takes it, or the connection is gone.
            self.error = str(error) or "broken"
        except Exception as error:
            # Otherwise this would look like the right end of a body of unknown length.
            log.error("sending a body failed: %s", explain(error))
            self.piece, self.error = b"", f"failed: {type(error).__name__}"
        self.sent += len(self.piece)


def _in_memory(piece: bytes | memoryview) -> int:
    """How many bytes of memory a piece keeps: none if it is a view of a file, else all that it is a view of."""
    whole = piece.obj if isinstance(piece, memoryview) else piece
    return 0 if isinstance(whole, mmap.mmap) else len(whole)  # type: ignore[arg-type]


@dataclass
class CacheydPumpHook(commands.StartHook):
    """Asks for the next piece of a body; the addon's `cacheyd_pump` calls `Pump.advance`."""

    pump: Pump


class CacheHttpStream(HttpStream):
    """A stream whose response may have a body that cacheyd produces."""

    def send_response(self, already_streamed: bool = False) -> layer.CommandGenerator[None]:
        """Sends head and pieces, then goes on as mitmproxy does after a streamed response."""
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
            # A view of a mapping goes through as it is: it is never copied on its way to the socket.
            yield SendHttp(ResponseData(self.stream_id, pump.piece), self.context.client)  # type: ignore[arg-type]
        self.flow.metadata[SENT] = pump.sent
        answer.source.close()
        if pump.error is None and (answer.length is None or pump.sent == answer.length):
            yield from super().send_response(already_streamed=True)
        else:
            yield from self._break_off(pump.error or "the body ended early")

    def _break_off(self, message: str) -> layer.CommandGenerator[None]:
        """Closes the connection (FIN) short of what was announced: the only way to say so after the head."""
        self.flow.error = flow.Error(message)
        yield HttpErrorHook(self.flow)
        error = ResponseProtocolError(self.stream_id, message, ErrorCode.GENERIC_SERVER_ERROR)
        yield SendHttp(error, self.context.client)
        self.client_state = self.server_state = self.state_errored
        self.flow.live = False  # As mitmproxy's own stream does at the end.
        yield DropStream(self.stream_id)


class CacheHttpLayer(HttpLayer):
    """mitmproxy's HTTP layer with a server that answers hits and streams that pump bodies."""

    def __init__(self, context: Context, hits: Hits, link: ClientLink) -> None:
        super().__init__(context, HTTPMode.transparent)
        self.connections[context.client] = CacheHttp1Server(context.fork(), hits, self._pump, link)

    def _pump(self, client: connection.Client, source: Source) -> tuple[Pump, Callable[[], commands.Command]]:
        pump = Pump(client, source)
        return pump, lambda: CacheydPumpHook(pump)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        """As in the base class, with our stream."""
        self.streams[stream_id] = CacheHttpStream(self.context.fork(), stream_id)
        yield from self.event_to_child(self.streams[stream_id], events.Start())


class PlainRefused(layer.Layer):
    """Plain HTTP on a TLS port: an answer that says so, and the end."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.DataReceived):
            answer = error_answer(client_error(400, Code.UNSUPPORTED, "this port speaks https"))
            yield commands.SendData(self.context.client, render_head(answer, keep_alive=False) + answer.body)
        if isinstance(event, events.DataReceived | events.ConnectionClosed):
            yield commands.CloseConnection(self.context.client)


class Gone(layer.Layer):
    """A client that left before it was looked at."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield commands.CloseConnection(self.context.client)
