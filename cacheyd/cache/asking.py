"""Asks upstreams, for all parts of the cache: applies rate limits, refuses unusable answers, makes errors for clients."""

import time
from collections.abc import Callable

from cacheyd.cache.decoded import read_object
from cacheyd.cache.usable import Usable
from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.reference import Reference
from cacheyd.resources.budget import Budget
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.upstream.known_limits import Key, Limits
from cacheyd.upstream.port import Relay, Upstream, UpstreamRequest, UpstreamResponse
from cacheyd.upstream.ratelimit import RateLimited
from cacheyd.upstream.relay import read_relay


class Asking:
    """Asks upstreams. Bodies in memory count in `budget`."""

    def __init__(
        self,
        upstream: Upstream,
        settings: Settings | Live,
        *,
        budget: Budget | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        live = Live.of(settings)
        self.budget = budget or Budget(live.settings.flight_memory)
        usable = Usable(upstream, live, self.budget)
        self._limited = RateLimited(usable, live, self.budget, clock=clock, monotonic=monotonic)

    @property
    def limits(self) -> Limits:
        """The rate limits that are in force."""
        return self._limited.limits

    def forget(self) -> None:
        """After a change of settings: drops the earlier rate limits."""
        self._limited.forget()

    async def open(
        self, ref: Reference, method: str, headers: HeaderList, *, as_client: bool = False, piece: bool = False
    ) -> UpstreamResponse:
        """Asks upstream. Raises Relayed for a rate limit that is in force, RequestError 502, 503 or 504 if upstream fails."""
        return await self._limited.open(UpstreamRequest(ref, method, headers, as_client, piece))

    def limit_key(self, ref: Reference, headers: HeaderList, *, as_client: bool = False) -> Key:
        """The key of a rate limit: the login that upstream sees, and the repository."""
        return self._limited.key(ref, headers, as_client=as_client)

    async def relay(self, response: UpstreamResponse, *, from_head: bool = False) -> Relay:
        """A response as it is, with its body in memory. An error whose body breaks or is too large gets a body of cacheyd."""
        return await read_relay(response, self.budget, from_head=from_head)

    async def unpacked(self, ref: Reference, response: UpstreamResponse, digest: str) -> Relay:
        """Decodes an object that is not kept, in memory. Its digest, if known, shows which bytes are the object.

        Raises RequestError, also for more than 4 MiB: only the end of the body shows which bytes are the object.
        """
        return await read_object(ref, response, digest, self.budget)
