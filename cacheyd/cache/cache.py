"""Answers a request: from disk on a hit; else the client waits while this cache asks upstream, by the kind of the request.

`hits` answers from disk. `tags`, `digests`, `blobs` and `lists` ask upstream, each in its own way. `bypass` passes on
answers that are not kept. This module puts these modules together and chooses one of them for each request.
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

# How long a request waits for the hash of a file that does not count yet (seconds). Such a file can be huge: after this time
# the cache fetches the object instead.
RECOVER_WAIT = 10.0
LISTS = (Kind.TAGS, Kind.REFERRERS)


class Cache:
    """Answers requests. `hit` is synchronous and answers from disk or not at all; `answer` asks upstream if it has to."""

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
        # The fetcher gets the admission only now, because the two need each other: the admission fetches images to learn
        # their dates, and the fetcher asks the admission what a tag leads to from now on.
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
        """The answer from disk, or None if the cache has to ask upstream. Never awaits; no stored content makes it raise."""
        if request.ref.kind in LISTS:
            return self._listed(request)
        return self._hits.find(request)

    async def answer(self, request: Request, gone: Callable[[], bool] = lambda: False) -> Answer:
        """The answer, from disk or from upstream; a failure is an answer, too. `gone` says whether the client has left."""
        try:
            answer = self.hit(request) or await self._waiting.answer(request, self._ask, gone)
            return answer if request.head else counted(answer, self._fetcher.budget)
        except Relayed as error:
            return self._relayed(request, error)
        except RequestError as error:
            return error_answer(error, request.ref)

    async def _ask(self, request: Request) -> Answer:
        """Asks upstream, or hashes a file that may not be whole. Raises Relayed, RequestError."""
        ref = request.ref
        if ref.kind in LISTS:
            return await self._lists.answer(request)
        asked = await self.access.check(ref, request.headers)
        recovered = ref.digest is not None and await self.store.objects.recover(ref.digest, wait=RECOVER_WAIT) is not None
        # If upstream was not asked and no file was taken up, nothing has changed since `hit` found no answer.
        answer = self._hits.find(request, permitted=asked) if asked or recovered else None
        return answer or await self._miss(request, permitted=asked)

    async def _miss(self, request: Request, *, permitted: bool) -> Answer:
        """The answer to a request for something that is not stored. `permitted`: upstream just allowed this very request."""
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
        """Upstream's own error, passed on. If upstream refuses this login, the login's earlier permissions end."""
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
        """Drops all that was decided or asked so far, as a change of settings does."""
        for one in (self._heads, self.access, self._lists):
            one.forget()
