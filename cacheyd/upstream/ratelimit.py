"""Remembers rate limits: while a limit is in force, cacheyd does not ask the registry in that repository with that login."""

import time
from collections.abc import Callable
from dataclasses import replace

from cacheyd.protocol.errors import Failure
from cacheyd.protocol.headers import HeaderList, credentials_of, header, without
from cacheyd.protocol.reference import Reference
from cacheyd.resources.budget import Budget
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.upstream.known_limits import LEAST, Key, Limits
from cacheyd.upstream.port import (
    Relay,
    Relayed,
    Upstream,
    UpstreamBroken,
    UpstreamRequest,
    UpstreamResponse,
    as_request_error,
)
from cacheyd.upstream.relay import read_relay
from cacheyd.upstream.retry_after import RATE_LIMIT_DEFAULT, RATE_LIMIT_MAX, wanted_wait

# The most of an answer that is remembered, because there can be thousands: bytes of the body, bytes of each header, number
# of headers; and the names of these headers.
REMEMBERED_BODY, REMEMBERED_HEADER, MAX_REMEMBERED_HEADERS = 2 << 10, 512, 8
_REMEMBERED = frozenset(
    {
        "content-type",
        "retry-after",
        "docker-distribution-api-version",
        "ratelimit-limit",
        "ratelimit-remaining",
        "ratelimit-reset",
    }
)


class RateLimited:
    """Asks an upstream, except while a rate limit of the upstream is in force. Implements `Upstream`.

    `limits` are the limits in force. A change of settings ends all of them.
    """

    def __init__(
        self,
        upstream: Upstream,
        settings: Settings | Live,
        budget: Budget,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = Limits(monotonic)
        self._upstream = upstream
        self._live = Live.of(settings)
        self._live.listen(lambda settings: self.forget())
        self._budget = budget
        self._clock = clock
        self._monotonic = monotonic
        self._generation = 0

    def forget(self) -> None:
        """Ends all limits, after a change of settings. Limits in the answers to earlier requests do not count, either."""
        self._generation += 1
        self.limits.forget()

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """The head of the response. Raises Relayed for a rate limit, and RequestError if the upstream fails."""
        ref = request.ref
        key, generation = self.key(ref, request.headers, as_client=request.as_client), self._generation
        self.limits.check(key)
        try:
            response = await self._upstream.open(request)
        except UpstreamBroken as error:
            failed = as_request_error(error)
            if error.wait is not None and generation == self._generation:
                failed = as_request_error(error, self._note(key, ref, error.wait, failed.failure))
            raise failed from error
        if response.status == 429:
            wait = wanted_wait(response.headers, self._clock())
            relay = await read_relay(response, self._budget, from_head=request.method == "HEAD")
            if generation == self._generation:
                relay = replace(relay, again_at=self._note(key, ref, wait, _to_remember(relay)))
            raise Relayed(relay)
        return response

    def key(self, ref: Reference, headers: HeaderList, *, as_client: bool = False) -> Key:
        """The key of a rate limit: the repository and the login that upstream sees. The limit holds for no other key."""
        auth = self._live.settings.registry(ref.registry).auth
        if auth != "passthrough" and not as_client:
            return ref.registry, ref.repository, auth.encode()
        # A client that names the registry in the path and has no login gets an anonymous token from cacheyd. A limit can be
        # for this token.
        given = not ref.scoped and header(headers, "authorization") is None
        return ref.registry, ref.repository, b"given" if given else credentials_of(headers)

    def _note(self, key: Key, ref: Reference, wait: float | None, said: Relay | Failure) -> float | None:
        """Remembers a rate limit. Returns when to ask again (monotonic clock); None if clients should not wait for it."""
        now = self._monotonic()
        again_at = None
        most = self._live.settings.registry(ref.registry).retry_after_max
        if wait is not None and wait <= most and most > 0:
            again_at = now + max(wait, LEAST)
        until = now + (RATE_LIMIT_DEFAULT if wait is None else min(wait, RATE_LIMIT_MAX))
        self.limits.note(key, until, replace(said, again_at=again_at) if isinstance(said, Relay) else said, again_at)
        return again_at


def _to_remember(relay: Relay) -> Relay:
    """The small part of an answer that cacheyd keeps for later requests: answers can be large, and there can be thousands."""
    headers = tuple(
        (name, value) for name, value in relay.headers if len(value) <= REMEMBERED_HEADER and name.lower() in _REMEMBERED
    )[:MAX_REMEMBERED_HEADERS]
    if len(relay.body) <= REMEMBERED_BODY:
        return replace(relay, headers=headers)
    # Marked as an answer to a HEAD, the answer gets a body from cacheyd.
    return replace(relay, headers=without(headers, "content-type"), body=b"", from_head=True)
