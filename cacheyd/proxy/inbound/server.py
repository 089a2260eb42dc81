"""The HTTP/1 server of a client's connection: answers hits before a flow exists, and refuses malformed requests."""

import time
from collections.abc import Callable
from typing import Protocol

from mitmproxy import connection
from mitmproxy.connection import ConnectionState
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import (
    Http1Server,
    HttpEvent,
    ReceiveHttp,
    RequestHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http1 import make_body_reader

from cacheyd.cache.answer import Answer, error_answer
from cacheyd.cache.bodies import WINDOW, BodyBroken, MappedReader, Source
from cacheyd.protocol.errors import Code, client_error, upstream_error
from cacheyd.proxy.inbound.head import BadHead, Head, HeadBuffer, parse_head, render_head
from cacheyd.proxy.inbound.link import CacheydTurnHook, ClientLink

# The longest request body that is not refused (bytes): cacheyd needs no request body.
MAX_BODY = 64 << 10
# How long a request head can take, and how long cacheyd reads the body of a refused request so that the answer arrives
# (seconds).
HEAD_DEADLINE = 30.0
LINGER = 5.0
# The most bytes of a body that cacheyd gives to TLS in one piece, and that it gives without waiting. TLS copies these bytes.
TLS_WINDOW, TLS_AT_ONCE = 1 << 20, 64 << 10
# While a request waits for its answer, cacheyd stops reading from the client after this number of bytes, or of events.
BEHIND, PIECES_BEHIND = 16 << 10, 8
# The smallest incomplete head that counts in the budget of all incomplete heads (bytes).
LITTLE_HEAD = 4 << 10
# How many hits of one connection are answered before other connections have their turn.
TURN = 16
# The most bytes that a refused client can still send before cacheyd closes the connection.
MAX_DISCARDED = 16 << 20


def at_once(client: connection.Client) -> int:
    """The most bytes of a body that cacheyd hands to a connection without waiting for the client."""
    return TLS_AT_ONCE if client.tls else WINDOW


class PumpState(Protocol):
    """The state of a body on its way to a client, as far as the server needs it."""

    piece: bytes | memoryview
    error: str | None


type MakePump = Callable[[connection.Client, Source], tuple[PumpState, Callable[[], commands.Command]]]


class Hits(Protocol):
    """The source of the server's answers."""

    def kept(self, raw: bytes, client: connection.Client) -> bytes | None:
        """A whole response to this head that was kept a moment ago and is still valid; None if there is none."""

    def remember(self, raw: bytes, head: Head, answer: Answer, reply: bytes) -> None:
        """Offers a whole response, which `kept` can give to later requests."""

    def hit(self, head: Head) -> Answer | None:
        """The answer from disk; None if the request must become a flow. The caller must call `sent` after each answer."""

    def sent(
        self, client: connection.Client, head: Head, answer: Answer, sent: int, started: float, error: str | None
    ) -> None:
        """Accounts for a hit that was answered, or that broke off after `sent` bytes of its body."""

    def closing(self, answer: Answer) -> bool:
        """Whether the connection must end with this response."""


class CacheHttp1Server(Http1Server):
    """mitmproxy's HTTP/1 server, which also answers hits.

    mitmproxy calls `read_headers` only between requests, so a hit can be answered there without more state.
    """

    buf: HeadBuffer

    def __init__(self, context: Context, hits: Hits, make_pump: MakePump, link: ClientLink) -> None:
        super().__init__(context)
        self.buf = HeadBuffer()
        self._hits = hits
        self._make_pump = make_pump
        self._outgoing = link.outgoing
        self._incoming = link.incoming
        self._incoming.read_by(self)
        self._discarded = 0
        # The time when the connection is closed, and the alarm that looks at this time. There is one alarm at a time, as each
        # alarm takes memory until it rings.
        self._deadline: float | None = None
        self._alarm: commands.RequestWakeup | None = None

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Wakeup):
            if event.command is self._alarm:
                yield from self._on_alarm()
        else:
            yield from super()._handle_event(event)

    def _on_alarm(self) -> layer.CommandGenerator[None]:
        self._alarm = None
        if self._deadline is None:
            return
        left = self._deadline - time.monotonic()
        if left > 0:
            yield from self._set_alarm(left)
        else:
            yield commands.CloseConnection(self.conn)
            self.state = self.done

    def _set_alarm(self, seconds: float) -> layer.CommandGenerator[None]:
        self._alarm = commands.RequestWakeup(seconds)
        yield self._alarm

    def _watch(self, seconds: float) -> layer.CommandGenerator[None]:
        """Closes the connection after `seconds`, unless `_deadline` is cleared or changed before."""
        self._deadline = time.monotonic() + seconds
        # An alarm that is set already rings within HEAD_DEADLINE from now: it is early enough for this deadline.
        if self._alarm is None or seconds < HEAD_DEADLINE:
            yield from self._set_alarm(seconds)

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        """Answers hits until a request needs a flow, or until the next head is incomplete."""
        if isinstance(event, events.ConnectionClosed):
            yield commands.CloseConnection(self.conn)
            return
        answered = 0
        while self.state == self.read_headers:
            # Pipelined requests are not answered faster than the client takes the answers, and other clients get their turns.
            if self._outgoing.full or answered == TURN:
                yield CacheydTurnHook(self._outgoing)
                answered = 0
                if self._outgoing.over:
                    yield commands.CloseConnection(self.conn)
                    self.state = self.done
                    return
            answered += 1
            try:
                raw = self.buf.next_head()
                if raw is None:
                    yield from self._await_head()
                    return
                if self._deadline is not None:
                    # This head came in pieces, and is complete now.
                    self._deadline = None
                    self._incoming.keep_head(0)
                if (reply := self._hits.kept(raw, self.context.client)) is not None:
                    yield commands.SendData(self.conn, reply)
                    continue
                head = parse_head(raw)
            except BadHead as error:
                yield from self._refuse(error.status, str(error))
                return
            yield from self._serve(head, raw)

    def _await_head(self) -> layer.CommandGenerator[None]:
        size = len(self.buf)
        if not self._incoming.keep_head(size if size > LITTLE_HEAD else 0):
            self._incoming.keep_head(0)
            yield from self._refuse(503, "too many large request heads at once")
            return
        if not size:
            self._deadline = None
        elif self._deadline is None:
            yield from self._watch(HEAD_DEADLINE)
        self._incoming.hungry()

    @property
    def behind(self) -> bool:
        """Whether so many bytes wait behind a request, or behind an answer on its way, that cacheyd must not read more."""
        if self._paused is None and self.state == self.read_headers:
            return False
        return len(self.buf) > BEHIND or len(self._paused_event_queue) >= PIECES_BEHIND

    def _serve(self, head: Head, raw: bytes) -> layer.CommandGenerator[None]:
        started = time.monotonic()
        if head.body is None or head.body > MAX_BODY or head.method == "CONNECT":
            status = 413 if head.method in ("GET", "HEAD") else 405
            yield from self._refuse(status, "cacheyd takes no uploads: push to the registry itself")
            return
        if head.body == 0 and head.method in ("GET", "HEAD") and (answer := self._hits.hit(head)) is not None:
            yield from self._send(raw, head, answer, started)
        else:
            yield from self._become_flow(head, raw)

    def _send(self, raw: bytes, head: Head, answer: Answer, started: float) -> layer.CommandGenerator[None]:
        keep_alive = head.keep_alive and not self._hits.closing(answer)
        rendered = render_head(answer, keep_alive=keep_alive, http10=head.http10)
        source, sent, error = answer.source, len(answer.body), None
        if source is None:
            reply = rendered + answer.body
            yield commands.SendData(self.conn, reply)
            if keep_alive:
                self._hits.remember(raw, head, answer, reply)
        else:
            yield commands.SendData(self.conn, rendered)
            sent, error = yield from self._send_source(source, answer.length or 0)
        self._hits.sent(self.context.client, head, answer, sent, started, error)
        if error is not None or not keep_alive:
            yield commands.CloseConnection(self.conn)
            self.state = self.done

    def _send_source(self, source: Source, length: int) -> layer.CommandGenerator[tuple[int, str | None]]:
        if length <= at_once(self.context.client) and isinstance(source, MappedReader):
            sent = 0
            try:
                while piece := source.take():
                    yield commands.SendData(self.conn, piece)  # type: ignore[arg-type]
                    sent += len(piece)
            except BodyBroken as error:
                return sent, str(error)
            return sent, None
        pump, hook = self._make_pump(self.context.client, source)
        sent = 0
        while True:
            yield hook()
            if pump.error is not None or not pump.piece:
                source.close()
                return sent, pump.error
            sent += len(pump.piece)
            yield commands.SendData(self.conn, pump.piece)  # type: ignore[arg-type]

    def _become_flow(self, head: Head, raw: bytes) -> layer.CommandGenerator[None]:
        try:
            self.request = http1.read_request_head(raw.split(b"\r\n"))
        except ValueError:
            yield from self._refuse(400, "bad request line")
            return
        if connection_header := self.request.headers.get("connection"):
            # mitmproxy compares the tokens of this header case-sensitively.
            self.request.headers["connection"] = connection_header.lower()
        # mitmproxy has parsed the target in its own way; the flow must have the target as `parse_head` read it.
        self.request.data.path = head.target.encode("latin-1")
        self.request.data.authority = b""  # The host of an absolute target does not count.
        yield ReceiveHttp(RequestHeaders(self.stream_id, self.request, head.body == 0))
        if self.state == self.read_headers:
            self.body_reader = make_body_reader(head.body)
            self.state = self.read_body
            if head.body:
                yield from self._watch(HEAD_DEADLINE)
            yield from self.state(events.DataReceived(self.conn, b""))

    def _refuse(self, status: int, message: str) -> layer.CommandGenerator[None]:
        """Answers with an error, then sends FIN, and still reads from the client so that no RST destroys the answer."""
        answer = error_answer(client_error(status, Code.UNSUPPORTED, message))
        if status == 405:
            answer = answer.with_headers(("Allow", "GET, HEAD"))
        yield commands.SendData(self.conn, render_head(answer, keep_alive=False) + answer.body)
        yield commands.CloseTcpConnection(self.conn, half_close=True)
        self.state = self.discard
        self.buf.maybe_extract_at_most(len(self.buf))
        self._incoming.hungry()
        yield from self._watch(LINGER)

    def discard(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Reads and drops the bytes that a refused client still sends."""
        self._discarded += len(self.buf)
        self.buf.maybe_extract_at_most(len(self.buf))
        if isinstance(event, events.ConnectionClosed) or self._discarded > MAX_DISCARDED:
            yield commands.CloseConnection(self.conn)
            self.state = self.done

    def mark_done(self, *, request: bool = False, response: bool = False) -> layer.CommandGenerator[None]:
        """As in the base class, and ends the deadline when the request is complete."""
        if request:
            self._deadline = None
        yield from super().mark_done(request=request, response=response)
        if self.state == self.read_headers:
            self._incoming.hungry()

    def send(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        """As in the base class, but an error before a response is answered in the JSON format of the distribution-spec."""
        if isinstance(event, ResponseProtocolError) and not self.response and self.conn.state & ConnectionState.CAN_WRITE:
            status = event.code.http_status_code()
            if status is not None:
                error = (
                    client_error(status, Code.UNSUPPORTED, event.message)
                    if status < 500
                    else upstream_error(status, event.message)
                )
                answer = error_answer(error)
                yield commands.SendData(self.conn, render_head(answer, keep_alive=False) + answer.body)
            yield commands.CloseConnection(self.conn)
            return
        yield from super().send(event)
