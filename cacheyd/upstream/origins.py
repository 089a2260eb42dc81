"""Asks the origins of a registry, in the order of the settings.

Implements `Upstream` and `RegistryPolicy` over a `Transport`. The transport knows HTTP, and nothing about registries.
"""

import asyncio
import time

from cacheyd.observe.events import Events
from cacheyd.protocol.errors import Blame, Code, Failure, RequestError
from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.reference import Reference
from cacheyd.settings.live import Live
from cacheyd.settings.rules import Rules
from cacheyd.settings.settings import Settings
from cacheyd.upstream.auth import Authorizer
from cacheyd.upstream.bases import target
from cacheyd.upstream.breaker import Breaker
from cacheyd.upstream.lanes import Lane, Lanes, lane_of
from cacheyd.upstream.listening import Listening
from cacheyd.upstream.port import Transport, UpstreamBroken, UpstreamRequest, UpstreamResponse, was_heard
from cacheyd.upstream.pulls import PullsLeft
from cacheyd.upstream.responses import ResponseInTurn


class Origins:
    """Sends allowed requests to living origins, each in its turn and with its login: `Upstream` and `RegistryPolicy`."""

    def __init__(
        self, transport: Transport, authorizer: Authorizer, settings: Settings | Live, events: Events | None = None
    ) -> None:
        self._live = Live.of(settings)
        self._transport = transport
        self._authorizer = authorizer
        self._events = events or Events()
        self.breaker = Breaker()
        self._pulls = PullsLeft()
        self._lanes = Lanes(self.settings.max_flights)
        self._rules = _rules_of(self.settings)
        self._live.listen(self._changed)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._live.settings

    def _changed(self, settings: Settings) -> None:
        self._rules = _rules_of(settings)
        self.forget()

    def forget(self) -> None:
        """Call after a change of settings: the facts about origins can belong to other origins, or to another login."""
        self.breaker.forget()
        self._pulls.forget()

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """The first answer below 500 of the registry's origins, else the last origin's answer. Raises UpstreamBroken, and
        RequestError 403 if the operator does not allow the request.
        """
        self.check_allowed(request.ref)
        await self._authorizer.prepare(request)
        leave = await self._lanes.enter(request, self.settings)
        try:
            return ResponseInTurn(await self._first(request), leave)
        except BaseException:
            leave()
            raise

    async def _first(self, request: UpstreamRequest) -> UpstreamResponse:
        last = UpstreamBroken("no upstream")
        bases = self.settings.upstreams(request.ref.registry)
        # All origins together get as much time as a single origin: clients do not wait longer because there are two.
        total = self.settings.head_timeout + self.settings.connect_timeout / 2
        # A single origin gets a second more: the transport has its own deadline, and that error says more than ours. The
        # time of a token service counts, too.
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
        """Raises RequestError 403 with the reason and the rule if the operator does not allow requests for `ref`."""
        reason, rule = self._rules.refusal(ref)
        if reason:
            detail = {"registry": ref.registry, "repository": ref.repository, "rule": rule}
            raise RequestError(Failure(403, Code.DENIED, reason, Blame.CLIENT, detail))

    async def _ask(self, request: UpstreamRequest, base: str, share: float) -> UpstreamResponse:
        registry, started = request.ref.registry, time.monotonic()
        if not self.breaker.admit(base):
            self._events.upstream(registry, "dead", 0.0)
            raise UpstreamBroken(f"{base} did not answer just now; cacheyd asks it again in a moment", refused=True)
        code = "error"
        try:
            response = await self._answer(request, base, share)
        except UpstreamBroken as error:
            code = "timeout" if error.timeout else "error"
            if error.by_other_host or error.refused or error.answered:
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
        listening = Listening(self._transport, self.breaker, target(base, request.ref))
        try:
            async with asyncio.timeout(seconds):
                return await self._authorizer.fetch(listening, request, base)
        except TimeoutError as late:
            answered = listening.answered or was_heard(late)
            raise UpstreamBroken(f"{base}: no answer within {seconds:g} s", timeout=True, answered=answered) from None
        except UpstreamBroken as error:
            error.add(answered=listening.answered)
            raise

    def _note_ratelimit(self, registry: str, headers: HeaderList) -> None:
        remaining = self._pulls.note(registry, headers)
        if remaining is not None:
            self._events.ratelimit(registry, remaining)

    def below_floor(self, registry: str) -> bool:
        """Whether fewer pulls are left at the registry than its `ratelimit_floor`."""
        return self._pulls.are_below(self.settings.registry(registry).ratelimit_floor, registry)


def _rules_of(settings: Settings) -> Rules:
    return Rules(settings.allow, settings.deny)
