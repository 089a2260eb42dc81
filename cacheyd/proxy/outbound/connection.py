"""Fetch connections: requests to upstreams as mitmproxy flows of their own, with no client attached.

A `FetchConnection` is one connection to one origin, kept for the next request; each request on it is a flow that the
addons (and so mitmweb) see.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from h11._readers import ContentLengthReader
from mitmproxy import connection, ctx, flow, http, tls
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events, layer, layers, server, server_hooks
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.layers.http._hooks import HttpConnectUpstreamHook
from mitmproxy.proxy.layers.tls import TLSLayer
from OpenSSL import SSL

from cacheyd.protocol.errors import explain
from cacheyd.proxy.outbound.exchange import Exchange
from cacheyd.proxy.outbound.intake import StrictHttp1Client
from cacheyd.proxy.outbound.trust import Origin, Trust, make_connection, proxy_login, proxy_mode
from cacheyd.proxy.outbound.wire import BLOCK, FIRST_READ, READ, Wire
from cacheyd.resources.budget import Budget

log = logging.getLogger(__name__)

type Streams = tuple[asyncio.Transport, Wire]
type Dial = Callable[[Origin, str, int], Awaitable[Streams]]

# Marks the flows of fetches.
FETCH = "cacheyd_fetch"
# The longest head of a response, and the longest line in a chunked body (bytes); with TLS, a handshake comes on top.
MAX_HEAD, HANDSHAKE = 64 << 10, 256 << 10
# What is read at once with a head, and of a body in tiny chunks, each of which costs the time of all layers (bytes).
HEAD_READ, TINY_READ, FEW_BYTES = 4 << 10, 1 << 10, 512


# Tasks that were cancelled and have not ended yet: a loop holds those only that something will wake.
_ENDING: set[asyncio.Task[Any]] = set()


class _Submit(events.ConnectionEvent):
    """A new request for the connection; addressed to the client connection, so that HttpLayer routes it to `_Requests`."""

    def __init__(self, client: connection.Client, flow: http.HTTPFlow, exchange: Exchange) -> None:
        super().__init__(client)
        self.flow = flow
        self.exchange = exchange


class _Requests(layers.http.HttpConnection):
    """Stands where a client's HTTP connection would: requests come from `_Submit`, responses go to the exchange."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, context.client)
        self._stream_id = -1
        self._exchange = Exchange()

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, _Submit):
            self._stream_id += 2
            self._exchange = event.exchange
            request = event.flow.request
            request.timestamp_start = request.timestamp_end = time.time()
            headers = layers.http.RequestHeaders(self._stream_id, request, end_stream=True, replay_flow=event.flow)
            yield layers.http.ReceiveHttp(headers)
            yield layers.http.ReceiveHttp(layers.http.RequestEndOfMessage(self._stream_id))
        elif isinstance(event, layers.http.ResponseHeaders):
            self._exchange.head(event.response)
        elif isinstance(event, layers.http.ResponseData):
            if event.data:
                self._exchange.piece(event.data)
        elif isinstance(event, layers.http.ResponseEndOfMessage):
            self._exchange.end()
        elif isinstance(event, layers.http.ResponseProtocolError):
            self._exchange.fail(event.message)


class _Reader:
    """What mitmproxy reads an upstream connection with."""

    def __init__(self, owner: "FetchConnection", conn: connection.Connection, wire: Wire) -> None:
        self._owner = owner
        self._conn = conn
        self._wire = wire

    async def read(self, size: int) -> bytes:
        """The next bytes for the layers; most of a large body goes past them. Raises OSError for a head without an end."""
        await self._owner.pass_body(self._conn, self._wire)
        try:
            data = await self._wire.read(self._owner.appetite())
        except OSError:
            self._owner.end_of_connection(self._conn, broken=True)
            raise
        if not data:
            self._owner.end_of_connection(self._conn, broken=False)
        self._owner.swallow(self._conn, len(data))
        return data


class FetchConnection(server.ConnectionHandler):
    """One connection to an origin; one exchange at a time."""

    layer: layers.HttpLayer

    def __init__(
        self,
        options: Options,
        origin: Origin,
        dial: Dial,
        ssl_context: Callable[[Trust], SSL.Context],
        budget: Budget | None = None,
    ) -> None:
        client = connection.Client(
            peername=("cacheyd", 0),
            sockname=("cacheyd", 0),
            timestamp_start=time.time(),
            state=connection.ConnectionState.OPEN,
        )
        if origin.proxy:
            client.proxy_mode = proxy_mode(origin.proxy)
        context = Context(client, options)
        context.server = connection.Server(address=(origin.host, origin.port))
        if origin.scheme == "https":
            context.server.tls = True
            context.server.sni = origin.host
        super().__init__(context)
        self.origin = origin
        self.used = False
        self.idle_since = 0.0
        # Why the connection could not be made, where that is the reason for a failure.
        self.dial_error: Exception | None = None
        self._dial = dial
        self._ssl_context = ssl_context
        self._budget = budget
        self._exchange: Exchange | None = None
        self._closed = self._has_crashed = False
        # Bytes that came since the request, and after its answer; how many the layers get at once.
        self._came = self._idle_bytes = 0
        self._appetite = HEAD_READ
        self._seen = (0, 0)
        self.layer = layers.HttpLayer(context, HTTPMode.upstream if origin.proxy else HTTPMode.transparent)
        self.layer.connections[client] = _Requests(context.fork())

    @property
    def alive(self) -> bool:
        """Whether there is a connection that can take a request, and no other one that is still ending."""
        return not self._closed and [conn.state for conn in self.transports] == [connection.ConnectionState.OPEN]

    async def send(self, request: http.Request) -> Exchange:
        """Begins an exchange."""
        fetch = http.HTTPFlow(self.client, self.layer.context.server)
        fetch.request = request
        fetch.metadata[FETCH] = True
        exchange = self._exchange = Exchange(self._budget)
        self._came = self._idle_bytes = 0
        self._appetite, self._seen = HEAD_READ, (0, 0)
        if not self.used:
            self.used = True
            await self.server_event(events.Start())
        await self.server_event(_Submit(self.client, fetch, exchange))
        return exchange

    def close(self) -> None:
        """Ends the connection and what is under way on it, a dial that is still to come included."""
        self._closed = True
        if self._exchange is not None:
            self._exchange.fail("closed")
            self._exchange.over()
        self._cancel()

    def _cancel(self) -> None:
        for task in [*(io.handler for io in self.transports.values()), *self.wakeup_timer]:
            if task is not None and not task.done():
                _ENDING.add(task)
                task.add_done_callback(_ENDING.discard)
                task.cancel("fetch closed")

    # Each of the tasks that mitmproxy makes, so that no exception is lost in one

    async def open_connection(self, command: commands.OpenConnection) -> None:
        """Dials checked addresses, with a deadline, where mitmproxy would look the name up by itself."""
        with self._ending(command.connection):
            await self._open_connection(command)

    async def hook_task(self, hook: commands.StartHook) -> None:
        """As in the base class."""
        with self._ending():
            await super().hook_task(hook)

    async def wakeup(self, request: commands.RequestWakeup) -> None:
        """As in the base class."""
        with self._ending():
            await super().wakeup(request)

    @contextmanager
    def _ending(self, conn: connection.Connection | None = None) -> Iterator[None]:
        """An exception in here ends the exchange at once, and the connection; nobody would hear of it else."""
        try:
            yield
        except Exception as error:
            self._crashed(error)
            io = self.transports.get(conn) if conn is not None else None
            if io is not None and io.writer is not None:
                # What mitmproxy does at the end of `handle_connection`, which was not reached.
                io.writer.close()

    def _crashed(self, error: BaseException) -> None:
        # One leads to others, in what is still under way.
        log.log(
            logging.DEBUG if self._has_crashed else logging.ERROR,
            "fetching from %s failed: %s",
            self.origin.authority,
            explain(error),
        )
        log.debug("it was", exc_info=error)
        if self._exchange is not None:
            # Where a head had come, what is missing of the body may be had with another request.
            hopeless = self._exchange.response is None
            self._exchange.fail(f"fetching failed: {type(error).__name__}", hopeless=hopeless)
        # What had come before is its reader's still.
        self._closed = self._has_crashed = True
        self._cancel()

    async def _open_connection(self, command: commands.OpenConnection) -> None:
        conn = command.connection
        hook_data = server_hooks.ServerConnectionHookData(client=self.client, server=conn)
        await self.handle_hook(server_hooks.ServerConnectHook(hook_data))
        conn.timestamp_start = time.time()
        try:
            if conn.error or self._closed:
                raise OSError(conn.error or "closed")
            assert conn.address
            transport, wire = await self._dial(self.origin, conn.address[0], conn.address[1])
        except (OSError, TimeoutError) as error:
            self.dial_error = error
            conn.error = str(error) or "deadline for connecting passed"
            self.transports.pop(conn, None)
            await self.handle_hook(server_hooks.ServerConnectErrorHook(hook_data))
            await self.server_event(events.OpenConnectionCompleted(command, conn.error))
            return
        conn.timestamp_tcp_setup = time.time()
        conn.state = connection.ConnectionState.OPEN
        conn.peername, conn.sockname = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        # Of a StreamWriter mitmproxy uses what a transport has, and `drain`, which is `drain_writers` here.
        reader: Any = _Reader(self, conn, wire)
        writer: Any = transport
        self.transports[conn] = server.ConnectionIO(handler=asyncio.current_task(), reader=reader, writer=writer)
        try:
            await self.handle_hook(server_hooks.ServerConnectedHook(hook_data))
            await self.server_event(events.OpenConnectionCompleted(command, None))
            await self.handle_connection(conn)
        finally:
            # Cancelled, it may not have come so far as to do this itself.
            transport.close()
            self.transports.pop(conn, None)
            conn.timestamp_end = time.time()
            await self.handle_hook(server_hooks.ServerDisconnectedHook(hook_data))

    async def handle_connection(self, connection: connection.Connection) -> None:
        """As in the base class; whoever reads the response learns that it ended."""
        try:
            await super().handle_connection(connection)
        finally:
            # Another one may have taken its place already.
            client = self._client_of(connection)
            # Where the body came to its end, the addons still have to hear of it, and then the exchange does.
            ended = client is not None and client.ended
            if self._exchange is not None and not self.transports and not ended:
                self._exchange.fail("connection closed")

    def _layers_of(self, conn: connection.Connection) -> Iterator[Layer]:
        """From the outermost one, which a proxy or TLS may be, to the one that speaks HTTP."""
        found = self.layer.connections.get(conn)
        while found is not None:
            yield found
            found = getattr(found, "child_layer", None)

    def _client_of(self, conn: connection.Connection) -> StrictHttp1Client | None:
        return next((found for found in self._layers_of(conn) if isinstance(found, StrictHttp1Client)), None)

    @property
    def heard(self) -> bool:
        """Whether the peer sent anything since the last request, a TLS handshake apart."""
        clients = map(self._client_of, list(self.layer.connections))
        return any(client is not None and client.heard for client in clients)

    def end_of_connection(self, conn: connection.Connection, *, broken: bool) -> None:
        """No more comes. A body that only this ends is whole if it is an orderly end (RFC 9112 section 8)."""
        client, exchange = self._client_of(conn), self._exchange
        if client is None or exchange is None or client.ended or not client.ends_with_the_connection:
            return
        tls = [found.tls for found in self._layers_of(conn) if isinstance(found, TLSLayer)]
        if broken:
            exchange.cut("the connection broke before the end of the body")
        elif tls and not tls[-1].get_shutdown() & SSL.RECEIVED_SHUTDOWN:
            exchange.cut("the connection ended without TLS's close_notify, where nothing else ends the body")

    async def pass_body(self, conn: connection.Connection, wire: Wire) -> None:
        """Takes a large body of known length past the layers, all but its last byte: with that they see its end."""
        exchange = self._exchange
        # Nothing between it and the connection, as a proxy or TLS would be.
        client = getattr(self.layer.connections.get(conn), "child_layer", None)
        if exchange is None or exchange.response is None or not isinstance(client, StrictHttp1Client) or conn.tls:
            return
        body = client.body_reader if client.state == client.read_body else None
        if isinstance(body, ContentLengthReader) and body._remaining > BLOCK and not client.buf:
            length, body._remaining = body._remaining - 1, 1
            body._remaining += await wire.read_body(length, exchange)

    def appetite(self) -> int:
        """How many bytes the layers get at once: few of a body in tiny chunks, as all of them are worked off in one go."""
        exchange = self._exchange
        if exchange is None or exchange.response is None:
            return HEAD_READ
        pieces, size = exchange.pieces - self._seen[0], exchange.piece_bytes - self._seen[1]
        self._seen = exchange.pieces, exchange.piece_bytes
        if pieces and size < FEW_BYTES * pieces:
            self._appetite = max(TINY_READ, self._appetite // 4)
        else:
            self._appetite = min(2 * self._appetite, exchange.budget.share(READ))
        return self._appetite

    def swallow(self, conn: connection.Connection, size: int) -> None:
        """Counts what comes; raises OSError for a head, or a line of a chunked body, that does not end."""
        exchange = self._exchange
        # What this read brought has not been looked at yet: on a kept connection it may be a head and much of its body.
        before, self._came = self._came, self._came + size
        if exchange is None or exchange.complete:
            self._idle_bytes += size
            if self._idle_bytes > MAX_HEAD:
                raise OSError("it sends what nobody asked for")
            return
        if exchange.response is None:
            unread = before - MAX_HEAD - FIRST_READ - (HANDSHAKE if conn.tls else 0)
        else:
            client = self._client_of(conn)
            unread = len(client.buf) - MAX_HEAD if client is not None else 0
        if unread > 0:
            exchange.fail("the head of its response, or a line in it, has no end", hopeless=True)
            self.close()
            raise OSError("a head without an end")

    async def drain_writers(self) -> None:
        """Waits for the sink: the upstream is read no faster than the disk takes it."""
        if self._exchange is not None:
            await self._exchange.room()

    async def handle_hook(self, hook: commands.StartHook) -> None:
        """Gives the hook to the addons, and streams every body."""
        (data,) = hook.args()
        if isinstance(hook, layers.tls.TlsStartServerHook):
            self._start_tls(data)
        elif isinstance(hook, HttpConnectUpstreamHook):
            host = f"[{self.origin.host}]" if ":" in self.origin.host else self.origin.host
            # mitmproxy leaves the brackets out, and so the port may be taken for a part of the address.
            data.request.authority = data.request.headers["Host"] = f"{host}:{self.origin.port}"
            if login := proxy_login(self.origin.proxy):
                data.request.headers["Proxy-Authorization"] = login
        await ctx.master.addons.handle_lifecycle(hook)
        if isinstance(data, flow.Flow):
            await data.wait_for_resume()
        if isinstance(hook, layers.http.HttpResponseHeadersHook):
            data.response.stream = True

    def _start_tls(self, data: tls.TlsData) -> None:
        """TLS to the origin with its settings, or to an https proxy with the public authorities and `ca_file`."""
        assert isinstance(data.conn, connection.Server)
        assert data.conn.address
        host, port = data.conn.address[0], data.conn.address[1]
        to_origin = (host, port) == (self.origin.host, self.origin.port)
        trust = self.origin.trust if to_origin else Trust(self.origin.trust.ca_file)
        data.conn.sni = host
        data.ssl_conn = make_connection(self._ssl_context(trust), host, verify=not trust.insecure)

    def log(self, message: str, level: int = logging.INFO, exc_info: Any = None) -> None:
        """Failures of a fetch are told by whoever asked for it; here only what mitmproxy itself gets wrong."""
        if level < logging.ERROR:
            log.debug("%s: %s", self.origin.authority, message, exc_info=exc_info)
            return
        error = sys.exc_info()[1]
        if isinstance(error, NotImplementedError) and self._exchange is not None:
            # Trailers behind a chunked body, which mitmproxy gives up on: all of the body is there, and nobody here
            # wants them. The layers are of no use after that.
            self._closed = True
            self._exchange.end()
            return
        self._crashed(error or RuntimeError(message))
