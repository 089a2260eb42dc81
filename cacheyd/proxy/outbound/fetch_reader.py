"""What mitmproxy reads an upstream connection with: how much it gets at once, and what is too much."""

from collections.abc import Callable, Iterator

from h11._readers import ContentLengthReader
from mitmproxy import connection
from mitmproxy.proxy import layers
from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.layers.tls import TLSLayer
from OpenSSL import SSL

from cacheyd.proxy.outbound.exchange import Exchange
from cacheyd.proxy.outbound.intake import StrictHttp1Client
from cacheyd.proxy.outbound.socket_reader import BLOCK, FIRST_READ, READ, SocketReader

# The longest head of a response, and the longest line in a chunked body (bytes); with TLS, a handshake comes on top.
MAX_HEAD, HANDSHAKE = 64 << 10, 256 << 10
# What is read at once with a head, and of a body in tiny chunks, each of which costs the time of all layers (bytes).
HEAD_READ, TINY_READ, FEW_BYTES = 4 << 10, 1 << 10, 512


def layers_of(http: layers.HttpLayer, conn: connection.Connection) -> Iterator[Layer]:
    """From the outermost one, which a proxy or TLS may be, to the one that speaks HTTP."""
    found = http.connections.get(conn)
    while found is not None:
        yield found
        found = getattr(found, "child_layer", None)


def client_of(http: layers.HttpLayer, conn: connection.Connection) -> StrictHttp1Client | None:
    """The layer that speaks HTTP on a connection."""
    return next((found for found in layers_of(http, conn) if isinstance(found, StrictHttp1Client)), None)


class Meter:
    """The exchange that is under way on a connection, and how much came of it."""

    def __init__(self) -> None:
        self.exchange: Exchange | None = None
        # Bytes that came since the request, and after its answer; how many the layers get at once.
        self._came = self._idle_bytes = 0
        self._appetite = HEAD_READ
        self._seen = (0, 0)

    def begin(self, exchange: Exchange) -> None:
        """A request is about to be sent."""
        self.exchange = exchange
        self._came = self._idle_bytes = 0
        self._appetite, self._seen = HEAD_READ, (0, 0)

    def appetite(self) -> int:
        """How many bytes the layers get at once: few of a body in tiny chunks, as all of them are worked off in one go."""
        exchange = self.exchange
        if exchange is None or exchange.response is None:
            return HEAD_READ
        pieces, size = exchange.pieces - self._seen[0], exchange.piece_bytes - self._seen[1]
        self._seen = exchange.pieces, exchange.piece_bytes
        if pieces and size < FEW_BYTES * pieces:
            self._appetite = max(TINY_READ, self._appetite // 4)
        else:
            self._appetite = min(2 * self._appetite, exchange.budget.share(READ))
        return self._appetite

    def is_too_much(self, size: int, conn: connection.Connection, client: StrictHttp1Client | None) -> bool:
        """Counts what comes; whether a head, or a line of a chunked body, does not end. Raises OSError after an answer."""
        exchange = self.exchange
        # What this read brought has not been looked at yet: on a kept connection it may be a head and much of its body.
        before, self._came = self._came, self._came + size
        if exchange is None or exchange.complete:
            self._idle_bytes += size
            if self._idle_bytes > MAX_HEAD:
                raise OSError("it sends what nobody asked for")
            return False
        if exchange.response is None:
            unread = before - MAX_HEAD - FIRST_READ - (HANDSHAKE if conn.tls else 0)
        else:
            unread = len(client.buf) - MAX_HEAD if client is not None else 0
        return unread > 0


class FetchReader:
    """Stands where mitmproxy has a StreamReader. `give_up` closes the whole connection."""

    def __init__(
        self,
        conn: connection.Connection,
        source: SocketReader,
        http: layers.HttpLayer,
        meter: Meter,
        give_up: Callable[[], None],
    ) -> None:
        self._conn = conn
        self._source = source
        self._http = http
        self._meter = meter
        self._give_up = give_up

    async def read(self, size: int) -> bytes:
        """The next bytes for the layers; most of a large body goes past them. Raises OSError for a head without an end."""
        await self.pass_body()
        try:
            data = await self._source.read(self._meter.appetite())
        except OSError:
            self._end_of_connection(broken=True)
            raise
        if not data:
            self._end_of_connection(broken=False)
        self.swallow(len(data))
        return data

    async def pass_body(self) -> None:
        """Takes a large body of known length past the layers, all but its last byte: with that they see its end."""
        exchange = self._meter.exchange
        # Nothing between it and the connection, as a proxy or TLS would be.
        client = getattr(self._http.connections.get(self._conn), "child_layer", None)
        if exchange is None or exchange.response is None or not isinstance(client, StrictHttp1Client) or self._conn.tls:
            return
        body = client.body_reader if client.state == client.read_body else None
        if isinstance(body, ContentLengthReader) and body._remaining > BLOCK and not client.buf:
            length = body._remaining - 1
            # h11 counts by itself what is left, and has no other way to be told (a contract test holds it).
            body._remaining = 1
            # What the peer left out is missing for the layers, too.
            body._remaining += await self._source.read_body(length, exchange)

    def swallow(self, size: int) -> None:
        """Counts what comes; raises OSError for a head, or a line of a chunked body, that does not end."""
        exchange = self._meter.exchange
        client = client_of(self._http, self._conn) if exchange is not None and exchange.response is not None else None
        if self._meter.is_too_much(size, self._conn, client) and exchange is not None:
            exchange.fail("the head of its response, or a line in it, has no end", hopeless=True)
            self._give_up()
            raise OSError("a head without an end")

    def _end_of_connection(self, *, broken: bool) -> None:
        """No more comes. A body that only this ends is whole if it is an orderly end (RFC 9112 section 8)."""
        client, exchange = client_of(self._http, self._conn), self._meter.exchange
        if client is None or exchange is None or client.ended or not client.ends_with_the_connection:
            return
        tls = [found.tls for found in layers_of(self._http, self._conn) if isinstance(found, TLSLayer)]
        if broken:
            exchange.cut("the connection broke before the end of the body")
        elif tls and not tls[-1].get_shutdown() & SSL.RECEIVED_SHUTDOWN:
            exchange.cut("the connection ended without TLS's close_notify, where nothing else ends the body")
