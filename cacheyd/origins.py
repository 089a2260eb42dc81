"""Asks the origins of a registry: allowed or not, in turn, in order, not when dead, and as whom.

Implements `Upstream` over a `Transport`, which knows HTTP and nothing of registries.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from cacheyd import parse
from cacheyd.auth import Authorizer
from cacheyd.config import Settings
from cacheyd.errors import Blame, Code, Failure, HeaderList, RequestError
from cacheyd.fetch import Transport, UpstreamBroken, UpstreamRequest, UpstreamResponse, header

# A dead origin is left alone for so long, doubled with each failure (seconds).
PAUSE, PAUSE_MAX = 5.0, 60.0
# A timeout costs every client its length, so one is enough; other failures are quick and may be chance.
FAILURES = 3
MAX_TRACKED = 10_000


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


class Breaker:
    """Remembers which origins are dead, so that they cost one timeout and not one per request."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._health: dict[str, _Health] = {}

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
        self._health.pop(origin, None)

    def abandoned(self, origin: str) -> None:
        """Nobody waited for the answer."""
        if health := self._health.get(origin):
            health.probing = False

    def failed(self, origin: str, *, timeout: bool) -> None:
        """The origin could not be reached, or did not answer."""
        if len(self._health) >= MAX_TRACKED and origin not in self._health:
            self._health.clear()
        health = self._health.setdefault(origin, _Health())
        health.probing = False
        health.failures += 1
        if timeout or health.failures >= FAILURES or health.dead_until:
            health.pause = min(PAUSE_MAX, health.pause * 2) if health.dead_until else PAUSE
            health.dead_until = self._clock() + health.pause

    def dead(self) -> list[str]:
        """The origins that are left alone now."""
        now = self._clock()
        return [origin for origin, health in self._health.items() if health.dead_until > now]


class Turnstile:
    """At most so many requests to one registry at once; the others wait in the order in which they came."""

    def __init__(self) -> None:
        self._slots: dict[str, tuple[int, asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def slot(self, registry: str, limit: int) -> AsyncIterator[None]:
        """Waits for a turn."""
        known, semaphore, users = self._slots.get(registry, (limit, asyncio.Semaphore(limit), 0))
        if known != limit:
            semaphore = asyncio.Semaphore(limit)
        self._slots[registry] = (limit, semaphore, users + 1)
        try:
            async with semaphore:
                yield
        finally:
            known, current, users = self._slots[registry]
            if users <= 1:
                del self._slots[registry]
            else:
                self._slots[registry] = (known, current, users - 1)


class Origins:
    """Implements `Upstream`."""

    def __init__(self, transport: Transport, authorizer: Authorizer, settings: Settings, events: Events) -> None:
        self.settings = settings
        self.breaker = Breaker()
        self.remaining: dict[str, int] = {}
        self._transport = transport
        self._authorizer = authorizer
        self._events = events
        self._turnstile = Turnstile()

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """The first answer of the registry's origins that is one. Raises UpstreamBroken, and RequestError 403 for a
        registry that is not to be asked for.
        """
        registry = request.ref.registry
        self.check_allowed(registry)
        last = UpstreamBroken("no upstream")
        bases = self.settings.upstreams(registry)
        async with self._turnstile.slot(registry, self.settings.registry(registry).max_fetches):
            for position, base in enumerate(bases):
                try:
                    response = await self._ask(request, base)
                except UpstreamBroken as error:
                    last = error
                    continue
                if response.status >= 500 and position + 1 < len(bases):
                    response.close()
                    continue
                return response
        raise last

    def check_allowed(self, registry: str) -> None:
        """Raises RequestError 403 with the reason if the operator does not want this registry."""
        reason = ""
        if parse.matches(registry, self.settings.deny):
            reason = "this registry is denied here"
        elif self.settings.allow and not parse.matches(registry, self.settings.allow):
            reason = "this registry is not among those allowed here"
        if reason:
            raise RequestError(Failure(403, Code.DENIED, reason, Blame.CLIENT, {"registry": registry}))

    async def _ask(self, request: UpstreamRequest, base: str) -> UpstreamResponse:
        registry, started = request.ref.registry, time.monotonic()
        if not self.breaker.admit(base):
            self._events.upstream(registry, "dead", 0.0)
            raise UpstreamBroken(f"{base} did not answer just now; it is asked again in a moment", refused=True)
        code = "error"
        try:
            response = await self._authorizer.fetch(self._transport, request, base)
        except UpstreamBroken as error:
            code = "timeout" if error.timeout else "error"
            self.breaker.failed(base, timeout=error.timeout)
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

    def _note_ratelimit(self, registry: str, headers: HeaderList) -> None:
        """Docker Hub's `ratelimit-remaining: 93;w=21600`."""
        value = (header(headers, "ratelimit-remaining") or "").partition(";")[0].strip()
        if value.isdecimal() and len(value) < 10:
            if len(self.remaining) < MAX_TRACKED:
                self.remaining[registry] = int(value)
            self._events.ratelimit(registry, int(value))

    def below_floor(self, registry: str) -> bool:
        """Whether so few pulls are left that they are to be saved."""
        floor = self.settings.registry(registry).ratelimit_floor
        return floor > 0 and self.remaining.get(registry, floor) < floor
