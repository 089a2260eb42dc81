"""Fetch connections: requests to upstreams as flows of mitmproxy that have no client.

A `FetchConnection` is one connection to one origin, which is kept for the next request. Each request on it is a flow that the
addons, and so mitmweb, see.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mitmproxy import connection, ctx, flow, http, tls
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events, layers, server, server_hooks
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.layers.http._hooks import HttpConnectUpstreamHook
from OpenSSL import SSL

from cacheyd.protocol.errors import explain
from cacheyd.proxy.outbound.exchange import Exchange
from cacheyd.proxy.outbound.fetch_reader import FetchReader, Meter, client_of
from cacheyd.proxy.outbound.socket_reader import SocketReader
from cacheyd.proxy.outbound.submit import Requests, Submit
from cacheyd.proxy.outbound.trust import Origin, Trust, make_connection, proxy_login, proxy_mode
from cacheyd.resources.budget import Budget

log = logging.getLogger(__name__)

type Streams = tuple[asyncio.Transport, SocketReader]
type Dial = Callable[[Origin, str, int], Awaitable[Streams]]

# The key in a flow's metadata that marks a flow of a fetch.
FETCH = "cacheyd_fetch"
# Tasks that were cancelled and have not ended yet. The event loop itself keeps only tasks that something will wake.
_ENDING: set[asyncio.Task[Any]] = set()


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
            client.proxy_mode = proxy_mode(origin.proxy)  # A listener of mitmproxy sets it in the same way.
        context = Context(client, options)
        # mitmproxy's layers set these attributes in the same way for a client's requests.
        context.server = connection.Server(address=(origin.host, origin.port))
        if origin.scheme == "https":
            context.server.tls = True  # As above.
            context.server.sni = origin.host  # As above.
        super().__init__(context)
        self.origin = origin
        self.used = False
        self.idle_since = 0.0
        # The error of the dial, if the dial failed.
        self.dial_error: Exception | None = None
        self._dial = dial
        self._ssl_context = ssl_context
        self._budget = budget
        self._meter = Meter()
        self._closed = self._has_crashed = False
        self.layer = layers.HttpLayer(context, HTTPMode.upstream if origin.proxy else HTTPMode.transparent)
        self.layer.connections[client] = Requests(context.fork())

    @property
    def alive(self) -> bool:
        """Whether there is a connection that can take a request, and no other connection that is still ending."""
        return not self._closed and [conn.state for conn in self.transports] == [connection.ConnectionState.OPEN]

    async def send(self, request: http.Request) -> Exchange:
        """Sends a request; gives the exchange that will get the response."""
        fetch = http.HTTPFlow(self.client, self.layer.context.server)
        fetch.request = request  # mitmproxy has no other way to give a request to a flow.
        fetch.metadata[FETCH] = True
        exchange = Exchange(self._budget)
        self._meter.begin(exchange)
        if not self.used:
            self.used = True
            await self.server_event(events.Start())
        await self.server_event(Submit(self.client, fetch, exchange))
        return exchange

    def rest(self, now: float) -> None:
        """Notes that the connection is idle from `now` on (monotonic seconds)."""
        self.idle_since = now

    def close(self) -> None:
        """Ends the connection and its running exchange, also if the connection is not dialled yet."""
        self._closed = True
        if self._meter.exchange is not None:
            self._meter.exchange.fail("closed")
            self._meter.exchange.over()
        self._cancel()

    def _cancel(self) -> None:
        for task in [*(io.handler for io in self.transports.values()), *self.wakeup_timer]:
            if task is not None and not task.done():
                _ENDING.add(task)
                task.add_done_callback(_ENDING.discard)
                task.cancel("fetch closed")

    # The methods that mitmproxy runs as tasks: here, so that no exception is lost in a task

    async def open_connection(self, command: commands.OpenConnection) -> None:
        """Dials only checked addresses, with a deadline. mitmproxy's own method would look the name up itself."""
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
        """A context in which an exception ends the exchange and the connection at once. Else nobody would learn of it."""
        try:
            yield
        except Exception as error:
            self._crashed(error)
            io = self.transports.get(conn) if conn is not None else None
            if io is not None and io.writer is not None:
                # mitmproxy closes it at the end of `handle_connection`, which was not reached.
                io.writer.close()

    def _crashed(self, error: BaseException) -> None:
        # One crash leads to other crashes in the tasks that still run: only the first is an error in the log.
        log.log(
            logging.DEBUG if self._has_crashed else logging.ERROR,
            "fetching from %s failed: %s",
            self.origin.authority,
            explain(error),
        )
        log.debug("it was", exc_info=error)
        if self._meter.exchange is not None:
            # If the head has come, another request can get the missing part of the body.
            hopeless = self._meter.exchange.response is None
            self._meter.exchange.fail(f"fetching failed: {type(error).__name__}", hopeless=hopeless)
        # The reader still gets the bytes that came before.
        self._closed = self._has_crashed = True
        self._cancel()

    async def _open_connection(self, command: commands.OpenConnection) -> None:
        conn = command.connection
        hook_data = server_hooks.ServerConnectionHookData(client=self.client, server=conn)
        await self.handle_hook(server_hooks.ServerConnectHook(hook_data))
        # From here to the end, this method sets the attributes that mitmproxy's own `open_connection` sets on a connection.
        conn.timestamp_start = time.time()
        try:
            if conn.error or self._closed:
                raise OSError(conn.error or "closed")
            assert conn.address
            transport, source = await self._dial(self.origin, conn.address[0], conn.address[1])
        except (OSError, TimeoutError) as error:
            self.dial_error = error
            conn.error = str(error) or "deadline for connecting passed"  # As above.
            self.transports.pop(conn, None)
            await self.handle_hook(server_hooks.ServerConnectErrorHook(hook_data))
            await self.server_event(events.OpenConnectionCompleted(command, conn.error))
            return
        conn.timestamp_tcp_setup = time.time()  # As above.
        conn.state = connection.ConnectionState.OPEN  # As above.
        # As above.
        conn.peername, conn.sockname = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        # mitmproxy uses only the methods of a StreamWriter that a transport has, too, and `drain`: here, `drain_writers`.
        reader: Any = FetchReader(conn, source, self.layer, self._meter, self.close)
        writer: Any = transport
        self.transports[conn] = server.ConnectionIO(handler=asyncio.current_task(), reader=reader, writer=writer)
        try:
            await self.handle_hook(server_hooks.ServerConnectedHook(hook_data))
            await self.server_event(events.OpenConnectionCompleted(command, None))
            await self.handle_connection(conn)
        finally:
            # If this task was cancelled, `handle_connection` possibly has not closed the transport.
            transport.close()
            self.transports.pop(conn, None)
            conn.timestamp_end = time.time()  # As above.
            await self.handle_hook(server_hooks.ServerDisconnectedHook(hook_data))

    async def handle_connection(self, connection: connection.Connection) -> None:
        """As in the base class; then tells the reader of the response that the connection ended."""
        try:
            await super().handle_connection(connection)
        finally:
            # A new connection has possibly taken the place of this one already.
            client = client_of(self.layer, connection)
            # If the body came to its end, the exchange must not fail: the addons hear of the end first, then the exchange.
            ended = client is not None and client.ended
            if self._meter.exchange is not None and not self.transports and not ended:
                self._meter.exchange.fail("connection closed")

    @property
    def heard(self) -> bool:
        """Whether the peer sent anything since the last request. A TLS handshake does not count."""
        clients = [client_of(self.layer, conn) for conn in list(self.layer.connections)]
        return any(client is not None and client.heard for client in clients)

    async def drain_writers(self) -> None:
        """Waits for the sink, so that cacheyd reads from the upstream no faster than the disk writes."""
        if self._meter.exchange is not None:
            await self._meter.exchange.room()

    async def handle_hook(self, hook: commands.StartHook) -> None:
        """Gives the hook to the addons, and makes mitmproxy stream every body."""
        (data,) = hook.args()
        if isinstance(hook, layers.tls.TlsStartServerHook):
            self._start_tls(data)
        elif isinstance(hook, HttpConnectUpstreamHook):
            host = f"[{self.origin.host}]" if ":" in self.origin.host else self.origin.host
            # mitmproxy leaves the brackets out, and then a proxy can take the port for a part of the IPv6 address.
            data.request.authority = data.request.headers["Host"] = f"{host}:{self.origin.port}"
            if login := proxy_login(self.origin.proxy):
                data.request.headers["Proxy-Authorization"] = login
        await ctx.master.addons.handle_lifecycle(hook)
        if isinstance(data, flow.Flow):
            await data.wait_for_resume()
        if isinstance(hook, layers.http.HttpResponseHeadersHook):
            # The way in which an addon tells mitmproxy to stream the body.
            data.response.stream = True

    def _start_tls(self, data: tls.TlsData) -> None:
        """Makes the TLS connection: to the origin by its settings, or to an https proxy by the public CAs and `ca_file`."""
        assert isinstance(data.conn, connection.Server)
        assert data.conn.address
        host, port = data.conn.address[0], data.conn.address[1]
        to_origin = (host, port) == (self.origin.host, self.origin.port)
        trust = self.origin.trust if to_origin else Trust(self.origin.trust.ca_file)
        data.conn.sni = host  # mitmproxy's own TlsConfig sets it in this hook, too.
        # The hook exists for this assignment.
        data.ssl_conn = make_connection(self._ssl_context(trust), host, verify=not trust.insecure)

    def log(self, message: str, level: int = logging.INFO, exc_info: Any = None) -> None:
        """Takes mitmproxy's log lines: an error is a crash, other lines are for debugging. A fetch reports its own failure."""
        if level < logging.ERROR:
            log.debug("%s: %s", self.origin.authority, message, exc_info=exc_info)
            return
        error = sys.exc_info()[1]
        if isinstance(error, NotImplementedError) and self._meter.exchange is not None:
            # mitmproxy gives up on trailers behind a chunked body. The body is complete, and cacheyd does not need the
            # trailers. The layers cannot be used after this error.
            self._closed = True
            self._meter.exchange.end()
            return
        self._crashed(error or RuntimeError(message))
