"""A response of an upstream, whose body is read as it comes."""

import asyncio

from cacheyd.protocol.headers import HeaderList
from cacheyd.proxy.outbound.connection import FetchConnection
from cacheyd.proxy.outbound.exchange import Exchange
from cacheyd.proxy.outbound.pool import Pool
from cacheyd.resources.pace import Pace
from cacheyd.settings.live import Live
from cacheyd.upstream.port import Chunk, UpstreamBroken


class FetchResponse:
    """A response on a fetch connection; implements `UpstreamResponse`. The connection goes back to `pool` at the end."""

    def __init__(
        self, live: Live, pool: Pool, conn: FetchConnection, exchange: Exchange, head: tuple[int, HeaderList]
    ) -> None:
        self._live = live
        self._pool = pool
        self._conn: FetchConnection | None = conn
        self._exchange = exchange
        self._pace = Pace(live.settings.min_rate, live.settings.progress_timeout)
        self.status, self.headers = head
        self.elsewhere = False

    def led(self, *, elsewhere: bool) -> "FetchResponse":
        """Itself; `elsewhere` says whether redirects led to another host than was asked."""
        self.elsewhere = elsewhere
        return self

    async def read(self) -> list[Chunk]:
        """What has come of the body since; empty at its end. Raises UpstreamBroken, also where too little comes."""
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
        """Keeps the connection if the response is complete; closes it if not."""
        conn, self._conn = self._conn, None
        if conn is not None:
            self._pool.release(conn, self._exchange)
