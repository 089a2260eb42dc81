"""Bypass: passes on upstream's own answers without keeping them: lists, objects that are too large or have no room.

Objects that are asked for by digest are verified all the same, on their way.
"""

from functools import partial

from cacheyd.cache.answer import BYPASS, Answer, unsatisfiable
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.heads import stated_digest
from cacheyd.cache.pieces import Pieces, is_far, is_little
from cacheyd.cache.questions import EMPTY, ONE_BYTE, says_nothing_of_get, stated_size
from cacheyd.cache.relaying import relay_answer, stream_answer
from cacheyd.cache.request import Request
from cacheyd.cache.verified import VerifiedSource
from cacheyd.observe.events import Events
from cacheyd.protocol.codings import codings_of
from cacheyd.protocol.errors import upstream_error
from cacheyd.protocol.headers import content_length, end_to_end, without
from cacheyd.protocol.ranges import Unsatisfiable
from cacheyd.protocol.reference import Kind
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.store.store import Store
from cacheyd.upstream.port import Relay, UpstreamResponse

# Answers of a registry that does not know HEAD.
NO_HEAD = frozenset({405, 501})


class Bypass:
    """Answers that come from upstream and are not kept."""

    def __init__(self, store: Store, fetcher: Fetcher, pieces: Pieces, settings: Settings | Live, events: Events) -> None:
        self._store = store
        self._events = events
        self._fetcher = fetcher
        self._pieces = pieces
        self._live = Live.of(settings)

    async def answer(self, request: Request, result: str = BYPASS) -> Answer:
        """Upstream's answer; `result` is for X-Cache. Raises Relayed, RequestError."""
        ref, headers = request.ref, request.headers
        # A list for cacheyd's stored login is not for clients that have to show a login of their own.
        lists = ref.kind in (Kind.TAGS, Kind.REFERRERS)
        as_client = lists and self._live.settings.registry(ref.registry).access == "verify"
        response = await self._fetcher.asking.open(ref, request.method, headers, as_client=as_client)
        if request.head:
            if ref.kind is Kind.BLOB and (response.status in NO_HEAD or says_nothing_of_get(response)):
                response.close()
                return await self._size(request, result)
            return relay_answer(ref, await self._fetcher.asking.relay(response), result, head=True)
        digest = ref.digest or stated_digest(response.headers)
        if response.status >= 400:
            return relay_answer(ref, await self._fetcher.asking.relay(response), result, head=False)
        if response.status == 200 and codings_of(response.headers):
            return relay_answer(ref, await self._fetcher.asking.unpacked(ref, response, digest), result, head=False)
        if not digest or lists:
            return stream_answer(ref, response, result, content_length(response.headers))
        if response.status != 200:
            # The request did not ask for a part.
            response.close()
            raise upstream_error(502, f"upstream answered {response.status} to a GET of a whole object")
        wanted = request.wanted if ref.kind is Kind.BLOB and is_far(content_length(response.headers) or 0) else None
        if wanted is not None and is_little(wanted):
            # Hashing a whole large blob for a small part of it would take too long.
            response.close()
            if answer := await self._pieces.answer(request, wanted, content_length(response.headers)):
                return answer
            response = await self._fetcher.asking.open(ref, request.method, headers)
            if response.status != 200:
                return relay_answer(ref, await self._fetcher.asking.relay(response), result, head=False)
        return self._verified(request, response, result, digest)

    def _verified(self, request: Request, response: UpstreamResponse, result: str, digest: str) -> Answer:
        """The answer with a whole object, or with the part of it that the client asks for."""
        ref, size = request.ref, content_length(response.headers)
        answer = stream_answer(ref, response, result, size)
        part = None
        if ref.kind is Kind.BLOB and request.range is not None and size is not None:
            try:
                parts = request.parts(size)
            except Unsatisfiable:
                response.close()
                return unsatisfiable(ref, size, answer.headers, result)
            # If several parts are asked for, the whole object is a correct answer, too (RFC 9110 section 14.2).
            part = parts[0] if len(parts) == 1 else None
        if part is not None:
            answer = answer.with_part(part, size or 0)
        source = VerifiedSource(
            response, digest, part, on_verified=self._make_room, on_mismatch=partial(self._events.verify_failure, ref.registry)
        )
        return answer.with_source(source, answer.length)

    async def _make_room(self, size: int) -> None:
        """Makes room for an object that passed through and was right, so that the store can keep it at the next request."""
        if self._store.health.writable:
            await self._store.bounds.make(size)

    async def _size(self, request: Request, result: str) -> Answer:
        """The answer to a HEAD of a blob if upstream, or its CDN, takes only GET: a GET of one byte tells the size."""
        response = await self._fetcher.asking.open(request.ref, "GET", (*request.headers, ONE_BYTE))
        try:
            # The size of an encoded body is not the object's.
            size = None if codings_of(response.headers) else stated_size(response)
            if response.status not in (200, 206) and not (response.status == 416 and request.ref.digest in EMPTY):
                return relay_answer(request.ref, await self._fetcher.asking.relay(response), result, head=True)
        finally:
            response.close()
        lengths = () if size is None else (("Content-Length", str(size)),)
        headers = (*without(end_to_end(response.headers), "content-length", "content-range"), *lengths)
        return relay_answer(request.ref, Relay(200, headers, b"", from_head=True), result, head=True)
