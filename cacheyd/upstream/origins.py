"""Asks the origins of a registry: allowed or not, in turn, in order, not when dead, and as whom.

Implements `Upstream` over a `Transport`, which knows HTTP and nothing of registries.
"""

import asyncio
import heapq
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from cacheyd.protocol.errors import Blame, Code, Failure, RequestError, explain
from cacheyd.protocol.headers import HeaderList, header
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.protocol.urls import parse_url
from cacheyd.resources.slots import Slots
from cacheyd.settings.rules import Rules
from cacheyd.settings.settings import Settings
from cacheyd.upstream.auth import Authorizer, target
from cacheyd.upstream.port import Chunk, Transport, UpstreamBroken, UpstreamRequest, UpstreamResponse, was_heard

log = logging.getLogger(__name__)

# A dead origin is left alone for so long, doubled with each failure (seconds).
PAUSE, PAUSE_MAX = 5.0, 60.0
# A timeout costs every client its length, so one is enough; other failures are quick and may be chance.
FAILURES = 3
# Beyond so many names, so many are forgotten at once.
MAX_TRACKED, FORGOTTEN = 10_000, 1_000
# In each lane, so many times `max_flights` responses of all registries at once.
LANE_WIDTH = 2
# A piece that finds no turn in this time is waited for where all of its blob is fetched (seconds).
PIECE_PATIENCE = 1.0
# How long the number of pulls left is believed where the registry does not say (seconds).
WINDOW = 60.0
_REMAINING = re.compile(r"(\d{1,9})(?:;w=(\d{1,9}))?")


class Events(Protocol):
    """What is told of upstreams, for metrics."""

    def upstream(self, registry: str, code: str, seconds: float) -> None:
        """An upstream answered, or failed: `error`, `timeout`, `dead` (not even asked)."""

    def ratelimit(self, registry: str, remaining: int) -> None:
        """Docker Hub said how many pulls are left."""


@dataclass(slots=True)
class _Health:
    failures: int = 0
    pause: float = PAUSE
    dead_until: float = 0.0
    probing: bool = False
    answered: float = 0.0


class Breaker:
    """Remembers which origins are dead, so that they cost one timeout and not one per request."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._health: dict[str, _Health] = {}
        self._since = float("-inf")

    def forget(self) -> None:
        """After a change of settings: nothing is dead, and what was asked before does not say so any more."""
        self._health.clear()
        self._since = self._clock()

    def __len__(self) -> int:
        return len(self._health)

    def _of(self, origin: str) -> _Health:
        health = self._health.pop(origin, None) or _Health()
        if len(self._health) >= MAX_TRACKED:
            # Anybody may make names up. What lives, and was not heard of for longest, goes first, and what is dead for
            # longest stays.
            for name in heapq.nsmallest(FORGOTTEN, self._health, key=lambda name: self._health[name].dead_until):
                del self._health[name]
        self._health[origin] = health
        return health

    def admit(self, origin: str) -> bool:
        """Whether to ask the origin now; after its pause, one request at a time finds out."""
        health = self._health.get(origin)
        if health is None or not health.dead_until:
            return True
        if self._clock() < health.dead_until or health.probing:
            return False
        health.probing = True
        return True

    def answered(self, origin: str) -> None:
        """The origin lives, whatever it said."""
        health = self._of(origin)
        health.failures, health.dead_until, health.probing = 0, 0.0, False
        health.answered = self._clock()

    def abandoned(self, origin: str) -> None:
        """Nobody waited for the answer."""
        if health := self._health.get(origin):
            health.probing = False

    def failed(self, origin: str, *, timeout: bool, since: float, slow: bool = False) -> None:
        """The origin could not be reached, or did not answer a request of `since` (on this breaker's clock).

        Where it answered another one meanwhile, that one object is slow, and not the origin dead. `slow` says that it may
        take its time for what was asked: that alone never makes an origin a dead one, however often, nor keeps it dead.
        """
        if since < self._since:
            return
        health = self._of(origin)
        health.probing = False
        if health.answered > since:
            return
        if timeout and slow:
            health.failures = max(health.failures, min(health.failures + 1, FAILURES - 1))
            return
        health.failures += 1
        if timeout or health.failures >= FAILURES or health.dead_until:
            health.pause = min(PAUSE_MAX, health.pause * 2) if health.dead_until else PAUSE
            health.dead_until = self._clock() + health.pause

    def dead(self) -> list[str]:
        """The origins that are left alone now."""
        now = self._clock()
        return [origin for origin, health in self._health.items() if health.dead_until > now]


class Lane(StrEnum):
    """What waits behind each other at one registry. Small requests never wait behind layers, nor behind long lists."""

    BLOBS = "blobs"
    PIECES = "pieces"
    LISTS = "lists"
    SMALL = "small"


def lane_of(request: UpstreamRequest) -> Lane:
    """Where a request waits for its turn."""
    if request.ref.kind in (Kind.TAGS, Kind.REFERRERS):
        return Lane.LISTS
    if request.piece:
        return Lane.PIECES
    return Lane.BLOBS if request.ref.kind is Kind.BLOB and request.method == "GET" else Lane.SMALL


class Turnstile:
    """At most so many responses in each lane of one registry at once; the others wait in the order in which they came."""

    def __init__(self) -> None:
        self._gates: dict[tuple[str, Lane], _Gate] = {}

    async def enter(self, registry: str, lane: Lane, limit: int, patience: float) -> Callable[[], None]:
        """Waits for a turn, at most `patience` seconds; what it returns gives the turn back. Raises TimeoutError."""
        key = registry, lane
        gate = self._gates.get(key)
        if gate is None or gate.limit != limit:
            gate = self._gates[key] = _Gate(limit, asyncio.Semaphore(limit))
        gate.users += 1
        try:
            async with asyncio.timeout(patience):
                await gate.semaphore.acquire()
        except BaseException:
            self._leave(key, gate)
            raise

        def leave() -> None:
            gate.semaphore.release()
            self._leave(key, gate)

        return leave

    def _leave(self, key: tuple[str, Lane], gate: "_Gate") -> None:
        gate.users -= 1
        if not gate.users and self._gates.get(key) is gate:
            del self._gates[key]


@dataclass(slots=True)
class _Gate:
    limit: int
    semaphore: asyncio.Semaphore
    users: int = 0


class _Counted:
    """A response that gives its turn back when it is read or closed."""

    def __init__(self, response: UpstreamResponse, leave: Callable[[], None]) -> None:
        self._response = response
        self._leave: Callable[[], None] | None = leave
        self.status = response.status
        self.headers = response.headers
        self.elsewhere = response.elsewhere

    async def read(self) -> Sequence[Chunk]:
        """As the response's own."""
        try:
            chunks = await self._response.read()
        except UpstreamBroken:
            self.close()
            raise
        except Exception as error:
            self.close()
            log.error("reading an upstream's answer failed: %s", explain(error))
            raise UpstreamBroken(f"fetching failed: {type(error).__name__}") from error
        if not chunks:
            self.close()
        return chunks

    def close(self) -> None:
        """As the response's own."""
        leave, self._leave = self._leave, None
        if leave is not None:
            self._response.close()
            leave()


class _Listening:
    """A transport for one request and what it takes to get an answer to it; knows whether the registry gave any.

    What it takes is a token: a token service that is dead costs one timeout, too. It may be anybody's who a registry says,
    so it is dead for that registry only.
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


class Origins:
    """Implements `Upstream`."""

    def __init__(self, transport: Transport, authorizer: Authorizer, settings: Settings, events: Events) -> None:
        self.settings = settings
        self.breaker = Breaker()
        self._remaining: dict[str, tuple[int, float]] = {}
        self._transport = transport
        self._authorizer = authorizer
        self._events = events
        self._turnstile = Turnstile()
        # Over all registries: anybody may have a thousand names.
        self._turns = {lane: Slots(LANE_WIDTH * settings.max_flights) for lane in Lane}

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self._settings = settings
        self._rules = Rules(settings.allow, settings.deny)

    def forget(self) -> None:
        """After a change of settings: what is known of origins may be of other ones, or of another login."""
        self.breaker.forget()
        self._remaining.clear()

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """The first answer of the registry's origins that is one. Raises UpstreamBroken, and RequestError 403 for what
        is not to be asked for.
        """
        registry = request.ref.registry
        self.check_allowed(request.ref)
        await self._authorizer.prepare(request)
        limit = self.settings.registry(registry).max_fetches
        lane = lane_of(request)
        patience = PIECE_PATIENCE if lane is Lane.PIECES else self.settings.head_timeout
        try:
            leave_lane = await self._turnstile.enter(registry, lane, limit, patience)
        except TimeoutError:
            raise UpstreamBroken(f"{limit} requests to {registry} are under way already", refused=True) from None
        turns = self._turns[lane]
        try:
            if not turns.try_enter(registry):
                async with asyncio.timeout(patience):
                    await turns.enter(registry)
        except BaseException as error:
            leave_lane()
            if isinstance(error, TimeoutError):
                raise UpstreamBroken("too many requests to upstreams are under way already", refused=True) from None
            raise

        def leave() -> None:
            turns.leave(registry)
            leave_lane()

        try:
            return _Counted(await self._first(request), leave)
        except BaseException:
            leave()
            raise

    async def _first(self, request: UpstreamRequest) -> UpstreamResponse:
        last = UpstreamBroken("no upstream")
        bases = self.settings.upstreams(request.ref.registry)
        # All of them together get no longer than one alone, which has its own deadline: clients do not wait longer for two.
        total = self.settings.head_timeout + self.settings.connect_timeout / 2
        # One alone gets a moment more than its own deadline, which says more about what failed; a token service counts, too.
        share = total / len(bases) if len(bases) > 1 else total + 1.0
        for position, base in enumerate(bases):
            try:
                response = await self._ask(request, base, share)
            except UpstreamBroken as error:
                last = error
                continue
            if response.status < 500 or position + 1 == len(bases):
                return response
            response.close()
        raise last

    def check_allowed(self, ref: Reference) -> None:
        """Raises RequestError 403 with the reason and the rule if the operator does not want this to be asked for."""
        reason, rule = self._rules.refusal(ref)
        if reason:
            detail = {"registry": ref.registry, "repository": ref.repository, "rule": rule}
            raise RequestError(Failure(403, Code.DENIED, reason, Blame.CLIENT, detail))

    async def _ask(self, request: UpstreamRequest, base: str, share: float) -> UpstreamResponse:
        registry, started = request.ref.registry, time.monotonic()
        if not self.breaker.admit(base):
            self._events.upstream(registry, "dead", 0.0)
            raise UpstreamBroken(f"{base} did not answer just now; it is asked again in a moment", refused=True)
        code = "error"
        try:
            response = await self._answer(request, base, share)
        except UpstreamBroken as error:
            code = "timeout" if error.timeout else "error"
            if error.elsewhere or error.refused or error.answered:
                self.breaker.answered(base)
            else:
                self.breaker.failed(base, timeout=error.timeout, since=started, slow=lane_of(request) is Lane.LISTS)
            raise
        except BaseException:
            self.breaker.abandoned(base)
            raise
        else:
            code = str(response.status)
            self.breaker.answered(base)
            self._note_ratelimit(registry, response.headers)
            return response
        finally:
            self._events.upstream(registry, code, time.monotonic() - started)

    async def _answer(self, request: UpstreamRequest, base: str, seconds: float) -> UpstreamResponse:
        listening = _Listening(self._transport, self.breaker, target(base, request.ref))
        try:
            async with asyncio.timeout(seconds):
                return await self._authorizer.fetch(listening, request, base)
        except TimeoutError as late:
            error = UpstreamBroken(f"{base}: no answer within {seconds:g} s", timeout=True)
            error.answered = listening.answered or was_heard(late)
            raise error from None
        except UpstreamBroken as error:
            error.answered = error.answered or listening.answered
            raise

    def _note_ratelimit(self, registry: str, headers: HeaderList) -> None:
        """Docker Hub's `ratelimit-remaining: 93;w=21600`: so many pulls, in a window of so many seconds."""
        match = _REMAINING.fullmatch((header(headers, "ratelimit-remaining") or "").strip())
        if match is None:
            return
        remaining = int(match[1])
        if registry in self._remaining or len(self._remaining) < MAX_TRACKED:
            self._remaining[registry] = (remaining, time.monotonic() + float(match[2] or WINDOW))
        self._events.ratelimit(registry, remaining)

    def below_floor(self, registry: str) -> bool:
        """Whether so few pulls are left that they are to be saved."""
        floor = self.settings.registry(registry).ratelimit_floor
        remaining, until = self._remaining.get(registry, (floor, 0.0))
        return remaining < floor and time.monotonic() < until
