"""What is heard on the way to a registry's answer: from the registry, and from its token service."""

import time

from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.urls import parse_url
from cacheyd.upstream.breaker import Breaker
from cacheyd.upstream.port import Transport, UpstreamBroken, UpstreamResponse


class Listening:
    """The transport of one request, and of the token that it needs. `answered` says whether the registry itself answered.

    A dead token service costs only one timeout, as a dead origin does. A registry may name anybody's service: so it counts
    as dead for that registry only.
    """

    def __init__(self, transport: Transport, breaker: Breaker, url: str) -> None:
        self._transport = transport
        self._breaker = breaker
        self._url = url
        self.answered = False

    async def fetch(self, registry: str, method: str, url: str, headers: HeaderList) -> UpstreamResponse:
        """As the transport's own."""
        if url == self._url:
            response = await self._transport.fetch(registry, method, url, headers)
            self.answered = True
            return response
        service, started = f"{registry}'s token service {parse_url(url).host}", time.monotonic()
        if not self._breaker.admit(service):
            raise UpstreamBroken(f"{service} did not answer just now; it is asked again in a moment", refused=True)
        try:
            response = await self._transport.fetch(registry, method, url, headers)
        except UpstreamBroken as error:
            if error.refused or error.answered or error.elsewhere:
                self._breaker.answered(service)
            else:
                self._breaker.failed(service, timeout=error.timeout, since=started)
            raise
        except BaseException:
            self._breaker.abandoned(service)
            raise
        self._breaker.answered(service)
        return response
