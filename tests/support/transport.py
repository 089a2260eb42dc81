"""A Transport with http.client, for tests of the code above HTTP. It has no redirects and no TLS."""

import asyncio
import http.client
from collections.abc import Sequence
from urllib.parse import urlsplit

from cacheyd.protocol.headers import HeaderList
from cacheyd.upstream.port import UpstreamBroken


class PlainResponse:
    """A response. Its reader gets the body as it comes."""

    by_other_host = False

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response
        self.status = response.status
        self.headers: HeaderList = tuple(response.getheaders())

    async def read(self) -> Sequence[bytes]:
        try:
            data = await asyncio.to_thread(self._response.read1, 1 << 20)
        except (OSError, http.client.HTTPException, AttributeError) as error:
            raise UpstreamBroken(str(error)) from error
        return [data] if data else []

    def close(self) -> None:
        self._connection.close()


class PlainTransport:
    """Makes one connection for each request."""

    async def fetch(self, registry: str, method: str, url: str, headers: HeaderList) -> PlainResponse:
        parts = urlsplit(url)
        assert parts.hostname
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)

        def ask() -> http.client.HTTPResponse:
            connection.request(method, f"{parts.path}{'?' if parts.query else ''}{parts.query}", headers=dict(headers))
            return connection.getresponse()

        try:
            return PlainResponse(connection, await asyncio.to_thread(ask))
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise UpstreamBroken(str(error)) from error
