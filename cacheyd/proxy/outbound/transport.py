"""HTTP to upstreams: pooled connections, redirects, deadlines, the address guard. Implements `Transport`."""

import asyncio
import re
import time

from mitmproxy import http
from mitmproxy.options import Options

from cacheyd.protocol.headers import HeaderList, content_length, header, without
from cacheyd.protocol.urls import Url, from_field, parse_url, resolve
from cacheyd.proxy.outbound.connection import FetchConnection
from cacheyd.proxy.outbound.dialing import Dialer
from cacheyd.proxy.outbound.exchange import without_end
from cacheyd.proxy.outbound.intake import take_head
from cacheyd.proxy.outbound.pool import Pool
from cacheyd.proxy.outbound.response import FetchResponse
from cacheyd.proxy.outbound.routes import denied, is_same, route
from cacheyd.proxy.outbound.socket_reader import READ
from cacheyd.proxy.outbound.trust import Origin, proxy_login
from cacheyd.resources.budget import Budget
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.upstream.port import HEARD, UpstreamBroken, was_heard

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_HOPS = 5
# The longest message of a failure that is passed on (characters): the message can quote a peer.
MAX_MESSAGE = 300
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class MitmTransport:
    """Sends requests over fetch connections. After a change of settings, forgets what it learned with the old settings."""

    def __init__(self, options: Options, settings: Settings | Live, budget: Budget | None = None) -> None:
        self._live = live = Live.of(settings)
        self.budget = budget or Budget(live.settings.flight_memory)
        self._options = options
        self._dialer = Dialer(live)
        self._pool = Pool(self._connect)
        live.listen(self._forget)

    def _connect(self, origin: Origin) -> FetchConnection:
        return FetchConnection(self._options, origin, self._dialer.dial, self._dialer.ssl_context, self.budget)

    def _forget(self, settings: Settings) -> None:
        """After a change of settings: reads certificates anew, and uses no connection again that was made before."""
        self.budget.set_limit(settings.flight_memory)
        self._dialer.forget()
        self._pool.renew()

    def close(self) -> None:
        """Closes all idle connections. A connection in use is closed after its response."""
        self._pool.close()

    async def fetch(self, registry: str, method: str, url: str, headers: HeaderList) -> FetchResponse:
        """Sends a request, follows redirects (5 at most), and gives the response with its head. Raises UpstreamBroken.

        The error says in `by_other_host` whether another host than the one asked first caused the failure.
        """
        # One deadline holds for all hops, and is no longer than clients wait: a redirect does not start the time anew.
        deadline = self._live.settings.head_timeout + self._live.settings.connect_timeout / 2
        try:
            to = parse_url(url)
        except ValueError:
            raise _misdirected("the URL is not an http or https URL") from None
        if any(_CONTROLS.search(name) or _CONTROLS.search(value) for name, value in headers):
            raise UpstreamBroken("a header with control characters is not sent", refused=True)
        way = [route(self._live.settings, registry, to)]
        try:
            async with asyncio.timeout(deadline):
                return await self._follow(registry, method, url, to, headers, way)
        except TimeoutError as late:
            raise UpstreamBroken(
                f"{way[-1].authority}: no answer within {deadline:g} s",
                timeout=True,
                by_other_host=not is_same(self._live.settings, registry, way[0], way[-1]),
                answered=was_heard(late) or len(way) > 1,
            ) from None
        except UpstreamBroken as error:
            error.add(by_other_host=not is_same(self._live.settings, registry, way[0], way[-1]), answered=len(way) > 1)
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
                return response.led(by_other_host=not is_same(self._live.settings, registry, way[0], way[-1]))
            await self._finish(response)
            try:
                url = resolve(url, from_field(location))
                to = parse_url(url)
            except ValueError:
                raise _misdirected("redirected to something that is not an http or https URL") from None
            target = route(self._live.settings, registry, to)
            if target.scheme == "http" and way[0].scheme == "https":
                raise _misdirected("redirected from https to http")
            if not is_same(self._live.settings, registry, way[-1], target):
                headers = without(headers, "authorization")
            way.append(target)
        raise _misdirected(f"more than {MAX_HOPS} redirects")

    async def _finish(self, response: FetchResponse) -> None:
        """Reads the short body of a redirect, so that its connection can be kept."""
        size = content_length(response.headers)
        try:
            while size is not None and size <= READ and await response.read():
                pass
        finally:
            response.close()

    async def _exchange(self, origin: Origin, method: str, path: str, headers: HeaderList) -> FetchResponse:
        """Sends one request on an idle connection, if there is one. If that is closed, sends it again on a new connection.

        cacheyd sends only GET and HEAD, which can be sent twice (RFC 9110 section 9.2.2).
        """
        fresh = False
        while True:
            conn = self._pool.take(origin, fresh=fresh)
            fresh = not conn.used
            request = _make_request(origin, method, path, headers)
            head = None
            try:
                exchange = await conn.send(request)
                head = await exchange.wait_head()
                if head.status_code == 408 and not fresh:
                    # The server timed out while the connection was idle, and closes it (RFC 9110 section 15.5.9).
                    conn.close()
                    fresh = True
                    continue
                return FetchResponse(self._live, self._pool, conn, exchange, take_head(head))
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


def _misdirected(why: str) -> UpstreamBroken:
    """The error for a redirect that cacheyd does not follow: the registry answered, but its redirect cannot be used."""
    return UpstreamBroken(why, by_other_host=True)


def _failure(origin: Origin, conn: FetchConnection, error: UpstreamBroken, *, hopeless: bool) -> Exception:
    """The error that says why there was no response: RequestError 403 for a forbidden address, else UpstreamBroken."""
    if isinstance(conn.dial_error, PermissionError):
        return denied(str(conn.dial_error))
    return UpstreamBroken(
        f"{origin.authority}: {error}"[:MAX_MESSAGE],
        timeout=isinstance(conn.dial_error, TimeoutError),
        hopeless=hopeless,
        # If any byte came, the origin is alive, also if its response cannot be used.
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
        # A proxy needs the target in absolute-form (RFC 9112 section 3.2.2).
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
