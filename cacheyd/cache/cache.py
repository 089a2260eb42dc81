"""The way of a request: a hit; else the client waits while upstream is asked; what is not here is answered by kind.

`hits` answers from disk. `tags`, `digests`, `blobs` and `lists` ask upstream, each in its own way. `bypass` passes on what is
not kept. This module puts them together and chooses one.
"""

import time
from collections.abc import Callable

from cacheyd.cache.access import REFUSED, Access
from cacheyd.cache.admission import Admission
from cacheyd.cache.answer import BYPASS, MISS, Answer, counted, error_answer
from cacheyd.cache.blobs import Blobs
from cacheyd.cache.boarding import Boarding
from cacheyd.cache.bypass import Bypass
from cacheyd.cache.cooldown import Cooldown
from cacheyd.cache.created import Created
from cacheyd.cache.digests import Digests
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.heads import Heads
from cacheyd.cache.hits import Hits
from cacheyd.cache.lists import Listings
from cacheyd.cache.pieces import Pieces
from cacheyd.cache.relaying import relay_answer
from cacheyd.cache.request import Request
from cacheyd.cache.sightings import Sightings
from cacheyd.cache.standins import StandIns
from cacheyd.cache.stored import StoredAnswers
from cacheyd.cache.tags import Tags
from cacheyd.cache.waiting import Waiting
from cacheyd.observe.events import Events
from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.reference import Kind
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.store.store import Store
from cacheyd.upstream.port import NoPolicy, RegistryPolicy, Relayed

# A file that has to be hashed before it counts is waited for so long, then fetched instead (seconds): it may be huge.
RECOVER_WAIT = 10.0
LISTS = (Kind.TAGS, Kind.REFERRERS)


class Cache:
    """Answers requests. `hit` is synchronous and answers from disk or not at all; `answer` does the rest."""

    def __init__(
        self,
        store: Store,
        fetcher: Fetcher,
        settings: Settings | Live,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        events: Events | None = None,
        policy: RegistryPolicy | None = None,
    ) -> None:
        events, policy = events or Events(), policy or NoPolicy()
        live = self._live = Live.of(settings)
        self.store = store
        self._fetcher = fetcher
        self.access = Access(store, fetcher, live)
        sightings = Sightings(store, clock=clock, monotonic=monotonic)
        self.cooldown = Cooldown(store, sightings, live)
        admission = Admission(store, sightings, self.cooldown, Created(store, fetcher, sightings, events), live, events)
        # Told afterwards, as they need each other: the admission fetches images to learn their dates, and the fetcher asks the
        # admission what becomes of a tag.
        fetcher.manifests.admitted_by(admission.admit)
        stored = StoredAnswers(store, self.access, clock)
        pieces = Pieces(fetcher, monotonic)
        bypass = Bypass(store, fetcher, pieces, live, events)
        self._heads = Heads(fetcher, live, clock)
        self._hits = Hits(store, fetcher, self.access, self.cooldown, stored, live, policy=policy, clock=clock)
        self._lists = Listings(store, fetcher, bypass, live, policy=policy, clock=clock)
        self._digests = Digests(store, fetcher, self.access, stored, self._heads, bypass, clock)
        stand_ins = StandIns(self.access, self.cooldown, admission, stored, self._digests, live, clock)
        self._tags = Tags(
            self.access, self.cooldown, stored, self._heads, self._digests, stand_ins, live,
            policy=policy, events=events, clock=clock,
        )  # fmt: skip
        self._blobs = Blobs(store, fetcher, Boarding(fetcher, self.access), pieces, bypass)
        self._waiting = Waiting(fetcher, live, policy)

    def hit(self, request: Request) -> Answer | None:
        """The answer from disk, or None if upstream has to be asked. Never awaits, never raises for what is in the store."""
        if request.ref.kind in LISTS:
            return self._listed(request)
        return self._hits.find(request)

    async def answer(self, request: Request, gone: Callable[[], bool] = lambda: False) -> Answer:
        """The answer, whatever it takes; failures are answers, too. `gone` says whether the client has left."""
        try:
            answer = self.hit(request) or await self._waiting.answer(request, self._ask, gone)
            return answer if request.head else counted(answer, self._fetcher.budget)
        except Relayed as error:
            return self._relayed(request, error)
        except RequestError as error:
            return error_answer(error, request.ref)

    async def _ask(self, request: Request) -> Answer:
        """Asks upstream, or hashes a file of which nobody knows yet whether it is whole. Raises Relayed, RequestError."""
        ref = request.ref
        if ref.kind in LISTS:
            return await self._lists.answer(request)
        asked = await self.access.check(ref, request.headers)
        recovered = ref.digest is not None and await self.store.objects.recover(ref.digest, wait=RECOVER_WAIT) is not None
        # Where nobody had to be asked, `hit` has just said that there is none.
        answer = self._hits.find(request, permitted=asked) if asked or recovered else None
        return answer or await self._miss(request, permitted=asked)

    async def _miss(self, request: Request, *, permitted: bool) -> Answer:
        """The answer for what is not here. `permitted`: upstream allowed this very request just now."""
        if request.ref.kind is Kind.BLOB:
            return await self._blobs.answer(request, permitted=permitted)
        if request.ref.digest is None:
            return await self._tags.answer(request)
        return await self._digests.answer(request)

    def _listed(self, request: Request) -> Answer | None:
        if request.head or not self._hits.allows(request.ref):
            return None
        answer = self._lists.hit(request.ref, request.headers)
        return answer and counted(answer, self._fetcher.budget)

    def _relayed(self, request: Request, error: Relayed) -> Answer:
        """Upstream's own error, passed on. What upstream refuses this login is not granted any more."""
        ref, relay = request.ref, error.relay
        self.access.refused(ref, request.headers, relay.status)
        if relay.status in REFUSED:
            self._lists.refused(ref, request.headers)
        return relay_answer(ref, relay, BYPASS if ref.kind in LISTS else MISS, head=request.head)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._live.settings

    @property
    def waiting(self) -> int:
        """How many clients wait for upstreams."""
        return len(self._waiting)

    def forget(self) -> None:
        """Does what a change of settings does: nothing that was decided or asked before it counts."""
        for one in (self._heads, self.access, self._lists):
            one.forget()
