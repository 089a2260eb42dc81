"""A response of an upstream. Its reader gets the body as it comes."""

import asyncio

from cacheyd.protocol.headers import HeaderList
from cacheyd.proxy.outbound.connection import FetchConnection
from cacheyd.proxy.outbound.exchange import Exchange
from cacheyd.proxy.outbound.pool import Pool
from cacheyd.resources.pace import Pace
from cacheyd.settings.live import Live
from cacheyd.upstream.port import Chunk, UpstreamBroken


class FetchResponse:
    """A response on a fetch connection; implements `UpstreamResponse`. At the end, the connection goes back to `pool`."""

    def __init__(
        self, live: Live, pool: Pool, conn: FetchConnection, exchange: Exchange, head: tuple[int, HeaderList]
    ) -> None:
        self._live = live
        self._pool = pool
        self._conn: FetchConnection | None = conn
        self._exchange = exchange
        self._pace = Pace(live.settings.min_rate, live.settings.progress_timeout)
        self.status, self.headers = head
        self.by_other_host = False

    def led(self, *, by_other_host: bool) -> "FetchResponse":
        """Gives this response, after it noted whether redirects led to another host than the one asked first."""
        self.by_other_host = by_other_host
        return self

    async def read(self) -> list[Chunk]:
        """The next pieces of the body; empty at its end. Raises UpstreamBroken, also if the body comes too slowly."""
        began = self._pace.begin()
        try:
            async with asyncio.timeout(self._live.settings.progress_timeout):
                chunks = await self._exchange.read()
        except TimeoutError:
            raise UpstreamBroken("no progress", timeout=True) from None
        if not chunks:
            self.close()
        elif not self._pace.end(began, sum(map(len, chunks))):
            raise UpstreamBroken("too slow", timeout=True)
        return chunks

    def close(self) -> None:
        """Gives the connection back to the pool, which keeps it if the response is complete, and else closes it."""
        conn, self._conn = self._conn, None
        if conn is not None:
            self._pool.release(conn, self._exchange)
