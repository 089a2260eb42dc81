"""Notes which hosts answer during one request: the registry, and its token service."""

import time

from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.urls import parse_url
from cacheyd.upstream.breaker import Breaker
from cacheyd.upstream.port import Transport, UpstreamBroken, UpstreamResponse


class Listening:
    """The transport of one request and of the token that the request needs. `answered`: the registry itself answered.

    A dead token service costs only one timeout, as a dead origin does. A registry can name any service of any owner, so a
    dead service counts as dead for that registry only.
    """

    def __init__(self, transport: Transport, breaker: Breaker, url: str) -> None:
        self._transport = transport
        self._breaker = breaker
        self._url = url
        self.answered = False

    async def fetch(self, registry: str, method: str, url: str, headers: HeaderList) -> UpstreamResponse:
        """Fetches with the transport, and notes the answer or the failure. Raises UpstreamBroken."""
        if url == self._url:
            response = await self._transport.fetch(registry, method, url, headers)
            self.answered = True
            return response
        service, started = f"{registry}'s token service {parse_url(url).host}", time.monotonic()
        if not self._breaker.admit(service):
            raise UpstreamBroken(f"{service} did not answer just now; cacheyd asks it again in a moment", refused=True)
        try:
            response = await self._transport.fetch(registry, method, url, headers)
        except UpstreamBroken as error:
            if error.refused or error.answered or error.by_other_host:
                self._breaker.answered(service)
            else:
                self._breaker.failed(service, timeout=error.timeout, since=started)
            raise
        except BaseException:
            self._breaker.abandoned(service)
            raise
        self._breaker.answered(service)
        return response
