"""The port to upstreams: requests, responses, answers that cacheyd passes on, failures. `origins` implements it over a
transport."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cacheyd.protocol.errors import RequestError, upstream_error
from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.reference import Reference
from cacheyd.resources.budget import Budget

type Chunk = bytes | bytearray | memoryview


class UpstreamBroken(Exception):
    """The upstream gave no response, or its response broke off.

    `timeout`: a deadline passed. `refused`: cacheyd did not ask the registry, or got no login or token for it.
    `by_other_host`: another host failed (of a redirect, or a token service), not the registry's own. `hopeless`: the same
    request would fail again. `answered`: the host that cacheyd asked first sent something, so this host lives.
    `wait`: a token service has a rate limit and wants no request for this time (seconds). `again_at`: a registry has a rate
    limit and takes requests again at this time.
    """

    def __init__(
        self,
        message: str,
        *,
        timeout: bool = False,
        refused: bool = False,
        by_other_host: bool = False,
        hopeless: bool = False,
        answered: bool = False,
        wait: float | None = None,
        again_at: float | None = None,
    ) -> None:
        super().__init__(message)
        self.timeout = timeout
        self.refused = refused
        self.by_other_host = by_other_host
        self.hopeless = hopeless
        self.answered = answered
        self.wait = wait
        self.again_at = again_at

    def add(self, *, by_other_host: bool = False, answered: bool = False) -> None:
        """Adds flags that only the caller of the failed part knows. A flag that is set stays set."""
        self.by_other_host = self.by_other_host or by_other_host
        self.answered = self.answered or answered


# A note in the exception that ends a request after the upstream has sent some bytes.
HEARD = "something came of the upstream"


def was_heard(error: TimeoutError) -> bool:
    """Whether the upstream had sent some bytes before the deadline passed."""
    return HEARD in getattr(error.__cause__, "__notes__", ())


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """A request to an upstream. `headers` hold Accept, Authorization, User-Agent and Range only.

    `as_client`: the client's own login counts, and the registry's settings for logins do not. `piece`: the request is for a
    small part of a blob, and the speed of its client sets its speed.
    """

    ref: Reference
    method: str
    headers: HeaderList
    as_client: bool = False
    piece: bool = False


class UpstreamResponse(Protocol):
    """A response whose head has arrived, after redirects; `by_other_host`: a redirect led to another host than the first."""

    status: int
    headers: HeaderList
    by_other_host: bool

    async def read(self) -> Sequence[Chunk]:
        """The bytes of the body that arrived since the last call, at least one; empty at the end. Raises UpstreamBroken."""

    def close(self) -> None:
        """Ends the response: nobody reads more of its body. Safe to call at any time."""


class Transport(Protocol):
    """HTTP to upstreams; follows redirects. The settings of `registry` hold for TLS, proxy and addresses."""

    async def fetch(self, registry: str, method: str, url: str, headers: HeaderList) -> UpstreamResponse:
        """Sends the request and waits for the head of the response. Raises UpstreamBroken."""


class Upstream(Protocol):
    """The origins of registries, over any transport."""

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """The head of the registry's response. Raises UpstreamBroken, and RequestError if the request is not allowed."""


async def read_all(response: UpstreamResponse, limit: int, budget: Budget | None = None) -> bytes | None:
    """The whole body; None if it has more bytes than `limit`, or more than the budget allows. Raises UpstreamBroken."""
    data = bytearray()
    try:
        while chunks := await response.read():
            before = len(data)
            for chunk in chunks:
                data += chunk
            if budget is not None:
                budget.take(len(data) - before)
            if len(data) > limit or (budget is not None and len(data) > budget.share(limit)):
                return None
        return bytes(data)
    finally:
        if budget is not None:
            budget.give(len(data))


# Statuses of answers that can be different for other credentials, or in another repository.
PERSONAL = frozenset({401, 403, 404, 429})


@dataclass(frozen=True, slots=True)
class Relay:
    """An upstream's answer that cacheyd passes on as it is, and never stores. The answer is small, so it is in memory.

    `from_head`: the upstream answered a HEAD, so there is no body although the answer to a GET would have one. `again_at`
    is when to ask again (monotonic clock): only for a rate limit that ends soon.
    """

    status: int
    headers: HeaderList
    body: bytes
    from_head: bool = False
    again_at: float | None = None


class Relayed(Exception):
    """The upstream gave an answer that is not the object; cacheyd passes this answer on."""

    def __init__(self, relay: Relay) -> None:
        super().__init__(f"upstream answered {relay.status}")
        self.relay = relay

    @property
    def again_at(self) -> float | None:
        """The `again_at` of the relay."""
        return self.relay.again_at


class RegistryPolicy(Protocol):
    """Which requests the operator and a registry's own limits allow. `origins` implements it."""

    def check_allowed(self, ref: Reference) -> None:
        """Raises RequestError 403 with the rule if the operator does not allow requests for `ref`."""

    def below_floor(self, registry: str) -> bool:
        """Whether so few pulls are left at a registry that cacheyd asks it only for objects and tags that are not stored."""


class NoPolicy:
    """Allows every request."""

    def check_allowed(self, ref: Reference) -> None:
        """Never raises."""

    def below_floor(self, registry: str) -> bool:
        """Always False."""
        return False


def as_request_error(error: UpstreamBroken, again_at: float | None = None) -> RequestError:
    """The error that a client gets for a failed upstream. `again_at` is when to ask it again (monotonic clock)."""
    status = 504 if error.timeout else 503 if error.refused else 502
    return RequestError(upstream_error(status, f"upstream: {error}").failure, again_at)
