"""Tags that cannot be answered from disk at once: revalidates or fetches them, or serves them stale if upstream fails."""

import time
from collections.abc import Callable

from cacheyd.cache.access import Access
from cacheyd.cache.answer import FEW_LEFT, MISS, REVALIDATED, STALE, Answer, why_stale
from cacheyd.cache.cooldown import Cooldown
from cacheyd.cache.digests import Digests
from cacheyd.cache.freshness import may_be_stale, tag_ttl
from cacheyd.cache.heads import ASK_WITH_GET, Heads, is_complete, variant_of
from cacheyd.cache.relaying import relay_answer
from cacheyd.cache.request import Request
from cacheyd.cache.standins import StandIns
from cacheyd.cache.stored import StoredAnswers
from cacheyd.observe.events import Events
from cacheyd.protocol.errors import RequestError
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.store.records import TagVariant
from cacheyd.upstream.port import RegistryPolicy, Relay, Relayed


class Tags:
    """Answers requests for manifests by a tag."""

    def __init__(
        self,
        access: Access,
        cooldown: Cooldown,
        stored: StoredAnswers,
        heads: Heads,
        digests: Digests,
        stand_ins: StandIns,
        settings: Settings | Live,
        *,
        policy: RegistryPolicy,
        events: Events,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._access = access
        self._cooldown = cooldown
        self._stored = stored
        self._heads = heads
        self._digests = digests
        self._stand_ins = stand_ins
        self._live = Live.of(settings)
        self._policy = policy
        self._events = events
        self._clock = clock

    async def answer(self, request: Request) -> Answer:
        """Upstream's answer, or the last known answer if upstream fails. Raises Relayed, RequestError."""
        ref = request.ref
        if tag_ttl(self._live.settings, ref) == 0:
            self._events.ignored()
        if self._cooldown.active:
            self._cooldown.ripen(ref)
            self._stand_ins.refuse_held(request)
        known = self._stored.variant(request)
        if self._policy.below_floor(ref.registry) and (answer := self._saved(request, known)):
            return answer.noted(FEW_LEFT)
        try:
            answer = await self._revalidated(request, known) or await self._fetched(request)
        except (Relayed, RequestError) as error:
            if answer := self._stale(request, known, error):
                return answer
            raise
        self._access.found(ref, request.headers)
        return answer

    async def _revalidated(self, request: Request, known: TagVariant | None) -> Answer | None:
        """The answer after a HEAD, if a HEAD is enough; None if only a GET can tell."""
        ref = request.ref
        if not request.head and not (known and (self._cooldown.covers(ref) or self._stored.is_here(ref, known.digest))):
            return None
        relay = await self._heads.answer(request)
        answer = await self._stand_ins.instead(request, relay.headers) if is_complete(relay) else None
        return answer or self._confirmed(request, relay, known)

    async def _fetched(self, request: Request) -> Answer:
        answer = await self._digests.content(request)
        return await self._stand_ins.instead(request, answer.headers, answer) or answer

    def _confirmed(self, request: Request, relay: Relay, known: TagVariant | None) -> Answer | None:
        """The answer after upstream's HEAD; None if only a GET can tell. Raises Relayed for an answer that is an error."""
        ref = request.ref
        if not is_complete(relay):
            if relay.status in ASK_WITH_GET:
                return None
            raise Relayed(relay)
        variant = variant_of(relay, request.asked, self._clock())
        unchanged = known is not None and known.digest == variant.digest
        result = REVALIDATED if unchanged else MISS
        if request.head:
            answer = self._stored.of_tag(request, variant, REVALIDATED) if unchanged else None
            return answer or relay_answer(ref, relay, MISS, head=True)
        return self._stored.of_tag(request, variant, result)

    def _stale(self, request: Request, known: TagVariant | None, error: Relayed | RequestError) -> Answer | None:
        """The last known answer if upstream fails; None if upstream says that there is no such tag, or refuses this client."""
        status = error.relay.status if isinstance(error, Relayed) else error.failure.status
        if not (status == 429 or status >= 500):
            return None
        answer = self._saved(request, known)
        return answer and answer.noted(why_stale(error))

    def _saved(self, request: Request, known: TagVariant | None) -> Answer | None:
        """The last known answer, marked as stale, if it may still be served; else None."""
        stale_if_error = self._live.settings.registry(request.ref.registry).stale_if_error
        if known is None or not may_be_stale(known, stale_if_error, self._clock()):
            return None
        if self._access.is_gone(request.ref, request.headers):
            return None
        answer = self._stored.of_tag(request, known, STALE)
        return answer and answer.marked_stale()
