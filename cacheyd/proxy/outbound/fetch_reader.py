"""The reader that gives mitmproxy the bytes of an upstream connection, and limits each read, each head and each chunk line."""

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

# The longest head of a response and the longest line in a chunked body, and with TLS the most for a handshake on top (bytes).
MAX_HEAD, HANDSHAKE = 64 << 10, 256 << 10
# The most bytes of one read for a head, and for a body in tiny chunks: a chunk is tiny below FEW_BYTES. Each chunk costs the
# time of all layers.
HEAD_READ, TINY_READ, FEW_BYTES = 4 << 10, 1 << 10, 512


def layers_of(http: layers.HttpLayer, conn: connection.Connection) -> Iterator[Layer]:
    """The layers of a connection, from the outermost one (a proxy's or TLS) to the one that speaks HTTP."""
    found = http.connections.get(conn)
    while found is not None:
        yield found
        found = getattr(found, "child_layer", None)


def client_of(http: layers.HttpLayer, conn: connection.Connection) -> StrictHttp1Client | None:
    """The layer that speaks HTTP on a connection; None if there is none."""
    return next((found for found in layers_of(http, conn) if isinstance(found, StrictHttp1Client)), None)


class Meter:
    """The running exchange of a connection, and the number of bytes that came for it."""

    def __init__(self) -> None:
        self.exchange: Exchange | None = None
        # The bytes that came since the request, and after its response; then the number that the layers get at once.
        self._came = self._idle_bytes = 0
        self._appetite = HEAD_READ
        self._seen = (0, 0)

    def begin(self, exchange: Exchange) -> None:
        """Starts the counts anew for a request that is about to be sent."""
        self.exchange = exchange
        self._came = self._idle_bytes = 0
        self._appetite, self._seen = HEAD_READ, (0, 0)

    def appetite(self) -> int:
        """The most bytes that the layers get at once. A body in tiny chunks gets few, as the layers handle them in one go."""
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
        """Counts `size` bytes; gives whether a head, or a line of a chunked body, is too long.

        Raises OSError for too many bytes after the end of a response.
        """
        exchange = self.exchange
        # The layers have not looked at the bytes of this read yet: these bytes can be a head and much of its body.
        before, self._came = self._came, self._came + size
        if exchange is None or exchange.complete:
            self._idle_bytes += size
            if self._idle_bytes > MAX_HEAD:
                raise OSError("the upstream sends bytes after its response")
            return False
        if exchange.response is None:
            unread = before - MAX_HEAD - FIRST_READ - (HANDSHAKE if conn.tls else 0)
        else:
            unread = len(client.buf) - MAX_HEAD if client is not None else 0
        return unread > 0


class FetchReader:
    """Takes the place of mitmproxy's StreamReader. `give_up` closes the whole connection."""

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
        """The next bytes for the layers. Most bytes of a large body go past the layers. Raises OSError for an endless head."""
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
        """Takes a large body of known length past the layers, except for its last byte, with which the layers see its end."""
        exchange = self._meter.exchange
        # A body can go past the layers only if no layer (a proxy's, TLS) is between the HTTP layer and the connection.
        client = getattr(self._http.connections.get(self._conn), "child_layer", None)
        if exchange is None or exchange.response is None or not isinstance(client, StrictHttp1Client) or self._conn.tls:
            return
        body = client.body_reader if client.state == client.read_body else None
        if isinstance(body, ContentLengthReader) and body._remaining > BLOCK and not client.buf:
            length = body._remaining - 1
            # h11 counts the remaining bytes itself, and has no public way to change the count. A contract test pins this.
            body._remaining = 1
            # Bytes that the peer did not send are missing for the layers, too.
            body._remaining += await self._source.read_body(length, exchange)

    def swallow(self, size: int) -> None:
        """Counts `size` bytes that came. Raises OSError for a head, or a line of a chunked body, that is too long."""
        exchange = self._meter.exchange
        client = client_of(self._http, self._conn) if exchange is not None and exchange.response is not None else None
        if self._meter.is_too_much(size, self._conn, client) and exchange is not None:
            exchange.fail("the head of its response, or a line in it, has no end", hopeless=True)
            self._give_up()
            raise OSError("a head without an end")

    def _end_of_connection(self, *, broken: bool) -> None:
        """Handles the end of the connection. If only this end marks the end of a body, the body is complete only after an
        orderly end (RFC 9112 section 8).
        """
        client, exchange = client_of(self._http, self._conn), self._meter.exchange
        if client is None or exchange is None or client.ended or not client.ends_with_the_connection:
            return
        tls = [found.tls for found in layers_of(self._http, self._conn) if isinstance(found, TLSLayer)]
        if broken:
            exchange.cut("the connection broke before the end of the body")
        elif tls and not tls[-1].get_shutdown() & SSL.RECEIVED_SHUTDOWN:
            exchange.cut("the connection ended without TLS's close_notify, where nothing else ends the body")
