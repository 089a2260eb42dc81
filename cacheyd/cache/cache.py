"""Chooses how a request is answered: hit, join a flight, revalidate, bypass or reject."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from cacheyd.cache import freshness as policy
from cacheyd.cache.access import EMPTY, ONE_BYTE, REFUSED, Access, ask_of, says_nothing_of_get, stated_size
from cacheyd.cache.answer import (
    BYPASS,
    FEW_LEFT,
    HELD,
    HIT,
    MISS,
    REVALIDATED,
    STALE,
    STALE_WARNING,
    Answer,
    PieceSource,
    error_answer,
    held,
    hit_headers,
    object_headers,
    relay_answer,
    stream_answer,
    why_stale,
)
from cacheyd.cache.bodies import MappedReader, MultipartReader
from cacheyd.cache.cooldown import Cooldown, shown
from cacheyd.cache.created import Created
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.flight import Flight, NotKept
from cacheyd.cache.flight_reader import FlightReader
from cacheyd.cache.growing import HOLD
from cacheyd.cache.lists import Listings, TooLarge
from cacheyd.cache.request import Request
from cacheyd.cache.requester import Question, Requester, ask_once, requester_of
from cacheyd.cache.verified import VerifiedSource
from cacheyd.protocol.accept import accepted_types, accepts
from cacheyd.protocol.codings import codings_of
from cacheyd.protocol.digest import DIGEST
from cacheyd.protocol.errors import RequestError, cache_error, upstream_error
from cacheyd.protocol.headers import HeaderList, content_length, end_to_end, header, without
from cacheyd.protocol.media_types import NO_TYPES, OCTET_STREAM
from cacheyd.protocol.ranges import Part, RangeRequest, Unsatisfiable, if_range_holds, parse_content_range, parse_range
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.settings.settings import Settings
from cacheyd.singleflight import SingleFlight
from cacheyd.store.blobs import Mapped
from cacheyd.store.rows import Stored, TagVariant
from cacheyd.store.store import Store
from cacheyd.upstream.patience import Patience
from cacheyd.upstream.port import PERSONAL, Relay, Relayed, UpstreamResponse

# A piece of up to so many bytes is asked of upstream on its own where a flight has more than that to go (bytes), or does
# not come to its end in so little time (seconds).
FAR_AHEAD, PIECE_WAIT = 8 << 20, 0.5
# What is open to the end counts as a piece up to so many bytes, and where nobody else wants the flight: clients that fetch a
# layer in parallel ask for its chunks so, drop each when it is full, and are to share the flight.
OPEN_END = 1 << 20
# A flight that has no head after so long does not keep a small piece waiting (seconds).
PIECE_HEAD = 0.1
# A blob of which a range was answered with all of it, or in a coding, is not asked for in ranges for so long (seconds); so
# many are known. One by one: any client can find one that is labelled wrong, and is not to slow down others of its registry.
WHOLE_ONLY, MAX_WHOLE_ONLY = 60.0, 1000
# No registry's clients may be more than half of those who wait, but so many in any case.
FEW_WAITING = 64
# A small blob is verified before its head goes out, if that takes no longer than this (seconds).
SMALL_WAIT = 10.0
# A blob of unknown length is waited for so long, so that clients learn its length (seconds).
LENGTH_WAIT = 15.0
# Answers of a registry that does not know HEAD.
NO_HEAD = frozenset({405, 501})
# Answers to HEAD that say nothing of GET: some registries do not know HEAD, or leave out the digest.
ASK_WITH_GET = frozenset({200, 404, 405, 501})
# A file that has to be hashed before it counts is waited for so long, then fetched instead (seconds): it may be huge.
RECOVER_WAIT = 10.0


class Cache:
    """The decisions. `hit` is synchronous and answers from disk or not at all; `answer` does the rest."""

    def __init__(
        self,
        store: Store,
        fetcher: Fetcher,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        on_ignored: Callable[[], None] = lambda: None,
        on_held: Callable[[str, str], None] = lambda registry, action: None,
        below_floor: Callable[[str], bool] = lambda registry: False,
        check_allowed: Callable[[Reference], None] = lambda ref: None,
    ) -> None:
        self.store = store
        self.access = Access(store, fetcher)
        self.listings = Listings(store, fetcher, clock=clock, below_floor=below_floor)
        self.fetcher = fetcher
        self.settings = settings
        self.cooldown = Cooldown(store, settings, clock=clock, monotonic=monotonic, on_held=on_held)
        self.cooldown.look = Created(fetcher, self.cooldown.learn).look
        fetcher.admit = self.cooldown.admit
        self._clock, self._monotonic = clock, monotonic
        self._whole_only: dict[tuple[str, str], float] = {}
        self._on_ignored = on_ignored
        self._below_floor = below_floor
        self._check_allowed = check_allowed
        self._waiting = 0
        self._waiting_for: Counter[str] = Counter()
        self._generation = 0
        self._resolving: SingleFlight[Question, Requester, Relay] = SingleFlight()

    def forget(self) -> None:
        """After a change of settings: nothing that was decided, or is being asked, by the old ones is used."""
        self._generation += 1
        self.access.forget()
        self.listings.forget()
        self.cooldown.configure(self.settings)

    # Hits

    def hit(self, request: Request, *, permitted: bool = False) -> Answer | None:
        """The answer from disk, or None if upstream has to be asked. Never awaits, never raises for what is in the store.

        `permitted` says that upstream allowed this very request just now.
        """
        ref = request.ref
        if ref.kind in (Kind.TAGS, Kind.REFERRERS):
            answer = None if request.head or not self._is_allowed(ref) else self.listings.hit(ref, request.headers)
            return answer and held(answer, self.fetcher.budget)
        now = self._clock()
        if permitted:
            # It may say so of what it does not have itself.
            allowed = ref.digest is None or self.access.has(ref)
        else:
            allowed = self._is_allowed(ref) and self.access.granted(ref, request.headers)
        if not allowed:
            return None
        if ref.kind is Kind.BLOB and ref.digest:
            if request.range is not None and self._refused_resume(ref, parse_range(request.range)):
                return None
            stored = self.store.find(ref.digest)
            if stored is None or stored.media_type:
                # Whether a manifest can be had as a blob, too, is its registry's to say.
                return None
            return self._from_store(request, stored, OCTET_STREAM, HIT, stored.created)
        return self._manifest_hit(request, now)

    def _manifest_hit(self, request: Request, now: float) -> Answer | None:
        ref = request.ref
        types = accepted_types(request.accept)
        if ref.digest:
            stored = self.store.find(ref.digest)
            if stored is None or not stored.media_type or not accepts(types, stored.media_type):
                return None
            return self._from_store(request, stored, stored.media_type, HIT, stored.created)
        if self.cooldown.active:
            self.cooldown.ripen(ref)
        variant = self._variant(ref, types)
        if variant is None or not policy.is_fresh(variant, policy.tag_ttl(self.settings, ref), now):
            return None
        return None if self.access.is_gone(ref, request.headers) else self._fresh(request, variant)

    def _fresh(self, request: Request, variant: TagVariant) -> Answer | None:
        ref = request.ref
        hold = self.cooldown.hold(ref, variant.asked) if self.cooldown.active else None
        if hold is None:
            return self._from_variant(request, variant, HIT)
        until = self.cooldown.held_until(ref, hold.candidate.digest)
        if until is None:
            return None  # What comes next may be served, and is not here.
        return _held(self._from_variant(request, variant, HELD), hold.candidate.digest, until)

    def _variant(self, ref: Reference, types: frozenset[str]) -> TagVariant | None:
        variants = self.store.tag_variants(ref.registry, ref.repository, ref.reference)
        return policy.find_variant(variants, policy.asked_types(types), types) if variants else None

    def _from_variant(self, request: Request, variant: TagVariant, result: str) -> Answer | None:
        stored = self.store.find(variant.digest)
        if stored is not None and self.access.may_serve(request.ref, stored):
            # The type that its bytes have, not the one that a HEAD said.
            if stored.media_type != variant.media_type and not self._takes(request, stored):
                return None
            return self._from_store(request, stored, stored.media_type, result, variant.checked)
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

    @staticmethod
    def _takes(request: Request, stored: Stored) -> bool:
        return bool(stored.media_type) and accepts(accepted_types(request.accept), stored.media_type)

    def _from_store(self, request: Request, stored: Stored, media_type: str, result: str, since: float) -> Answer | None:
        ref = request.ref
        headers = (*object_headers(ref, stored.digest, media_type, result), *hit_headers(self._clock(), since))
        self.store.touch(stored.digest)
        if _not_modified(request.if_none_match, stored.digest):
            return Answer(304, headers, length=None, result=result, ref=ref)
        parts: tuple[Part, ...] = ()
        if ref.kind is Kind.BLOB and request.range is not None:
            try:
                parts = _parts(request, stored.size)
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

    async def answer(self, request: Request, gone: Callable[[], bool] = lambda: False) -> Answer:
        """The answer, whatever it takes; failures are answers, too. `gone` says whether the client has left."""
        try:
            answer = self.hit(request) or await self._wait(request, gone)
            return answer if request.head else held(answer, self.fetcher.budget)
        except Relayed as error:
            self.access.refused(request.ref, request.headers, error.relay.status)
            if error.relay.status in REFUSED:
                self.listings.refused(request.ref, request.headers)
            result = MISS if request.ref.kind in (Kind.MANIFEST, Kind.BLOB) else BYPASS
            return relay_answer(request.ref, error.relay, result, head=request.head)
        except RequestError as error:
            return error_answer(error, request.ref)

    async def _wait(self, request: Request, gone: Callable[[], bool]) -> Answer:
        registry, most = request.ref.registry, self.settings.max_waiting
        if self._waiting >= most or self._waiting_for[registry] >= max(FEW_WAITING, most // 2):
            raise cache_error("too many clients are waiting for upstreams", 503)
        self._waiting += 1
        self._waiting_for[registry] += 1
        try:
            self._check_allowed(request.ref)
            return await self._patiently(request, gone)
        finally:
            self._waiting -= 1
            self._waiting_for[registry] -= 1
            if not self._waiting_for[registry]:
                del self._waiting_for[registry]

    async def _patiently(self, request: Request, gone: Callable[[], bool]) -> Answer:
        """Rate limits that are over in a moment are waited for here, where no turn is held and a client may leave."""
        ref, limits = request.ref, self.fetcher.limits
        began = limits.clock()
        try:
            return await self._ask(request)
        except (Relayed, RequestError) as error:
            if error.again_at is None:
                raise
            limited = error
        most = self.settings.registry(ref.registry).retry_after_max
        thing = ref.kind, ref.reference, ref.query, request.method
        patience = Patience(limits, self.fetcher.limit_key(ref, request.headers), thing, began, most)
        while await patience.outlast(limited, gone):
            try:
                async with asyncio.timeout(patience.left):
                    answer = await self._ask(request)
                patience.succeeded()
                return answer
            except TimeoutError:
                break
            except (Relayed, RequestError) as error:
                limited = error
        raise limited

    async def _ask(self, request: Request) -> Answer:
        if request.ref.kind in (Kind.TAGS, Kind.REFERRERS):
            return await self._list(request)
        asked = await self.access.check(request.ref, request.headers)
        digest = request.ref.digest
        recovered = digest is not None and await self.store.recover(digest, wait=RECOVER_WAIT) is not None
        # Where nobody had to be asked, `hit` has just said that there is none.
        answer = self.hit(request, permitted=asked) if asked or recovered else None
        return answer or await self._miss(request, permitted=asked)

    def _is_allowed(self, ref: Reference) -> bool:
        try:
            self._check_allowed(ref)
        except RequestError:
            return False
        return True

    @property
    def waiting(self) -> int:
        """How many clients wait for upstreams."""
        return self._waiting

    async def _miss(self, request: Request, *, permitted: bool) -> Answer:
        ref = request.ref
        if ref.kind is Kind.BLOB:
            return await self._blob(request, permitted=permitted)
        if ref.digest is None:
            return await self._tag(request)
        stored = self.store.find(ref.digest)
        known = stored is not None and bool(stored.media_type) and self.access.may_serve(ref, stored)
        if stored is not None and known and not request.head and not self._takes(request, stored):
            # It is here, but not of a type that this client takes: upstream knows what to say.
            return await self._bypass(request)
        return await self._manifest_by_digest(request)

    async def _list(self, request: Request) -> Answer:
        if not request.head:
            with suppress(TooLarge):
                return await self.listings.answer(request.ref, request.headers)
        return await self._bypass(request)

    async def _bypass(self, request: Request, result: str = BYPASS) -> Answer:
        """Upstream's own answer, not kept; what is asked for by its digest is verified all the same."""
        ref, headers = request.ref, request.headers
        # What a stored login may list is not for clients that have to show their own.
        lists = ref.kind in (Kind.TAGS, Kind.REFERRERS)
        as_client = lists and self.settings.registry(ref.registry).access == "verify"
        response = await self.fetcher.open(ref, request.method, headers, as_client=as_client)
        if request.head:
            if ref.kind is Kind.BLOB and (response.status in NO_HEAD or says_nothing_of_get(response)):
                response.close()
                return await self._size(request, result)
            return relay_answer(ref, await self.fetcher.relay(response), result, head=True)
        digest = ref.digest or _stated_digest(response.headers)
        if response.status >= 400:
            return relay_answer(ref, await self.fetcher.relay(response), result, head=False)
        if response.status == 200 and codings_of(response.headers):
            return relay_answer(ref, await self.fetcher.unpacked(ref, response, digest), result, head=False)
        if not digest or lists:
            return stream_answer(ref, response, result, content_length(response.headers))
        if response.status != 200:
            # Nobody asked for a part.
            response.close()
            raise upstream_error(502, f"upstream answered {response.status} to a GET of all of it")
        wanted = _wanted(request) if ref.kind is Kind.BLOB and (content_length(response.headers) or 0) > FAR_AHEAD else None
        if wanted is not None and _is_little(wanted):
            # To see all of so much for a little of it would take too long.
            response.close()
            if answer := await self._piece(request, wanted, content_length(response.headers)):
                return answer
            response = await self.fetcher.open(ref, request.method, headers)
            if response.status != 200:
                return relay_answer(ref, await self.fetcher.relay(response), result, head=False)
        return self._verified(request, response, result, digest)

    def _verified(self, request: Request, response: UpstreamResponse, result: str, digest: str) -> Answer:
        """A response with all of an object, or the part of it that is asked for."""
        ref, size = request.ref, content_length(response.headers)
        answer = stream_answer(ref, response, result, size)
        part = None
        if ref.kind is Kind.BLOB and request.range is not None and size is not None:
            try:
                parts = _parts(request, size)
            except Unsatisfiable:
                response.close()
                return _unsatisfiable(ref, size, answer.headers, result)
            # Of several parts all of it is a right answer, too (RFC 9110 section 14.2).
            part = parts[0] if len(parts) == 1 else None
        if part is not None:
            answer.status, answer.length = 206, part.length
            answer.headers = (*without(answer.headers, "content-range"), ("Content-Range", part.content_range(size or 0)))
        answer.source = VerifiedSource(
            response, digest, part, on_verified=self._make_room, on_mismatch=partial(self.fetcher.mismatched, ref.registry)
        )
        return answer

    async def _make_room(self, size: int) -> None:
        """What passed through for want of room, and was right, fits when it is asked for again."""
        if self.store.writable:
            await self.store.make_room(size)

    async def _size(self, request: Request, result: str) -> Answer:
        """The answer to a HEAD of a blob where upstream, or its CDN, takes a GET only: one byte tells the size."""
        response = await self.fetcher.open(request.ref, "GET", (*request.headers, ONE_BYTE))
        try:
            # Of what is encoded nobody knows the size.
            size = None if codings_of(response.headers) else stated_size(response)
            if response.status not in (200, 206) and not (response.status == 416 and request.ref.digest in EMPTY):
                return relay_answer(request.ref, await self.fetcher.relay(response), result, head=True)
        finally:
            response.close()
        lengths = () if size is None else (("Content-Length", str(size)),)
        headers = (*without(end_to_end(response.headers), "content-length", "content-range"), *lengths)
        return relay_answer(request.ref, Relay(200, headers, b"", from_head=True), result, head=True)

    async def _piece(self, request: Request, wanted: RangeRequest, size: int | None = None) -> Answer | None:
        """A small piece in the middle of a blob, as upstream has it: nothing can verify a piece before all is there.

        None where it gives no such piece, or has no turn for one. `size` is the blob's, where it is known.
        """
        ref = request.ref
        blob = ref.registry, ref.digest or ""
        if self._monotonic() < self._whole_only.get(blob, 0.0):
            return None
        fields = [("Range", request.range or ""), *([("If-Range", request.if_range)] if request.if_range else [])]
        try:
            response = await self.fetcher.open(ref, request.method, (*request.headers, *fields), piece=True)
        except RequestError as error:
            if error.failure.status == 503 and error.again_at is None:
                return None
            raise
        part = None
        if response.status == 206 and not codings_of(response.headers):
            part = _part_of(wanted, parse_content_range(header(response.headers, "content-range")), size)
            stated = content_length(response.headers)
            if part is None or stated not in (None, part.length):
                response.close()
                raise upstream_error(502, "upstream answered another range than was asked for")
        elif response.status >= 400:
            return stream_answer(ref, response, BYPASS, content_length(response.headers))
        if part is None:
            # All of it, or in a coding: once is enough, and for that there is the flight.
            response.close()
            self._whole_only[blob] = self._monotonic() + WHOLE_ONLY
            while len(self._whole_only) > MAX_WHOLE_ONLY:
                del self._whole_only[next(iter(self._whole_only))]
            return None
        answer = stream_answer(ref, response, BYPASS, part.length)
        answer.source = PieceSource(response, part.length)
        return answer

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
        try:
            content = await self.fetcher.manifest(ref, request.headers, asked)
        except NotKept:
            # Too large to be held in memory.
            return await self._bypass(request, MISS)
        if content.stored and not content.data:
            stored = self.store.find(content.digest)
            answer = self._from_store(request, stored, content.media_type, MISS, self._clock()) if stored else None
            return answer or await self._bypass(request, MISS)
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
        if self.cooldown.active:
            self.cooldown.ripen(ref)
            self._refuse_held(request, types)
        known = self._variant(ref, types)
        if self._below_floor(ref.registry) and (answer := self._saved(request, known)):
            answer.note = FEW_LEFT
            return answer
        try:
            answer = None
            if request.head or (known and (self.cooldown.covers(ref) or self._is_here(ref, known.digest))):
                relay = await self._resolve(request)
                answer = await self._instead(request, relay.headers) if _complete_head(relay) else None
                answer = answer or self._confirmed(request, relay, known)
            if answer is None:
                answer = await self._content(request)
                if instead := await self._instead(request, answer.headers, answer):
                    answer = instead
        except (Relayed, RequestError) as error:
            if answer := self._stale(request, known, error):
                return answer
            raise
        self.access.found(ref, request.headers)
        return answer

    # Tags that are held (min_age)

    def _refuse_held(self, request: Request, types: frozenset[str]) -> None:
        """Raises RequestError where upstream said lately that the tag is too young, and nothing else may be served."""
        ref, asked = request.ref, policy.asked_types(types)
        hold = self.cooldown.hold(ref, asked)
        if hold is None or self.cooldown.allows(ref) or self.access.is_gone(ref, request.headers):
            return
        until = self.cooldown.held_until(ref, hold.candidate.digest)
        fresh = policy.is_fresh(hold.candidate, policy.tag_ttl(self.settings, ref), self._clock())
        if until is not None and fresh and self.cooldown.previous(ref, asked) is None:
            raise self.cooldown.refusal(ref, hold.candidate.digest, until)

    async def _instead(self, request: Request, headers: HeaderList, answer: Answer | None = None) -> Answer | None:
        """What is served in place of what upstream says that a tag is, if that is too young; None if it may be served.

        `headers` are those of what upstream said, or of the answer that was made of it. Raises RequestError 403 where nothing
        else can be served.
        """
        ref, cooldown = request.ref, self.cooldown
        if not cooldown.active:
            return None
        digest = _stated_digest(headers)
        until = cooldown.held_until(ref, digest)
        if until is None:
            return None
        asked = policy.asked_types(accepted_types(request.accept))
        found, as_it_is = None, False
        try:
            while found is None and (previous := cooldown.previous(ref, asked)) is not None:
                found = await self._by_digest(request, previous)
                if found is None:
                    cooldown.lost(ref, previous.digest, asked)
            as_it_is = found is None and cooldown.allows(ref)
        finally:
            if answer is not None and answer.source is not None and not as_it_is:
                answer.source.close()
        if as_it_is:
            return None
        if found is None:
            raise cooldown.refusal(ref, digest, until)
        return _held(found, digest, until)

    async def _by_digest(self, request: Request, variant: TagVariant) -> Answer | None:
        """What a tag was before, from disk or else from upstream; None if it is not there any more."""
        ref = request.ref
        if self._is_here(ref, variant.digest) and (answer := self._from_variant(request, variant, HELD)):
            return answer
        by_digest = replace(request, ref=replace(ref, reference=variant.digest, digest=variant.digest))
        try:
            answer = await self._manifest_by_digest(by_digest)
        except Relayed as error:
            if error.relay.status != 404:
                raise
            return None
        answer.ref, answer.result = ref, HELD
        answer.headers = (*without(answer.headers, "x-cache"), ("X-Cache", HELD))
        return answer

    def _is_here(self, ref: Reference, digest: str) -> bool:
        """Whether an object can be served under this registry; what others have there is not told to it."""
        stored = self.store.find(digest)
        return stored is not None and self.access.may_serve(ref, stored)

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
        answer = self._saved(request, known)
        if answer is not None:
            answer.note = why_stale(error)
        return answer

    def _saved(self, request: Request, known: TagVariant | None) -> Answer | None:
        """The last known tag, marked as such, if it may still be served."""
        stale_if_error = self.settings.registry(request.ref.registry).stale_if_error
        if known is None or not policy.may_be_stale(known, stale_if_error, self._clock()):
            return None
        if self.access.is_gone(request.ref, request.headers):
            return None
        answer = self._from_variant(request, known, STALE)
        if answer is not None:
            answer.headers = (*answer.headers, STALE_WARNING)
        return answer

    async def _resolve(self, request: Request) -> Relay:
        """Upstream's answer to a HEAD of this manifest, once for all who ask at once with the same Accept."""
        ref = request.ref
        asked = policy.asked_types(accepted_types(request.accept))
        question: Question = (self._generation, ref.registry, ref.repository, ref.reference, *sorted(asked))
        mine = requester_of(ref, request.headers)
        try:
            return await ask_once(self._resolving, question, mine, lambda: self._head(ref, request.headers, asked))
        except Relayed as error:
            return error.relay

    async def _head(self, ref: Reference, headers: HeaderList, asked: frozenset[str]) -> Relay:
        response = await self.fetcher.open(ref, "HEAD", headers)
        response.close()
        relay = Relay(response.status, end_to_end(response.headers), b"", from_head=True)
        if relay.status in PERSONAL:
            raise Relayed(relay)
        if ref.digest is None and _complete_head(relay):
            await self.fetcher.tag_found(ref, headers, _variant_of(relay, asked, self._clock()))
        return relay

    # Blobs

    async def _blob(self, request: Request, *, permitted: bool) -> Answer:
        ref = request.ref
        assert ref.digest
        stored = self.store.find(ref.digest)
        if stored is not None and stored.media_type:
            # It is here as a manifest, and is not to become a blob for all who ask.
            return await self._bypass(request, MISS)
        running = self.fetcher.flights.get(ref.registry, ref.digest)
        if request.head and (running is None or running.size is None):
            return await self._bypass(request, MISS)
        wanted = _wanted(request)
        if error := self._refused_resume(ref, wanted):
            raise error
        # What begins with the first byte may be all of it, so its size is waited for.
        little = wanted is not None and _is_little(wanted) and wanted.start != 0
        flight = None
        try:
            async with asyncio.timeout(PIECE_HEAD if little else None):
                flight = await self._board(request, permitted=permitted)
            elsewhere = wanted is not None and await self._is_elsewhere(wanted, flight)
        except NotKept:
            return await self._bypass(request)
        except TimeoutError:
            # The flight goes on; who wants little, as lazily pulling clients do, does not wait for its turn.
            elsewhere = True
        size = flight.size if flight is not None else None
        if wanted and elsewhere and (answer := await self._piece(request, wanted, size)):
            return answer
        try:
            return await self._join(request, flight or await self._board(request, permitted=permitted))
        except NotKept:
            return await self._bypass(request)

    def _refused_resume(self, ref: Reference, wanted: RangeRequest | None) -> RequestError | None:
        """Why a client may not go on here where a broken fetch ended; it may begin anew."""
        if ref.digest is None:
            return None
        return self.fetcher.resume_refused(ref.registry, ref.digest, (wanted.start if wanted else 0) or 0)

    async def _is_elsewhere(self, wanted: RangeRequest, flight: Flight) -> bool:
        """Whether a small piece is wanted (lazy pulling) that this flight will not have, or not have verified, for a while."""
        if flight.verified or flight.sealed or not _is_small_piece(wanted, flight):
            return False
        with flight.wanted():
            # What is there in a moment is worth that moment: upstream need not send it twice.
            missing = (flight.size or 0) - flight.received
            if missing <= FAR_AHEAD:
                await flight.settled(PIECE_WAIT)
        return not flight.verified

    async def _board(self, request: Request, *, permitted: bool) -> Flight:
        """The blob's flight once upstream has answered; a refusal of somebody else's credentials is not this client's.

        Made-up logins are many: where several waited for one of them, they ask upstream whether they may have the blob
        before they start the next flight. Raises NotKept where that did not help either.
        """
        ref = request.ref
        mine = requester_of(ref, request.headers)
        refused = False
        while True:
            running = self.fetcher.flights.get(ref.registry, ref.digest or "")
            if running is None and not permitted and self.fetcher.is_contested(ref.registry, ref.digest or ""):
                await self._prove(request)
                permitted = True
                continue
            others = running is not None and running.requester.repository != ref.repository
            if others and not permitted and self.access.verifies(ref):
                # It began since this client was let through: what is in one repository may not be in another.
                await self._prove(request)
                permitted = True
                continue
            flight = self.fetcher.flight(ref, request.headers)
            flight.joined(mine)
            try:
                with flight.wanted():
                    await flight.opened()
                    if flight.size is None:
                        await flight.settled(LENGTH_WAIT)
                    elif flight.size <= HOLD:
                        await flight.settled(SMALL_WAIT)
                    elif self.fetcher.recent_failure(*flight.key):
                        # A client that gets a head and no byte, again and again, never asks elsewhere.
                        await flight.begun(SMALL_WAIT)
            except (Relayed, RequestError) as error:
                if mine.shares(flight.requester, error):
                    raise
                if refused:
                    raise NotKept from error
                refused = True
            else:
                return flight

    async def _prove(self, request: Request) -> None:
        """Asks upstream whether this client may have a blob. Raises Relayed with its refusal, RequestError."""
        ref, headers = request.ref, request.headers
        if self.access.verifies(ref):
            if not await self.access.ask(ref, headers):
                raise upstream_error(502, "upstream answered with something else where a blob was asked for")
            return
        method, response = await ask_of(self.fetcher, ref, headers)
        if response.status in PERSONAL:
            raise Relayed(await self.fetcher.relay(response, from_head=method == "HEAD"))
        response.close()

    async def _join(self, request: Request, flight: Flight) -> Answer:
        ref = request.ref
        result = HIT if flight.verified and flight.stored is not None else MISS
        headers = object_headers(ref, flight.digest, OCTET_STREAM, result)
        size = flight.size
        if size is None:
            return Answer(200, headers, b"", FlightReader(flight, 0, None), None, result, ref)
        try:
            parts = _parts(request, size)
        except Unsatisfiable:
            return _unsatisfiable(ref, size, headers, result)
        # Several parts of what is still on its way: all of it is a right answer, too (RFC 9110 section 14.2).
        part, status = (parts[0], 206) if len(parts) == 1 else (Part(0, size), 200)
        if status == 206:
            headers = (*headers, ("Content-Range", part.content_range(size)))
        if request.head:
            return Answer(status, headers, length=part.length, result=result, ref=ref)
        return Answer(status, headers, b"", FlightReader(flight, part.start, part.end), part.length, result, ref)


def _held(answer: Answer | None, digest: str, until: float) -> Answer | None:
    """An answer that stands in for something too young, marked as such."""
    if answer is not None:
        text = f"held until {shown(until)}: {digest} is too young"
        answer.headers = (*answer.headers, ("Warning", f'299 cacheyd "{text}"'))
        answer.note = text
    return answer


def _slicer(body: bytes) -> Callable[[int, int], bytes]:
    return lambda start, end: body[start:end]


def _parts(request: Request, size: int) -> tuple[Part, ...]:
    """The parts asked for; none where all of it is to be sent (no Range, HEAD, a stale If-Range). Raises Unsatisfiable."""
    wanted = _wanted(request)
    parts = () if wanted is None else wanted.parts(size)
    if wanted is None or len(wanted.specs) == 1:
        return parts
    # Clients that ask for several ranges do not expect one 206 part. And more than all of it in pieces is an attack, or a
    # client that is better off with all of it (RFC 9110 section 14.2).
    return parts if len(parts) > 1 and sum(part.length for part in parts) <= size else ()


def _wanted(request: Request) -> RangeRequest | None:
    """The parts of an object that a client asks for, None for all of it."""
    if request.head or not if_range_holds(request.if_range, f'"{request.ref.digest}"'):
        return None
    return parse_range(request.range)


def _is_little(wanted: RangeRequest) -> bool:
    """Whether little is wanted, however large the blob is: suffixes count, but not several, nor what is open to the end."""
    if len(wanted.specs) != 1:
        return False
    first, last = wanted.specs[0]
    return last is not None and last - (first - 1 if first is not None else 0) <= FAR_AHEAD


def _is_small_piece(wanted: RangeRequest, flight: Flight) -> bool:
    """Whether all that is wanted is little, and not all of it.

    What is open to the end counts where nobody else wants it, and it has not come to that yet; else a client goes on with
    what it had before, or has others of its own that read what is before it.
    """
    if flight.size is None or len(wanted.specs) != 1:
        return False
    opens = [first for first, last in wanted.specs if first is not None and last is None]
    if opens and (flight.audience or not max(flight.received, flight.size // 2, flight.size - OPEN_END) < min(opens)):
        return False
    try:
        length = sum(part.length for part in wanted.parts(flight.size))
    except Unsatisfiable:
        return False
    return length <= FAR_AHEAD and length < flight.size


def _part_of(wanted: RangeRequest, answered: tuple[int, int, int | None] | None, size: int | None) -> Part | None:
    """The part of a blob that a Content-Range is of, if that is what was asked for, and not all of it.

    `size` is the blob's, where it is known; else what is answered has to say it, or to begin behind the first byte.
    """
    if answered is None or len(wanted.specs) != 1 or (size is not None and answered[2] not in (None, size)):
        return None
    part, size = Part(*answered[:2]), answered[2] if size is None else size
    first, last = wanted.specs[0]
    if size is not None:
        try:
            return part if wanted.parts(size) == (part,) and part.length < size else None
        except Unsatisfiable:
            return None
    if first is None:
        return part if part.start > 0 and part.length == last else None
    return part if first == part.start > 0 and last is not None and part.end == last + 1 else None


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


def _stated_digest(headers: HeaderList) -> str:
    """What upstream says that the digest is, empty if it does not or it is none."""
    stated = header(headers, "docker-content-digest") or ""
    return stated if DIGEST.fullmatch(stated) else ""


def _complete_head(relay: Relay) -> bool:
    """Whether a HEAD told all that containerd needs: digest, type and length."""
    digest = header(relay.headers, "docker-content-digest") or ""
    media_type = (header(relay.headers, "content-type") or "").partition(";")[0].strip().lower()
    # Of a type that says nothing of what it is, only the bytes can tell.
    told = bool(media_type) and media_type not in NO_TYPES and not media_type.startswith("text/")
    return relay.status == 200 and bool(DIGEST.fullmatch(digest)) and told and bool(content_length(relay.headers))
