"""Fetch flows: requests to upstreams as mitmproxy flows of their own, with no client attached.

A `FetchConnection` is one connection to one origin, kept for the next request; each request on it is a flow that the
addons (and so mitmweb) see. Redirects, deadlines and the address guard are here.
"""

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import certifi
from aiohappyeyeballs import start_connection
from mitmproxy import connection, ctx, flow, http, tls
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events, layer, layers, server, server_hooks
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HTTPMode
from OpenSSL import SSL

from cacheyd.config import RegistrySettings, Settings
from cacheyd.errors import HeaderList
from cacheyd.fetch import UpstreamBroken, UpstreamRequest

log = logging.getLogger(__name__)

FETCH = "cacheyd_fetch"
REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_HOPS = 5
# What may wait in memory of one body until it is on disk; the upstream is not read while there is more (bytes).
BUFFER = 4 << 20
READ = 256 << 10
IDLE = 30.0
MAX_IDLE = 8
HAPPY_EYEBALLS = 0.25


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port that a connection goes to, and how it is trusted."""

    scheme: str
    host: str
    port: int
    ca_file: str | None
    trusted_address: bool

    @property
    def authority(self) -> str:
        """The Host header (RFC 9110 section 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


class Exchange:
    """One request and its response, between the flow's layers and whoever reads the response."""

    def __init__(self) -> None:
        self.response: http.Response | None = None
        self.error: str | None = None
        self.complete = False
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def head(self, response: http.Response) -> None:
        """The head has arrived."""
        self.response = response
        self._changed.set()

    def data(self, data: bytes) -> None:
        """A part of the body has arrived."""
        self._chunks.append(data)
        self._buffered += len(data)
        if self._buffered >= BUFFER:
            self._room.clear()
        self._changed.set()

    def end(self) -> None:
        """The body is complete."""
        self.complete = True
        self._changed.set()

    def fail(self, message: str) -> None:
        """Nothing more will come."""
        if not self.complete and self.error is None:
            self.error = message
        self._room.set()
        self._changed.set()

    async def room(self) -> None:
        """Waits until more of the body may be read from the network."""
        await self._room.wait()

    async def wait_head(self) -> http.Response:
        """The head of the response. Raises UpstreamBroken."""
        while self.response is None:
            if self.error is not None:
                raise UpstreamBroken(self.error)
            self._changed.clear()
            await self._changed.wait()
        return self.response

    async def read(self) -> list[bytes]:
        """What has come since the last read; empty at the end. Raises UpstreamBroken."""
        while not self._chunks:
            if self.complete:
                return []
            if self.error is not None:
                raise UpstreamBroken(self.error)
            self._changed.clear()
            await self._changed.wait()
        chunks, self._chunks = self._chunks, []
        self._buffered = 0
        self._room.set()
        return chunks


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
                self._exchange.data(event.data)
        elif isinstance(event, layers.http.ResponseEndOfMessage):
            self._exchange.end()
        elif isinstance(event, layers.http.ResponseProtocolError):
            self._exchange.fail(event.message)


class _WideReader:
    """Reads larger pieces than mitmproxy asks for: each piece passes every layer."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def read(self, _: int) -> bytes:
        return await self._reader.read(READ)


class FetchConnection(server.ConnectionHandler):
    """One connection to an origin; one exchange at a time."""

    layer: layers.HttpLayer

    def __init__(
        self, options: Options, origin: Origin, dial: Callable[[Origin], Any], ssl_context: SSL.Context | None
    ) -> None:
        client = connection.Client(
            peername=("cacheyd", 0),
            sockname=("cacheyd", 0),
            timestamp_start=time.time(),
            state=connection.ConnectionState.OPEN,
        )
        context = Context(client, options)
        context.server = connection.Server(address=(origin.host, origin.port))
        if origin.scheme == "https":
            context.server.tls = True
            context.server.sni = origin.host
        super().__init__(context)
        self.origin = origin
        self.used = False
        self.idle_since = 0.0
        self._dial = dial
        self._ssl_context = ssl_context
        self._exchange: Exchange | None = None
        self.layer = layers.HttpLayer(context, HTTPMode.transparent)
        self.layer.connections[client] = _Requests(context.fork())

    @property
    def alive(self) -> bool:
        """Whether there is a connection that can take a request."""
        return any(io.writer is not None and not io.writer.is_closing() for io in self.transports.values())

    async def send(self, request: http.Request) -> Exchange:
        """Begins an exchange."""
        fetch = http.HTTPFlow(self.client, self.layer.context.server)
        fetch.request = request
        fetch.metadata[FETCH] = True
        exchange = self._exchange = Exchange()
        if not self.used:
            self.used = True
            await self.server_event(events.Start())
        await self.server_event(_Submit(self.client, fetch, exchange))
        return exchange

    def close(self) -> None:
        """Ends the connection and what is under way on it."""
        if self._exchange is not None:
            self._exchange.fail("closed")
        for io in list(self.transports.values()):
            if io.handler is not None:
                io.handler.cancel("fetch closed")

    async def open_connection(self, command: commands.OpenConnection) -> None:
        """Dials the checked addresses of the origin, with a deadline, where mitmproxy would look the name up again."""
        conn = command.connection
        hook_data = server_hooks.ServerConnectionHookData(client=self.client, server=conn)
        await self.handle_hook(server_hooks.ServerConnectHook(hook_data))
        conn.timestamp_start = time.time()
        try:
            if conn.error:
                raise OSError(conn.error)
            reader, writer = await self._dial(self.origin)
        except (OSError, TimeoutError) as error:
            conn.error = str(error) or "deadline for connecting passed"
            self.transports.pop(conn, None)
            await self.handle_hook(server_hooks.ServerConnectErrorHook(hook_data))
            await self.server_event(events.OpenConnectionCompleted(command, conn.error))
            return
        conn.timestamp_tcp_setup = time.time()
        conn.state = connection.ConnectionState.OPEN
        conn.peername, conn.sockname = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
        wide: Any = _WideReader(reader)
        self.transports[conn] = server.ConnectionIO(handler=asyncio.current_task(), reader=wide, writer=writer)
        await self.handle_hook(server_hooks.ServerConnectedHook(hook_data))
        await self.server_event(events.OpenConnectionCompleted(command, None))
        try:
            await self.handle_connection(conn)
        finally:
            conn.timestamp_end = time.time()
            await self.handle_hook(server_hooks.ServerDisconnectedHook(hook_data))

    async def handle_connection(self, connection: connection.Connection) -> None:
        """As in the base class; whoever reads the response learns that it ended."""
        try:
            await super().handle_connection(connection)
        finally:
            if self._exchange is not None:
                self._exchange.fail("connection closed")

    async def drain_writers(self) -> None:
        """Waits for the sink: the upstream is read no faster than the disk takes it."""
        if self._exchange is not None:
            await self._exchange.room()

    async def handle_hook(self, hook: commands.StartHook) -> None:
        """Gives the hook to the addons, and streams every body."""
        (data,) = hook.args()
        if isinstance(hook, layers.tls.TlsStartServerHook):
            self._start_tls(data)
        await ctx.master.addons.handle_lifecycle(hook)
        if isinstance(data, flow.Flow):
            await data.wait_for_resume()
        if isinstance(hook, layers.http.HttpResponseHeadersHook):
            data.response.stream = True

    def _start_tls(self, data: tls.TlsData) -> None:
        assert self._ssl_context is not None
        data.ssl_conn = SSL.Connection(self._ssl_context)
        data.conn.sni = self.origin.host
        host = self.origin.host.encode()
        try:
            address = ipaddress.ip_address(self.origin.host)
        except ValueError:
            data.ssl_conn.set_tlsext_host_name(host)
            _require_host(data.ssl_conn, host)
        else:
            _require_ip(data.ssl_conn, address.packed)
        data.ssl_conn.set_connect_state()

    def log(self, message: str, level: int = logging.INFO, exc_info: Any = None) -> None:
        """Failures of a fetch are told by whoever asked for it; here only what mitmproxy itself gets wrong."""
        if level >= logging.ERROR and self._exchange is not None:
            self._exchange.fail("the response could not be processed")
        log.log(
            level if level >= logging.ERROR else logging.DEBUG,
            "%s: %s",
            self.origin.authority,
            message,
            exc_info=exc_info,
        )


def _require_host(conn: SSL.Connection, host: bytes) -> None:
    # pyOpenSSL has no public call for this; mitmproxy's own TlsConfig does the same.
    param = SSL._lib.SSL_get0_param(conn._ssl)  # type: ignore[attr-defined]
    SSL._lib.X509_VERIFY_PARAM_set_hostflags(param, SSL._lib.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS)  # type: ignore[attr-defined]
    SSL._openssl_assert(SSL._lib.X509_VERIFY_PARAM_set1_host(param, host, len(host)) == 1)  # type: ignore[attr-defined]


def _require_ip(conn: SSL.Connection, packed: bytes) -> None:
    param = SSL._lib.SSL_get0_param(conn._ssl)  # type: ignore[attr-defined]
    SSL._openssl_assert(SSL._lib.X509_VERIFY_PARAM_set1_ip(param, packed, len(packed)) == 1)  # type: ignore[attr-defined]


def make_ssl_context(ca_file: str | None) -> SSL.Context:
    """A verifying TLS client context: the system's authorities, certifi's, and those of `ca_file`. HTTP/1.1 only."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_verify(SSL.VERIFY_PEER)
    context.set_default_verify_paths()
    context.load_verify_locations(certifi.where())
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context


def forbidden_address(address: str) -> bool:
    """Whether an address is one that only a configured registry may have: this host, its link, cloud metadata, groups."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified


class FetchResponse:
    """A response on a fetch connection; implements `UpstreamResponse`."""

    def __init__(self, upstream: "MitmUpstream", conn: FetchConnection, exchange: Exchange, head: http.Response) -> None:
        self._upstream = upstream
        self._conn: FetchConnection | None = conn
        self._exchange = exchange
        self.status = head.status_code
        self.headers: HeaderList = tuple(head.headers.items(multi=True))

    async def read(self) -> list[bytes]:
        """What has come of the body since; empty at its end. Raises UpstreamBroken."""
        chunks = await self._exchange.read()
        if not chunks:
            self.close()
        return chunks

    def close(self) -> None:
        """Keeps the connection if the response is complete, else closes it."""
        conn, self._conn = self._conn, None
        if conn is not None:
            self._upstream.release(conn, self._exchange)


class MitmUpstream:
    """Implements `Upstream` with fetch connections, pooled by origin."""

    def __init__(
        self,
        options: Options,
        settings: Settings,
        *,
        on_response: Callable[[str, str, float], None] = lambda registry, code, seconds: None,
    ) -> None:
        self._options = options
        self._settings = settings
        self._on_response = on_response
        self._idle: dict[Origin, list[FetchConnection]] = {}
        self._ssl_contexts: dict[str | None, SSL.Context] = {}
        self._reaper: asyncio.Task[None] | None = None

    async def open(self, request: UpstreamRequest) -> FetchResponse:
        """The head of the response, redirects followed (at most 5 hops). Raises UpstreamBroken."""
        registry = self._settings.registry(request.ref.registry)
        started = time.monotonic()
        code = "error"
        try:
            async with asyncio.timeout(self._settings.head_timeout + self._settings.connect_timeout / 2):
                response = await self._follow(request, registry)
            code = str(response.status)
        except TimeoutError:
            code = "timeout"
            raise UpstreamBroken(f"no answer within {self._settings.head_timeout:g} s", timeout=True) from None
        else:
            return response
        finally:
            self._on_response(request.ref.registry, code, time.monotonic() - started)

    async def _follow(self, request: UpstreamRequest, registry: RegistrySettings) -> FetchResponse:
        url = registry.upstream + request.ref.path
        headers = request.headers
        first = current = self._origin(url, registry)
        for _ in range(MAX_HOPS + 1):
            response = await self._exchange(current, request.method, url, headers)
            location = next((value for key, value in response.headers if key.lower() == "location"), None)
            if response.status not in REDIRECTS or location is None:
                return response
            await self._finish(response)
            url = urljoin(url, location)
            target = self._origin(url, registry)
            if current.scheme == "https" and target.scheme == "http" and first.scheme == "https":
                raise UpstreamBroken("redirected from https to http")
            if (target.scheme, target.host, target.port) != (current.scheme, current.host, current.port):
                headers = tuple(item for item in headers if item[0].lower() != "authorization")
            current = target
        raise UpstreamBroken(f"more than {MAX_HOPS} redirects")

    async def _finish(self, response: FetchResponse) -> None:
        """Reads the short body of a redirect, so that its connection can be kept."""
        size = next((value for key, value in response.headers if key.lower() == "content-length"), "")
        if size.isdecimal() and int(size) <= READ:
            while await response.read():
                pass
        response.close()

    def _origin(self, url: str, registry: RegistrySettings) -> Origin:
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise UpstreamBroken("redirected to something that is no URL") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise UpstreamBroken("redirected to something that is no http or https URL")
        ca_file = str(registry.ca_file) if registry.ca_file else None
        return Origin(parts.scheme, parts.hostname, port, ca_file, registry.configured)

    async def _exchange(self, origin: Origin, method: str, url: str, headers: HeaderList) -> FetchResponse:
        """One request, on a kept connection if there is one; anew if that turned out to be closed."""
        while True:
            conn = self._take(origin)
            fresh = not conn.used
            request = _make_request(origin, method, url, headers)
            exchange = await conn.send(request)
            try:
                head = await exchange.wait_head()
            except UpstreamBroken as error:
                conn.close()
                if fresh:
                    raise UpstreamBroken(f"{origin.authority}: {error}") from None
            except BaseException:
                conn.close()
                raise
            else:
                return FetchResponse(self, conn, exchange, head)

    def _take(self, origin: Origin) -> FetchConnection:
        idle = self._idle.get(origin, [])
        while idle:
            conn = idle.pop()
            if conn.alive:
                return conn
            conn.close()
        ssl_context = self._ssl_context(origin.ca_file) if origin.scheme == "https" else None
        return FetchConnection(self._options, origin, self._dial, ssl_context)

    def _ssl_context(self, ca_file: str | None) -> SSL.Context:
        if ca_file not in self._ssl_contexts:
            try:
                self._ssl_contexts[ca_file] = make_ssl_context(ca_file)
            except SSL.Error:
                raise UpstreamBroken(f"{ca_file} does not hold certificates") from None
        return self._ssl_contexts[ca_file]

    def release(self, conn: FetchConnection, exchange: Exchange) -> None:
        """Takes a connection back after its response."""
        idle = self._idle.setdefault(conn.origin, [])
        if exchange.complete and conn.alive and len(idle) < MAX_IDLE:
            conn.idle_since = time.monotonic()
            idle.append(conn)
            if self._reaper is None or self._reaper.done():
                self._reaper = asyncio.create_task(self._reap(), name="idle upstream connections")
        else:
            conn.close()

    async def _reap(self) -> None:
        while self._idle:
            await asyncio.sleep(IDLE / 4)
            oldest = time.monotonic() - IDLE
            for origin, idle in list(self._idle.items()):
                for conn in [conn for conn in idle if conn.idle_since < oldest or not conn.alive]:
                    idle.remove(conn)
                    conn.close()
                if not idle:
                    del self._idle[origin]

    async def _dial(self, origin: Origin) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connects to one of the origin's addresses, each checked after it was looked up. Raises OSError, TimeoutError."""
        async with asyncio.timeout(self._settings.connect_timeout):
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
            allowed = [info for info in found if origin.trusted_address or not forbidden_address(str(info[4][0]))]
            if not allowed:
                raise OSError(f"{origin.host} is at an address that only a configured registry may have")
            sock = await start_connection(allowed, happy_eyeballs_delay=HAPPY_EYEBALLS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return await asyncio.open_connection(sock=sock, limit=BUFFER)

    def close(self) -> None:
        """Closes what is idle; what is in use ends with its reader."""
        if self._reaper is not None:
            self._reaper.cancel()
        for idle in self._idle.values():
            for conn in idle:
                conn.close()
        self._idle.clear()


def _make_request(origin: Origin, method: str, url: str, headers: HeaderList) -> http.Request:
    # The path as it was given: a CDN's signature is over every byte of it.
    rest = url.partition("://")[2]
    cut = min((i for i in (rest.find("/"), rest.find("?")) if i >= 0), default=len(rest))
    path = rest[cut:].partition("#")[0]
    if not path.startswith("/"):
        path = "/" + path
    fields = [("Host", origin.authority), *headers, ("Accept-Encoding", "identity")]
    return http.Request(
        host=origin.host,
        port=origin.port,
        method=method.encode(),
        scheme=origin.scheme.encode(),
        authority=b"",
        path=path.encode("utf-8", "surrogateescape"),
        http_version=b"HTTP/1.1",
        headers=http.Headers(
            [(k.encode("utf-8", "surrogateescape"), v.encode("utf-8", "surrogateescape")) for k, v in fields]
        ),
        content=b"",
        trailers=None,
        timestamp_start=time.time(),
        timestamp_end=None,
    )
