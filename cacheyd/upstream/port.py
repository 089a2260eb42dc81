"""What the cache asks of upstreams, and what it gets: requests, responses, answers passed on, failures. Implemented by
`origins` over a transport."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cacheyd.protocol.errors import RequestError, upstream_error
from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.reference import Reference
from cacheyd.resources.budget import Budget

type Chunk = bytes | bytearray | memoryview


class UpstreamBroken(Exception):
    """The upstream gave no response, or broke off in one.

    `timeout` tells a deadline from the rest, `refused` that it was not even asked, and `elsewhere` that it was not the
    registry's own host that failed but one that it redirected to. `hopeless`: the same request would fail again.
    `answered`: the host that was asked first sent something, so it is there.
    `wait`: a token service has a rate limit, and wants to be left alone for so long (seconds); `again_at`: a registry has,
    and may be asked again then.
    """

    def __init__(
        self,
        message: str,
        *,
        timeout: bool = False,
        refused: bool = False,
        elsewhere: bool = False,
        hopeless: bool = False,
        answered: bool = False,
        wait: float | None = None,
        again_at: float | None = None,
    ) -> None:
        super().__init__(message)
        self.timeout = timeout
        self.refused = refused
        self.elsewhere = elsewhere
        self.hopeless = hopeless
        self.answered = answered
        self.wait = wait
        self.again_at = again_at

    def add(self, *, elsewhere: bool = False, answered: bool = False) -> None:
        """Adds what only the caller of the one that failed knows. What was said before stays true."""
        self.elsewhere = self.elsewhere or elsewhere
        self.answered = self.answered or answered


# Noted in an exception that ends a request of which something has come already.
HEARD = "something came of the upstream"


def was_heard(error: TimeoutError) -> bool:
    """Whether the upstream had sent something when its time was over."""
    return HEARD in getattr(error.__cause__, "__notes__", ())


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """What is asked of an upstream. `headers` hold Accept, Authorization, User-Agent and Range only.

    `as_client` says that the client's own login counts, whatever the registry's settings say; `piece` that it is of a small
    part of a blob, which its client takes as fast as it likes.
    """

    ref: Reference
    method: str
    headers: HeaderList
    as_client: bool = False
    piece: bool = False


class UpstreamResponse(Protocol):
    """A response whose head has arrived, redirects followed; `elsewhere` if one led to another host than was asked."""

    status: int
    headers: HeaderList
    elsewhere: bool

    async def read(self) -> Sequence[Chunk]:
        """What has come of the body since, at least one byte; empty at its end. Raises UpstreamBroken."""

    def close(self) -> None:
        """No more of it is wanted; safe to call at any time."""


class Transport(Protocol):
    """HTTP to upstreams, redirects followed; `registry` says whose settings hold for TLS, proxy and addresses."""

    async def fetch(self, registry: str, method: str, url: str, headers: HeaderList) -> UpstreamResponse:
        """Sends the request and waits for the head of the response. Raises UpstreamBroken."""


class Upstream(Protocol):
    """Origin registries, over whatever transport."""

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """The head of the registry's response. Raises UpstreamBroken, and RequestError for what is not to be asked."""


async def read_all(response: UpstreamResponse, limit: int, budget: Budget | None = None) -> bytes | None:
    """The whole body; None if it has more than `limit` bytes, or than the budget allows. Raises UpstreamBroken."""
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


# Answers that may be different for other credentials, or in another repository.
PERSONAL = frozenset({401, 403, 404, 429})


@dataclass(frozen=True, slots=True)
class Relay:
    """An upstream's answer to be passed on as it is: never kept. Small, so it is held in memory.

    `from_head` says that it answered a HEAD, so that it has no body although a GET's would have one. `again_at` is when
    another one can be had, on the monotonic clock, where that is soon: a rate limit's.
    """

    status: int
    headers: HeaderList
    body: bytes
    from_head: bool = False
    again_at: float | None = None


class Relayed(Exception):
    """The upstream answered with something that is not the object."""

    def __init__(self, relay: Relay) -> None:
        super().__init__(f"upstream answered {relay.status}")
        self.relay = relay

    @property
    def again_at(self) -> float | None:
        """As the relay's."""
        return self.relay.again_at


class RegistryPolicy(Protocol):
    """What an operator, and a registry's own limits, allow to be asked. Implemented by `origins`."""

    def check_allowed(self, ref: Reference) -> None:
        """Raises RequestError 403 with the rule if this may not be asked for."""

    def below_floor(self, registry: str) -> bool:
        """Whether so few pulls are left at a registry that only what nobody has yet is asked for."""


class NoPolicy:
    """Everything may be asked for."""

    def check_allowed(self, ref: Reference) -> None:
        """Never raises."""

    def below_floor(self, registry: str) -> bool:
        """Never."""
        return False


def as_request_error(error: UpstreamBroken, again_at: float | None = None) -> RequestError:
    """What a client is told of an upstream that failed. `again_at` is when it may be asked again, on the monotonic clock."""
    status = 504 if error.timeout else 503 if error.refused else 502
    return RequestError(upstream_error(status, f"upstream: {error}").failure, again_at)
