"""Remembers rate limits: while one is in force, its registry is not asked again in that repository and with that login."""

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

# Of an answer that is remembered, for many at once: the body and each header (bytes), how many headers, and which.
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
    """An upstream that is left alone for as long as it said. Implements `Upstream`.

    `limits` are the limits that are in force. A change of settings ends them.
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
        """After a change of settings: earlier limits count no more, nor do limits in answers to earlier questions."""
        self._generation += 1
        self.limits.forget()

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """The head of the response. Raises Relayed for a rate limit, RequestError for an upstream that fails."""
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
        """Whom a rate limit is for: the repository, and the login that upstream sees. Nobody else has to keep it."""
        auth = self._live.settings.registry(ref.registry).auth
        if auth != "passthrough" and not as_client:
            return ref.registry, ref.repository, auth.encode()
        # A client that names the registry in the path and has no login gets one of cacheyd's, and may be refused that.
        given = not ref.scoped and header(headers, "authorization") is None
        return ref.registry, ref.repository, b"given" if given else credentials_of(headers)

    def _note(self, key: Key, ref: Reference, wait: float | None, said: Relay | Failure) -> float | None:
        """Remembers a rate limit. Gives when to ask again, if clients are to wait for that."""
        now = self._monotonic()
        again_at = None
        most = self._live.settings.registry(ref.registry).retry_after_max
        if wait is not None and wait <= most and most > 0:
            again_at = now + max(wait, LEAST)
        until = now + (RATE_LIMIT_DEFAULT if wait is None else min(wait, RATE_LIMIT_MAX))
        self.limits.note(key, until, replace(said, again_at=again_at) if isinstance(said, Relay) else said, again_at)
        return again_at


def _to_remember(relay: Relay) -> Relay:
    """What is kept of an answer for those who ask again: it may be large, and there may be thousands."""
    headers = tuple(
        (name, value) for name, value in relay.headers if len(value) <= REMEMBERED_HEADER and name.lower() in _REMEMBERED
    )[:MAX_REMEMBERED_HEADERS]
    if len(relay.body) <= REMEMBERED_BODY:
        return replace(relay, headers=headers)
    # As an answer to a HEAD it gets a body of ours.
    return replace(relay, headers=without(headers, "content-type"), body=b"", from_head=True)
