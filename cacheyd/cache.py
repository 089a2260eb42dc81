"""Chooses how a request is answered: hit, join a flight, revalidate, bypass or reject."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cacheyd import policy
from cacheyd.access import Access
from cacheyd.answer import Answer, error_answer, hit_headers, object_headers, relay_answer, stream_answer
from cacheyd.config import Settings
from cacheyd.errors import HeaderList, RequestError, cache_error
from cacheyd.fetch import Fetcher, asker, content_length, end_to_end, header, without
from cacheyd.flight import HOLD, Asker, Flight, FlightReader, MappedReader, MultipartReader, NotKept, Relay, Relayed
from cacheyd.once import Once
from cacheyd.ranges import Part, RangeRequest, Unsatisfiable, if_range_holds, parse_range
from cacheyd.reference import DIGEST, OCTET_STREAM, Kind, Reference, accepted_types, accepts
from cacheyd.store.blobs import Mapped
from cacheyd.store.rows import Stored, TagVariant
from cacheyd.store.store import Store

# A bounded range that starts so far beyond what a flight has is asked of upstream on its own (bytes).
FAR_AHEAD = 8 << 20
# A small blob is verified before its head goes out, if that takes no longer than this (seconds).
SMALL_WAIT = 10.0
# A blob of unknown length is waited for so long, so that clients learn its length (seconds).
LENGTH_WAIT = 15.0
# Answers to HEAD that say nothing of GET: some registries do not know HEAD, or leave out the digest.
ASK_WITH_GET = frozenset({200, 404, 405, 501})
# A file that has to be hashed before it counts is waited for so long, then fetched instead (seconds): it may be huge.
RECOVER_WAIT = 10.0
MISS, HIT, STALE, REVALIDATED, BYPASS = "MISS", "HIT", "STALE", "REVALIDATED", "BYPASS"


@dataclass(frozen=True, slots=True)
class Request:
    """A GET or HEAD of something in a registry, as the client sent it; `headers` are those that may go upstream."""

    method: str
    ref: Reference
    headers: HeaderList
    accept: tuple[str, ...] = ()
    range: str | None = None
    if_range: str | None = None
    if_none_match: str | None = None

    @property
    def head(self) -> bool:
        """Whether no body is wanted."""
        return self.method == "HEAD"


class Cache:
    """The decisions. `hit` is synchronous and answers from disk or not at all; `answer` does the rest."""

    def __init__(
        self,
        store: Store,
        fetcher: Fetcher,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        on_ignored: Callable[[], None] = lambda: None,
        below_floor: Callable[[str], bool] = lambda registry: False,
        check_allowed: Callable[[str], None] = lambda registry: None,
    ) -> None:
        self.store = store
        self.access = Access(store, fetcher)
        self.fetcher = fetcher
        self.settings = settings
        self._clock = clock
        self._on_ignored = on_ignored
        self._below_floor = below_floor
        self._check_allowed = check_allowed
        self._waiting = 0
        self._resolving: Once[tuple[str, ...], Asker, Relay] = Once()

    # Hits

    def hit(self, request: Request, *, permitted: bool = False) -> Answer | None:
        """The answer from disk, or None if upstream has to be asked. Never awaits, never raises for what is in the store.

        `permitted` says that upstream allowed this very request just now.
        """
        ref = request.ref
        now = self._clock()
        if not permitted and not (self._is_allowed(ref.registry) and self.access.granted(ref, request.headers)):
            return None
        if ref.kind is Kind.BLOB and ref.digest:
            stored = self.store.find(ref.digest)
            return self._from_store(request, stored, OCTET_STREAM, HIT, stored.created) if stored else None
        if ref.kind is not Kind.MANIFEST:
            return None
        types = accepted_types(request.accept)
        if ref.digest:
            stored = self.store.find(ref.digest)
            if stored is None or not stored.media_type or not accepts(types, stored.media_type):
                return None
            return self._from_store(request, stored, stored.media_type, HIT, stored.created)
        variant = self._variant(ref, types)
        if variant is None or not policy.is_fresh(variant, policy.tag_ttl(self.settings, ref), now):
            return None
        return self._from_variant(request, variant, HIT)

    def _variant(self, ref: Reference, types: frozenset[str]) -> TagVariant | None:
        variants = self.store.tag_variants(ref.registry, ref.repository, ref.reference)
        return policy.find_variant(variants, policy.asked_types(types), types) if variants else None

    def _from_variant(self, request: Request, variant: TagVariant, result: str) -> Answer | None:
        stored = self.store.find(variant.digest)
        if stored is not None and self.access.may_serve(request.ref, stored):
            return self._from_store(request, stored, variant.media_type, result, variant.checked)
        if not request.head:
            return None
        headers = object_headers(request.ref, variant.digest, variant.media_type, result)
        return Answer(
            200,
            (*headers, *hit_headers(self._clock(), variant.checked)),
            length=variant.size,
            result=result,
            ref=request.ref,
        )

    def _from_store(self, request: Request, stored: Stored, media_type: str, result: str, since: float) -> Answer | None:
        ref = request.ref
        headers = (*object_headers(ref, stored.digest, media_type, result), *hit_headers(self._clock(), since))
        self.store.touch(stored.digest)
        if _not_modified(request.if_none_match, stored.digest):
            return Answer(304, headers, length=None, result=result, ref=ref)
        parts: tuple[Part, ...] = ()
        if ref.kind is Kind.BLOB and request.range is not None:
            try:
                parts = _parts(request, stored.digest, stored.size)
            except Unsatisfiable:
                return _unsatisfiable(ref, stored.size, headers, result)
        if len(parts) > 1:
            return self._multipart(request, stored, parts, headers, result)
        part = parts[0] if parts else Part(0, stored.size)
        status = 206 if parts else 200
        if parts:
            headers = (*headers, ("Content-Range", part.content_range(stored.size)))
        if request.head:
            return Answer(status, headers, length=part.length, result=result, ref=ref, stored=stored)
        body = self.store.body(stored)
        if body is None:
            return None
        if isinstance(body, Mapped):
            source = MappedReader(body, part.start, part.end, partial(self.store.lost, stored))
            if not source.begin():
                return None
            return Answer(status, headers, b"", source, part.length, result, ref, stored)
        return Answer(status, headers, body[part.start : part.end], None, part.length, result, ref, stored)

    def _multipart(
        self, request: Request, stored: Stored, parts: tuple[Part, ...], headers: HeaderList, result: str
    ) -> Answer | None:
        body = self.store.body(stored)
        if body is None:
            return None
        view = body.view if isinstance(body, Mapped) else _slicer(body)
        source = MultipartReader(view, parts, stored.size, OCTET_STREAM)
        content_type = ("Content-Type", f"multipart/byteranges; boundary={source.boundary}")
        kept = without(headers, "content-type")
        return Answer(206, (*kept, content_type), b"", source, source.length, result, request.ref, stored)

    # Everything else

    async def answer(self, request: Request) -> Answer:
        """The answer, whatever it takes; failures are answers, too."""
        try:
            return self.hit(request) or await self._wait(request)
        except Relayed as error:
            result = MISS if request.ref.kind in (Kind.MANIFEST, Kind.BLOB) else BYPASS
            return relay_answer(request.ref, error.relay, result, head=request.head)
        except RequestError as error:
            return error_answer(error, request.ref)

    async def _wait(self, request: Request) -> Answer:
        if self._waiting >= self.settings.max_waiting:
            raise cache_error("too many clients are waiting for upstreams", 503)
        self._waiting += 1
        try:
            self._check_allowed(request.ref.registry)
            asked = await self.access.check(request.ref, request.headers)
            digest = request.ref.digest
            recovered = digest is not None and await self.store.recover(digest, wait=RECOVER_WAIT) is not None
            # Where nobody had to be asked, `hit` has just said that there is none.
            answer = self.hit(request, permitted=asked) if asked or recovered else None
            return answer or await self._miss(request)
        finally:
            self._waiting -= 1

    def _is_allowed(self, registry: str) -> bool:
        try:
            self._check_allowed(registry)
        except RequestError:
            return False
        return True

    @property
    def waiting(self) -> int:
        """How many clients wait for upstreams."""
        return self._waiting

    async def _miss(self, request: Request) -> Answer:
        ref = request.ref
        if ref.kind is Kind.BLOB:
            return await self._blob(request)
        if ref.kind is not Kind.MANIFEST:
            return await self._bypass(request)
        if ref.digest is None:
            return await self._tag(request)
        stored = self.store.find(ref.digest)
        if stored is not None and stored.media_type and not request.head:
            # It is here, but not of a type that this client takes: upstream knows what to say.
            return await self._bypass(request)
        return await self._manifest_by_digest(request)

    async def _bypass(self, request: Request, result: str = BYPASS) -> Answer:
        ranged = request.ref.kind is Kind.BLOB and not request.head  # RFC 9110 section 14.2: Range is for GET.
        extra = [("Range", request.range), ("If-Range", request.if_range)] if ranged else []
        headers = (*request.headers, *((name, value) for name, value in extra if value is not None))
        # What a stored login may list is not for clients that have to show their own.
        lists = request.ref.kind in (Kind.TAGS, Kind.REFERRERS)
        as_client = lists and self.settings.registry(request.ref.registry).access == "verify"
        response = await self.fetcher.open(request.ref, request.method, headers, as_client=as_client)
        if request.head:
            return relay_answer(request.ref, await self.fetcher.relay(response), result, head=True)
        return stream_answer(request.ref, response, result, content_length(response.headers))

    # Manifests

    async def _manifest_by_digest(self, request: Request) -> Answer:
        ref = request.ref
        if request.head:
            relay = await self._resolve(request)
            if _complete_head(relay):
                return relay_answer(ref, relay, MISS, head=True)
            if relay.status not in ASK_WITH_GET:
                raise Relayed(relay)
        return await self._content(request)

    async def _content(self, request: Request) -> Answer:
        """The manifest itself, from upstream."""
        ref = request.ref
        asked = policy.asked_types(accepted_types(request.accept))
        content = await self.fetcher.manifest(ref, request.headers, asked)
        headers = object_headers(ref, content.digest, content.media_type, MISS)
        if _not_modified(request.if_none_match, content.digest):
            return Answer(304, headers, length=None, result=MISS, ref=ref)
        body = b"" if request.head else content.data
        return Answer(200, headers, body, None, len(content.data), MISS, ref)

    async def _tag(self, request: Request) -> Answer:
        ref = request.ref
        types = accepted_types(request.accept)
        if policy.tag_ttl(self.settings, ref) == 0:
            self._on_ignored()
        known = self._variant(ref, types)
        if self._below_floor(ref.registry) and (answer := self._saved(request, known)):
            return answer
        try:
            if request.head or (known and self.store.find(known.digest)):
                relay = await self._resolve(request)
                if answer := self._confirmed(request, relay, known):
                    return answer
            return await self._content(request)
        except (Relayed, RequestError) as error:
            if answer := self._stale(request, known, error):
                return answer
            if isinstance(error, Relayed) and error.relay.status == 404:
                self.store.delete_tag(ref.registry, ref.repository, ref.reference)
            raise

    def _confirmed(self, request: Request, relay: Relay, known: TagVariant | None) -> Answer | None:
        """The answer after upstream's HEAD; None if only a GET can tell. Raises Relayed for an answer that is an error."""
        ref = request.ref
        if not _complete_head(relay):
            if relay.status in ASK_WITH_GET:
                return None
            raise Relayed(relay)
        variant = _variant_of(relay, policy.asked_types(accepted_types(request.accept)), self._clock())
        unchanged = known is not None and known.digest == variant.digest
        result = REVALIDATED if unchanged else MISS
        if request.head:
            answer = self._from_variant(request, variant, REVALIDATED) if unchanged else None
            return answer or relay_answer(ref, relay, MISS, head=True)
        return self._from_variant(request, variant, result)

    def _stale(self, request: Request, known: TagVariant | None, error: Relayed | RequestError) -> Answer | None:
        """The last known tag where upstream is failing, not where it says that there is none or that this client may not."""
        status = error.relay.status if isinstance(error, Relayed) else error.failure.status
        if not (status == 429 or status >= 500):
            return None
        return self._saved(request, known)

    def _saved(self, request: Request, known: TagVariant | None) -> Answer | None:
        """The last known tag, marked as such, if it may still be served."""
        stale_if_error = self.settings.registry(request.ref.registry).stale_if_error
        if known is None or not policy.may_be_stale(known, stale_if_error, self._clock()):
            return None
        answer = self._from_variant(request, known, STALE)
        if answer is not None:
            # RFC 9111 dropped Warning, but people grep for it.
            answer.headers = (*answer.headers, ("Warning", '110 cacheyd "upstream failed: last known tag"'))
        return answer

    async def _resolve(self, request: Request) -> Relay:
        """Upstream's answer to a HEAD of this manifest, once for all who ask at once with the same Accept."""
        ref = request.ref
        asked = policy.asked_types(accepted_types(request.accept))
        key = (ref.registry, ref.repository, ref.reference, *sorted(asked))
        mine = asker(ref, request.headers)
        while True:
            theirs, answer = self._resolving.join(key, mine, lambda: self._head(ref, request.headers, asked))
            try:
                relay = await answer
            except Relayed as error:
                relay = error.relay
            if mine.shares(theirs, Relayed(relay)):
                return relay
            await asyncio.sleep(0)

    async def _head(self, ref: Reference, headers: HeaderList, asked: frozenset[str]) -> Relay:
        response = await self.fetcher.open(ref, "HEAD", headers)
        response.close()
        relay = Relay(response.status, end_to_end(response.headers), b"", from_head=True)
        if ref.digest is None and _complete_head(relay) and policy.is_memorable(asked):
            # Here and not where it is waited for: who comes in between must find it.
            variant = _variant_of(relay, asked, self._clock())
            self.store.set_tag(ref.registry, ref.repository, ref.reference, variant)
        return relay

    # Blobs

    async def _blob(self, request: Request) -> Answer:
        ref = request.ref
        assert ref.digest
        if error := self.fetcher.recent_failure(ref.registry, ref.digest):
            raise error
        running = self.fetcher.flights.get(ref.registry, ref.digest)
        if request.head and (running is None or running.size is None):
            return await self._bypass(request, MISS)
        wanted = parse_range(request.range) if if_range_holds(request.if_range, f'"{ref.digest}"') else None
        try:
            flight = await self._board(request)
        except NotKept:
            return await self._bypass(request)
        if wanted is not None and not flight.verified and _elsewhere(wanted, flight):
            return await self._bypass(request)
        return await self._join(request, flight)

    async def _board(self, request: Request) -> Flight:
        """The blob's flight once upstream has answered; a refusal of somebody else's credentials is not this client's."""
        mine = asker(request.ref, request.headers)
        while True:
            flight = self.fetcher.flight(request.ref, request.headers)
            try:
                await flight.opened()
                if flight.size is None:
                    await flight.settled(LENGTH_WAIT)
                elif flight.size <= HOLD:
                    await flight.settled(SMALL_WAIT)
            except (Relayed, RequestError) as error:
                if mine.shares(flight.asker, error):
                    raise
            else:
                return flight

    async def _join(self, request: Request, flight: Flight) -> Answer:
        ref = request.ref
        result = HIT if flight.verified and flight.stored is not None else MISS
        headers = object_headers(ref, flight.digest, OCTET_STREAM, result)
        size = flight.size
        if size is None:
            return Answer(200, headers, b"", FlightReader(flight, 0, None), None, result, ref)
        try:
            parts = _parts(request, flight.digest, size)
        except Unsatisfiable:
            return _unsatisfiable(ref, size, headers, result)
        # Several parts of what is still on its way: all of it is a right answer, too (RFC 9110 section 14.2).
        part, status = (parts[0], 206) if len(parts) == 1 else (Part(0, size), 200)
        if status == 206:
            headers = (*headers, ("Content-Range", part.content_range(size)))
        if request.head:
            return Answer(status, headers, length=part.length, result=result, ref=ref)
        return Answer(status, headers, b"", FlightReader(flight, part.start, part.end), part.length, result, ref)


def _slicer(body: bytes) -> Callable[[int, int], bytes]:
    return lambda start, end: body[start:end]


def _parts(request: Request, digest: str, size: int) -> tuple[Part, ...]:
    """The parts asked for; none where all of it is to be sent (no Range, HEAD, a stale If-Range). Raises Unsatisfiable."""
    if request.head or not if_range_holds(request.if_range, f'"{digest}"'):
        return ()
    wanted = parse_range(request.range)
    parts = () if wanted is None else wanted.parts(size)
    if wanted is None or len(wanted.specs) == 1:
        return parts
    # Clients that ask for several ranges do not expect one 206 part. And more than all of it in pieces is an attack, or a
    # client that is better off with all of it (RFC 9110 section 14.2).
    return parts if len(parts) > 1 and sum(part.length for part in parts) <= size else ()


def _elsewhere(wanted: RangeRequest, flight: Flight) -> bool:
    """Whether small pieces are wanted (lazy pulling) that this flight will not have for a while: upstream has them."""
    ends = [last for _, last in wanted.specs]
    if None in ends or any(first is None for first, _ in wanted.specs):
        return False
    furthest = max(last for last in ends if last is not None)
    return flight.size is not None and furthest < flight.size and furthest > flight.received + FAR_AHEAD


def _unsatisfiable(ref: Reference, size: int, headers: HeaderList, result: str) -> Answer:
    kept = without(headers, "content-type")
    return Answer(416, (*kept, ("Content-Range", f"bytes */{size}")), length=0, result=result, ref=ref)


def _not_modified(if_none_match: str | None, digest: str) -> bool:
    """RFC 9110 section 13.1.2, weak comparison."""
    if if_none_match is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in tags or f'"{digest}"' in tags


def _variant_of(relay: Relay, asked: frozenset[str], now: float) -> TagVariant:
    """What upstream's HEAD said of a tag."""
    return TagVariant(
        asked=asked,
        digest=header(relay.headers, "docker-content-digest") or "",
        media_type=(header(relay.headers, "content-type") or "").partition(";")[0].strip(),
        size=content_length(relay.headers) or 0,
        checked=now,
    )


def _complete_head(relay: Relay) -> bool:
    """Whether a HEAD told all that containerd needs: digest, type and length."""
    digest = header(relay.headers, "docker-content-digest") or ""
    media_type = header(relay.headers, "content-type") or ""
    return relay.status == 200 and bool(DIGEST.fullmatch(digest)) and bool(media_type) and bool(content_length(relay.headers))
