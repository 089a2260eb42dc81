"""HTTP to upstreams: pooled connections, redirects, deadlines, the address guard. Implements `Transport`."""

import asyncio
import re
import socket
import time
from collections.abc import Sequence
from functools import lru_cache
from weakref import WeakSet

from aiohappyeyeballs import AddrInfoType, start_connection
from mitmproxy import http
from mitmproxy.options import Options
from OpenSSL import SSL

from cacheyd.protocol.errors import Blame, Code, Failure, RequestError
from cacheyd.protocol.headers import HeaderList, content_length, header, without
from cacheyd.protocol.urls import Url, from_field, is_upgrade, parse_url, resolve
from cacheyd.proxy.outbound.connection import FetchConnection, Streams
from cacheyd.proxy.outbound.exchange import Exchange, without_end
from cacheyd.proxy.outbound.intake import take_head
from cacheyd.proxy.outbound.names import Names
from cacheyd.proxy.outbound.trust import (
    Origin,
    Trust,
    forbidden_kind,
    forbidden_name,
    kin_kinds,
    make_ssl_context,
    proxy_login,
)
from cacheyd.proxy.outbound.wire import READ, Wire
from cacheyd.resources.budget import Budget
from cacheyd.resources.pace import Pace
from cacheyd.settings.settings import Settings
from cacheyd.upstream.port import HEARD, Chunk, UpstreamBroken, was_heard

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_HOPS = 5
# How long an unused connection is kept, how many to one origin, and after what time the next address is tried (seconds).
IDLE, MAX_IDLE, HAPPY_EYEBALLS = 30.0, 8, 0.25
# How many are kept to all origins together: each takes some forty KiB, and a descriptor.
MAX_IDLE_IN_ALL = 256
# How many of a host's addresses are looked at: the host says how many there are.
MAX_ADDRESSES = 16
# What is passed on of a failure's message, which may quote a peer (characters).
MAX_MESSAGE = 300
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

_base = lru_cache(maxsize=1024)(parse_url)


class FetchResponse:
    """A response on a fetch connection; implements `UpstreamResponse`."""

    def __init__(
        self, transport: "MitmTransport", conn: FetchConnection, exchange: Exchange, head: tuple[int, HeaderList]
    ) -> None:
        self._transport = transport
        self._conn: FetchConnection | None = conn
        self._exchange = exchange
        self._pace = Pace(transport.settings.min_rate, transport.settings.progress_timeout)
        self.status, self.headers = head
        self.elsewhere = False

    async def read(self) -> list[Chunk]:
        """What has come of the body since; empty at its end. Raises UpstreamBroken, also where too little comes."""
        began = self._pace.begin()
        try:
            async with asyncio.timeout(self._transport.settings.progress_timeout):
                chunks = await self._exchange.read()
        except TimeoutError:
            raise UpstreamBroken("no progress", timeout=True) from None
        if not chunks:
            self.close()
        elif not self._pace.end(began, sum(map(len, chunks))):
            raise UpstreamBroken("too slow", timeout=True)
        return chunks

    def close(self) -> None:
        """Keeps the connection if the response is complete, else closes it."""
        conn, self._conn = self._conn, None
        if conn is not None:
            self._transport.release(conn, self._exchange)


class MitmTransport:
    """Fetch connections, pooled by origin."""

    def __init__(self, options: Options, settings: Settings, budget: Budget | None = None) -> None:
        self.settings = settings
        self.budget = budget or Budget(settings.flight_memory)
        self._options = options
        self._idle: dict[Origin, list[FetchConnection]] = {}
        # Made with the settings in force, idle or in use.
        self._current: WeakSet[FetchConnection] = WeakSet()
        self._names = Names()
        self._ssl_contexts: dict[Trust, SSL.Context] = {}
        self._reaper: asyncio.Task[None] | None = None

    async def fetch(self, registry: str, method: str, url: str, headers: HeaderList) -> FetchResponse:
        """The head of the response, redirects followed (at most 5 hops). Raises UpstreamBroken.

        The error says whether the failure was `elsewhere` than at the host that was asked first.
        """
        # The whole way there takes no longer than clients wait; a redirect is no new start.
        deadline = self.settings.head_timeout + self.settings.connect_timeout / 2
        try:
            to = parse_url(url)
        except ValueError:
            raise _misdirected("sent to something that is no http or https URL") from None
        if any(_CONTROLS.search(name) or _CONTROLS.search(value) for name, value in headers):
            raise UpstreamBroken("a header with control characters is not sent", refused=True)
        way = [self._origin(to, registry)]
        try:
            async with asyncio.timeout(deadline):
                return await self._follow(registry, method, url, to, headers, way)
        except TimeoutError as late:
            raise UpstreamBroken(
                f"{way[-1].authority}: no answer within {deadline:g} s",
                timeout=True,
                elsewhere=not self._is_same(registry, way[0], way[-1]),
                answered=was_heard(late) or len(way) > 1,
            ) from None
        except UpstreamBroken as error:
            error.add(elsewhere=not self._is_same(registry, way[0], way[-1]), answered=len(way) > 1)
            raise

    async def _follow(
        self, registry: str, method: str, url: str, to: Url, headers: HeaderList, way: list[Origin]
    ) -> FetchResponse:
        for _ in range(MAX_HOPS + 1):
            response = await self._exchange(way[-1], method, to.path, headers)
            if response.status == 407 and way[-1].proxy:
                response.close()
                raise UpstreamBroken("the proxy wants a login")
            location = header(response.headers, "location")
            if response.status not in REDIRECTS or location is None:
                response.elsewhere = not self._is_same(registry, way[0], way[-1])
                return response
            await self._finish(response)
            try:
                url = resolve(url, from_field(location))
                to = parse_url(url)
            except ValueError:
                raise _misdirected("redirected to something that is no http or https URL") from None
            target = self._origin(to, registry)
            if target.scheme == "http" and way[0].scheme == "https":
                raise _misdirected("redirected from https to http")
            if not self._is_same(registry, way[-1], target):
                headers = without(headers, "authorization")
            way.append(target)
        raise _misdirected(f"more than {MAX_HOPS} redirects")

    def _is_same(self, registry: str, known: Origin, target: Origin) -> bool:
        """Whether a login for `known` is for `target`, too: the same site, or the same host by TLS where it had none."""
        if known.same_site(target):
            return True
        url = target.url
        bases = [_base(base) for base in self.settings.upstreams(registry)]
        configured = known.scheme == "http" and known.host == url.host and url.site in [base.site for base in bases]
        return is_upgrade(known.url, url) or (configured and url.scheme == "https")

    async def _finish(self, response: FetchResponse) -> None:
        """Reads the short body of a redirect, so that its connection can be kept."""
        size = content_length(response.headers)
        try:
            while size is not None and size <= READ and await response.read():
                pass
        finally:
            response.close()

    def _origin(self, url: Url, registry: str) -> Origin:
        """How a URL is reached for a registry; asked for each hop. Raises RequestError 403."""
        row = self.settings.registry(registry)
        bases = [_base(base) for base in self.settings.upstreams(registry)]
        kin = tuple(base.host for base in bases) if row.configured else ()
        if any(url.site == base.site or is_upgrade(base, url) for base in bases):
            # Client certificates and leniency are for the registry itself, not for where else it redirects to.
            trust = Trust(row.ca_file, row.client_cert, row.client_key, row.insecure_skip_verify)
            origin = Origin(*url.site, trust, row.configured, row.proxy)
        else:
            origin = Origin(*url.site, Trust(row.ca_file), False, row.proxy, kin)
        # Behind a proxy nobody here looks it up.
        kind = forbidden_name(url.host) if row.proxy and not origin.trusted_address else ""
        if kind and kind not in kin_kinds(map(forbidden_name, kin)):
            raise _denied(f"{url.host} is an address that only a configured registry may have")
        return origin

    async def _exchange(self, origin: Origin, method: str, path: str, headers: HeaderList) -> FetchResponse:
        """One request, on a kept connection if there is one; if that turns out to be closed, once more on a new one.

        Only GET and HEAD are sent, which may be sent twice (RFC 9110 section 9.2.2).
        """
        fresh = False
        while True:
            conn = self._take(origin, fresh=fresh)
            fresh = not conn.used
            request = _make_request(origin, method, path, headers)
            head = None
            try:
                exchange = await conn.send(request)
                head = await exchange.wait_head()
                if head.status_code == 408 and not fresh:
                    # It says so of the time before the request, and closes (RFC 9110 section 15.5.9).
                    conn.close()
                    fresh = True
                    continue
                return FetchResponse(self, conn, exchange, take_head(head))
            except UpstreamBroken as error:
                conn.close()
                if fresh or head is not None:
                    raise _failure(origin, conn, error, hopeless=error.hopeless or head is not None) from None
                fresh = True
            except BaseException as error:
                if conn.heard:
                    error.add_note(HEARD)
                conn.close()
                raise

    def _take(self, origin: Origin, *, fresh: bool) -> FetchConnection:
        idle = self._idle.get(origin, [])
        while idle and not fresh:
            conn = idle.pop()
            if conn.alive:
                return conn
            conn.close()
        conn = FetchConnection(self._options, origin, self._dial, self._ssl_context, self.budget)
        self._current.add(conn)
        return conn

    def _ssl_context(self, trust: Trust) -> SSL.Context:
        if trust not in self._ssl_contexts:
            try:
                self._ssl_contexts[trust] = make_ssl_context(trust)
            except SSL.Error:
                # They could be read at the start, or at the last reload.
                files = filter(None, (trust.ca_file, trust.client_cert, trust.client_key))
                raise OSError(f"certificates that cannot be used: {', '.join(map(str, files))}") from None
        return self._ssl_contexts[trust]

    def release(self, conn: FetchConnection, exchange: Exchange) -> None:
        """Takes a connection back after its response."""
        exchange.over()
        idle = self._idle.get(conn.origin, [])
        if not (exchange.complete and conn.alive and len(idle) < MAX_IDLE and conn in self._current):
            conn.close()
            return
        conn.idle_since = time.monotonic()
        idle.append(conn)
        self._idle[conn.origin] = idle
        if sum(map(len, self._idle.values())) > MAX_IDLE_IN_ALL:
            self._drop_oldest()
        if self._reaper is None or self._reaper.done():
            self._reaper = asyncio.create_task(self._reap(), name="idle upstream connections")

    def _drop_oldest(self) -> None:
        origin = min(self._idle, key=lambda origin: self._idle[origin][0].idle_since if self._idle[origin] else 0.0)
        idle = self._idle[origin]
        if idle:
            idle.pop(0).close()
        if not idle:
            del self._idle[origin]

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

    async def _dial(self, origin: Origin, host: str, port: int) -> Streams:
        """Connects to an address of the host, each checked after it was looked up. Raises OSError, TimeoutError."""
        trusted = origin.trusted_address or (bool(origin.proxy) and host != origin.host)
        async with asyncio.timeout(self.settings.connect_timeout):
            found = (await self._names.addresses(host, port))[:MAX_ADDRESSES]
            allowed = found if trusted else _of_kinds(found, {""})
            if not allowed and origin.kin:
                # What an operator runs on this host may have its CDN or token service here, too.
                kin = [info for name in origin.kin for info in await self._names.addresses(name, port)]
                allowed = _of_kinds(found, kin_kinds(forbidden_kind(str(info[4][0])) for info in kin))
            if not allowed:
                raise PermissionError(f"{host} is at {found[0][4][0]}, an address that only a configured registry may have")
            sock = await start_connection(allowed, happy_eyeballs_delay=HAPPY_EYEBALLS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return await asyncio.get_running_loop().create_connection(Wire, sock=sock)

    def reload(self, settings: Settings) -> None:
        """New settings: certificates are read anew, and no connection made with the old ones is used again."""
        self.settings = settings
        self._names.forget()
        self.budget.set_limit(settings.flight_memory)
        self._ssl_contexts.clear()
        self._current = WeakSet()
        self.close()

    def close(self) -> None:
        """Closes what is idle; what is in use ends with its reader."""
        for conn in [conn for idle in self._idle.values() for conn in idle]:
            conn.close()
        self._idle.clear()


def _of_kinds(found: Sequence[AddrInfoType], kinds: set[str]) -> list[AddrInfoType]:
    return [info for info in found if forbidden_kind(str(info[4][0])) in kinds]


def _misdirected(why: str) -> UpstreamBroken:
    """A redirect that is not followed: the registry answered, but leads nowhere."""
    return UpstreamBroken(why, elsewhere=True)


def _denied(why: str) -> RequestError:
    return RequestError(Failure(403, Code.DENIED, why, Blame.CLIENT))


def _failure(origin: Origin, conn: FetchConnection, error: UpstreamBroken, *, hopeless: bool) -> Exception:
    """Why there was no response, in our terms."""
    if isinstance(conn.dial_error, PermissionError):
        return _denied(str(conn.dial_error))
    return UpstreamBroken(
        f"{origin.authority}: {error}"[:MAX_MESSAGE],
        timeout=isinstance(conn.dial_error, TimeoutError),
        hopeless=hopeless,
        # Where anything came, the origin is there, whatever it said.
        answered=hopeless or conn.heard,
    )


def _make_request(origin: Origin, method: str, path: str, headers: HeaderList) -> http.Request:
    fields = [("Host", origin.authority), *headers, ("Accept-Encoding", "identity")]
    absolute = bool(origin.proxy) and origin.scheme == "http"
    if absolute and (login := proxy_login(origin.proxy)):
        fields.append(("Proxy-Authorization", login))
    now = time.time()
    request = http.Request(
        host=origin.host,
        port=origin.port,
        method=method.encode(),
        scheme=origin.scheme.encode(),
        # In absolute-form where a proxy reads it (RFC 9112 section 3.2.2).
        authority=origin.authority.encode() if absolute else b"",
        path=path.encode("ascii"),
        http_version=b"HTTP/1.1",
        headers=http.Headers([(k.encode("latin-1", "replace"), v.encode("latin-1", "replace")) for k, v in fields]),
        content=b"",
        trailers=http.Headers(),
        timestamp_start=now,
        timestamp_end=now,
    )
    return without_end(request)
