"""Manifests from upstream: for requests by digest, and for the content of a tag."""

import time
from collections.abc import Callable

from cacheyd.cache.access import Access
from cacheyd.cache.answer import MISS, Answer, object_headers
from cacheyd.cache.bypass import Bypass
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.flight import NotKept
from cacheyd.cache.heads import ASK_WITH_GET, Heads, is_complete
from cacheyd.cache.relaying import relay_answer
from cacheyd.cache.request import Request
from cacheyd.cache.stored import StoredAnswers
from cacheyd.store.store import Store
from cacheyd.upstream.port import Relayed


class Digests:
    """Answers with manifests that are not stored. Each method raises Relayed, RequestError."""

    def __init__(
        self,
        store: Store,
        fetcher: Fetcher,
        access: Access,
        stored: StoredAnswers,
        heads: Heads,
        bypass: Bypass,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._access = access
        self._stored = stored
        self._heads = heads
        self._bypass = bypass
        self._clock = clock

    async def answer(self, request: Request) -> Answer:
        """The answer to a request for a manifest by its digest, if `Hits` could not find the manifest for this client."""
        ref = request.ref
        stored = self._store.objects.find(ref.digest) if ref.digest else None
        known = stored is not None and bool(stored.media_type) and self._access.may_serve(ref, stored)
        if stored is not None and known and not request.head and not request.takes(stored.media_type):
            # The manifest is stored, but this client does not take its type: upstream decides about the answer.
            return await self._bypass.answer(request)
        return await self.from_upstream(request)

    async def from_upstream(self, request: Request) -> Answer:
        """Upstream's answer about this digest."""
        if request.head:
            relay = await self._heads.answer(request)
            if is_complete(relay):
                return relay_answer(request.ref, relay, MISS, head=True)
            if relay.status not in ASK_WITH_GET:
                raise Relayed(relay)
        return await self.content(request)

    async def content(self, request: Request) -> Answer:
        """The manifest itself, by tag or digest."""
        ref = request.ref
        try:
            content = await self._fetcher.manifests.get(ref, request.headers, request.asked)
        except NotKept:
            # The manifest is too large for memory.
            return await self._bypass.answer(request, MISS)
        if content.stored and not content.data:
            stored = self._store.objects.find(content.digest)
            answer = self._stored.of_object(request, stored, content.media_type, MISS, self._clock()) if stored else None
            return answer or await self._bypass.answer(request, MISS)
        headers = object_headers(ref, content.digest, content.media_type, MISS)
        if request.knows(content.digest):
            return Answer(304, headers, length=None, result=MISS, ref=ref)
        body = b"" if request.head else content.data
        return Answer(200, headers, body, length=len(content.data), result=MISS, ref=ref)
