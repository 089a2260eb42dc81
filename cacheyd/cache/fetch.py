"""Drives fetches: chunks to the sink thread, resume, verification, commit. Defines the `Upstream` that it needs."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from cacheyd.cache.flight import Flight, FlightError, FlightTable, NotKept
from cacheyd.cache.freshness import is_memorable
from cacheyd.cache.requester import Question, Requester, ask_once, credentials_of, requester_of
from cacheyd.protocol.codings import (
    BLOB_SECONDS,
    SECONDS_OF_MIB,
    WINDOW,
    BadCoding,
    Decoder,
    UnknownCoding,
    check_known,
    codings_of,
)
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.errors import Blame, Code, Failure, RequestError, cache_error, explain, upstream_error
from cacheyd.protocol.headers import HeaderList, content_length, end_to_end, header, without
from cacheyd.protocol.manifest import signed_payload
from cacheyd.protocol.media_types import OCTET_STREAM, SCHEMA_1, SCHEMA_1_SIGNED, is_media_type
from cacheyd.protocol.ranges import parse_content_range
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.resources.budget import Budget, HeldBody
from cacheyd.resources.decoding import BLOBS, NoTurn, next_slice, undo
from cacheyd.resources.pace import Pace
from cacheyd.resources.slots import Slots
from cacheyd.settings.settings import Settings
from cacheyd.singleflight import SingleFlight
from cacheyd.store.objects import MANIFEST_MAX as KEPT_MAX
from cacheyd.store.objects import SMALL
from cacheyd.store.partial import Partial
from cacheyd.store.partials import LARGE_CHUNK
from cacheyd.store.records import Description, TagVariant, describe
from cacheyd.store.store import Store
from cacheyd.upstream.port import (
    PERSONAL,
    Chunk,
    Relay,
    Relayed,
    Upstream,
    UpstreamBroken,
    UpstreamRequest,
    UpstreamResponse,
    read_all,
)
from cacheyd.upstream.ratelimit import LEAST, RATE_LIMIT_DEFAULT, RATE_LIMIT_MAX, Limits, wanted_wait
from cacheyd.upstream.ratelimit import Key as LimitKey

log = logging.getLogger(__name__)

# The largest manifest that is passed on (bytes). One over `KEPT_MAX` goes straight through: clients refuse it.
MANIFEST_MAX = 8 << 20
# From this size on, a manifest is hashed and looked into in a thread, one at a time (bytes).
LARGE_MANIFEST = 256 << 10
# What all manifests on their way in may have in memory (bytes); those beyond it go straight through.
MANIFESTS_MAX = 16 << 20
# The most that an error's body may have (bytes).
RELAY_MAX = 64 << 10
# Of an answer that is remembered, for many at once: the body and each header (bytes), how many headers, and which.
REMEMBERED_BODY, REMEMBERED_HEADER, MAX_REMEMBERED_HEADERS = 2 << 10, 512, 8
_REMEMBERED = frozenset(
    {
        "content-type",
        "retry-after",
        "docker-distribution-api-version",
        "ratelimit-limit",
        "ratelimit-remaining",
        "ratelimit-reset",
    }
)
# Where what a client would get does not fit into the budget.
NO_ROOM = "too much waits in memory for clients that read slowly"
# How long the body of an error is waited for (seconds).
RELAY_WAIT = 5.0
# A broken flight is answered 502 for so long, so that clients resume at the upstream and not here (seconds).
FAILURE_PAUSE = 15.0
MISMATCH_PAUSE = 60.0
# For so long after several other logins waited for a flight that upstream refused, nobody starts one before upstream said
# that he may have the object (seconds).
CONTESTED = 5.0
# Wrong bytes once may be chance on the way; so often in a row, they are what the upstream has.
PERSISTENT = 2
# A fetch that waits for its turn looks so often whether another one has to make way (seconds): one that nobody waits for,
# or the slowest below this rate (bytes a second), but none in its first seconds.
LOOK_FOR_WAY, WAY_EVERY, SLOW, YOUNG = 1.0, 0.1, 64 << 10, 5.0
# Progress of so many bytes makes the next break a first one again.
PROGRESS = 64 << 10
_WRONG = "upstream sent bytes that do not have this digest"


@dataclass(frozen=True, slots=True)
class ManifestContent:
    """A verified manifest. `stored` says whether it is on disk; a large one is there only, and `data` is empty."""

    digest: str
    media_type: str
    data: bytes
    stored: bool


type Admit = Callable[[Reference, HeaderList, TagVariant, bytes], Awaitable[bool]]


async def _no_opinion(ref: Reference, headers: HeaderList, variant: TagVariant, data: bytes) -> bool:
    return False


class Fetcher:
    """Fetches objects, each once however many clients wait."""

    def __init__(
        self,
        store: Store,
        upstream: Upstream,
        settings: Settings,
        *,
        budget: Budget | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        on_verify_failure: Callable[[str], None] = lambda registry: None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.flights = FlightTable()
        self.budget = budget or Budget(settings.flight_memory)
        # Who decides whether a tag may lead to what upstream says; whether that was done.
        self.admit: Admit = _no_opinion
        self._upstream = upstream
        self._clock = clock
        self._monotonic = monotonic
        self._on_verify_failure = on_verify_failure
        self._manifests: SingleFlight[Question, Requester, ManifestContent] = SingleFlight()
        self._generation = 0
        self._manifest_bytes = 0
        self._large_manifest = asyncio.Lock()
        # Until when an object's flight counts as broken, why, how much of it a client may have, and how many in a row had
        # wrong bytes.
        self._failed: dict[tuple[str, str], tuple[float, Failure, int, int]] = {}
        # Until when who starts an object's flight has to be let through first.
        self._contested: dict[tuple[str, str], float] = {}
        self.limits = Limits(monotonic)
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = Slots(settings.max_flights)
        self._decoding = Slots(BLOBS)
        self._made_way = float("-inf")

    # What every request goes through

    async def open(
        self, ref: Reference, method: str, headers: HeaderList, *, as_client: bool = False, piece: bool = False
    ) -> UpstreamResponse:
        """Asks upstream; raises Relayed for a rate limit that is still in force, RequestError 502, 503 or 504 if it fails."""
        key, generation = self.limit_key(ref, headers, as_client=as_client), self._generation
        self.limits.check(key)
        try:
            response = await self._upstream.open(UpstreamRequest(ref, method, headers, as_client, piece))
        except UpstreamBroken as error:
            failed = _as_request_error(error)
            if error.wait is not None and generation == self._generation:
                failed.ask_again_at(self._note_limit(key, ref, error.wait, failed.failure))
            raise failed from error
        except RequestError:
            raise
        except Exception as error:
            raise _unexpected(ref.registry, error) from error
        if not _is_an_answer(ref, response.status, part=header(headers, "range") is not None):
            # Nothing that was asked has such an answer, and clients stumble over a 304 or a redirect without a target.
            response.close()
            raise upstream_error(502, f"upstream answered {response.status}")
        response = await self._without_coding(ref, method, response)
        if response.status == 429:
            wait = wanted_wait(response.headers, self._clock())
            relay = await self.relay(response, from_head=method == "HEAD")
            if generation == self._generation:
                relay = replace(relay, again_at=self._note_limit(key, ref, wait, _to_remember(relay)))
            raise Relayed(relay)
        return response

    def limit_key(self, ref: Reference, headers: HeaderList, *, as_client: bool = False) -> LimitKey:
        """Whom a rate limit is for: who upstream thinks that asks, and the repository. What others have is none of it."""
        auth = self.settings.registry(ref.registry).auth
        if auth != "passthrough" and not as_client:
            return ref.registry, ref.repository, auth.encode()
        # Who names the registry in the path and has no login gets one of cacheyd's, and may be refused that.
        given = not ref.scoped and header(headers, "authorization") is None
        return ref.registry, ref.repository, b"given" if given else credentials_of(headers)

    def _note_limit(self, key: LimitKey, ref: Reference, wait: float | None, said: Relay | Failure) -> float | None:
        """Remembers a rate limit; when to ask again, where that is to be waited for."""
        now = self._monotonic()
        again_at = None
        if wait is not None and wait <= (most := self.settings.registry(ref.registry).retry_after_max) and most > 0:
            again_at = now + max(wait, LEAST)
        until = now + (RATE_LIMIT_DEFAULT if wait is None else min(wait, RATE_LIMIT_MAX))
        self.limits.note(key, until, replace(said, again_at=again_at) if isinstance(said, Relay) else said, again_at)
        return again_at

    async def relay(self, response: UpstreamResponse, *, from_head: bool = False) -> Relay:
        """A response as it is, its body in memory; for one that breaks or is too large, an error gets one of ours."""
        try:
            async with asyncio.timeout(RELAY_WAIT):
                body = await read_all(response, RELAY_MAX, self.budget)
        except (UpstreamBroken, TimeoutError):
            body = None
        finally:
            response.close()
        return Relay(response.status, end_to_end(response.headers), body or b"", from_head or body is None)

    async def _without_coding(self, ref: Reference, method: str, response: UpstreamResponse) -> UpstreamResponse:
        """The response as what is behind here can use it: objects as they came, as their digest says whether they are encoded.

        Raises RequestError for a list that cannot be decoded; an error's body breaks then.
        """
        if not (codings := codings_of(response.headers)):
            return response
        if method == "HEAD":
            # The length is one of other bytes than the object's.
            response.headers = without(response.headers, "content-encoding", "content-length")
            return response
        if response.status >= 400:
            body: bytes | None = None
            with suppress(RequestError, TimeoutError):
                async with asyncio.timeout(RELAY_WAIT):
                    body = await self._whole(ref, response, codings, RELAY_MAX)
            return Whole(response, body, self.budget)
        if ref.kind in (Kind.MANIFEST, Kind.BLOB):
            return response
        try:
            async with asyncio.timeout(self.settings.progress_timeout):
                body = await self._whole(ref, response, codings, KEPT_MAX)
        except TimeoutError:
            raise upstream_error(504, "upstream's answer is encoded, and took too long") from None
        if not self.budget.has_room_for(body):
            raise cache_error(NO_ROOM, 503)
        return Whole(response, body, self.budget)

    async def _whole(
        self, ref: Reference, response: UpstreamResponse, codings: Sequence[str], limit: int, digest: str = ""
    ) -> bytes:
        """All of a body, decoded unless it has the digest as it came. Raises RequestError."""
        try:
            data = await read_all(response, limit, self.budget)
        except UpstreamBroken as error:
            raise _as_request_error(error) from error
        finally:
            response.close()
        if data is None:
            raise upstream_error(502, "upstream encoded it although nobody asked for that, and there is no room to decode it")
        return bytes(await self._undone(ref, data, codings, limit, digest))

    async def _undone(
        self, ref: Reference, data: bytes | bytearray, codings: Sequence[str], limit: int, digest: str = ""
    ) -> bytes | bytearray:
        """A body without its coding. Raises RequestError; `digest` is what it is to have, empty if nobody knows."""

        def is_right(came: bytes | bytearray) -> bool:
            return bool(digest) and digest_of(came, digest.partition(":")[0]) == digest

        encoded = "upstream encoded it although nobody asked for that"
        try:
            return await undo(ref.registry, data, codings, limit, self.budget, is_right=is_right)
        except NoTurn:
            raise upstream_error(503, f"{encoded}, and too much waits to be decoded") from None
        except UnknownCoding as error:
            raise upstream_error(502, f"{encoded}: {error}") from None
        except BadCoding as error:
            code = Code.DIGEST_INVALID if digest else Code.UNKNOWN
            detail = {"digest": digest} if digest else {}
            raise RequestError(Failure(502, code, f"{encoded}: {error}", Blame.UPSTREAM, detail)) from None

    async def unpacked(self, ref: Reference, response: UpstreamResponse, digest: str) -> Relay:
        """An object that came encoded and is not kept, in memory: its digest (if anybody knows it) says which bytes it is.

        Raises RequestError, also for one of more than 4 MiB: what it is would be known at its end only.
        """
        data = await self._whole(ref, response, codings_of(response.headers), KEPT_MAX, digest)
        if digest and await asyncio.to_thread(digest_of, data, digest.partition(":")[0]) != digest:
            raise RequestError(Failure(502, Code.DIGEST_INVALID, _WRONG, Blame.UPSTREAM, {"digest": digest}))
        headers = without(end_to_end(response.headers), "content-encoding")
        return Relay(response.status, headers, data)

    def recent_failure(self, registry: str, digest: str) -> RequestError | None:
        """Why an object could not be fetched just now."""
        if (known := self._recently_failed(registry, digest)) is None:
            return None
        return RequestError(known[1])

    def resume_refused(self, registry: str, digest: str, start: int) -> RequestError | None:
        """Why a client may not begin at byte `start` here: what it has may be of a flight that broke, and be wrong.

        A new fetch from the first byte is another matter, unless the last ones brought wrong bytes, too: then a client gets
        right ones elsewhere only.
        """
        if not self._failed or (known := self._recently_failed(registry, digest)) is None:
            return None
        _, failure, received, mismatches = known
        return RequestError(failure) if 0 < start <= received or mismatches >= PERSISTENT else None

    def _recently_failed(self, registry: str, digest: str) -> tuple[float, Failure, int, int] | None:
        known = self._failed.get((registry, digest))
        if known and self._monotonic() < known[0]:
            return known
        self._failed.pop((registry, digest), None)
        return None

    def is_contested(self, registry: str, digest: str) -> bool:
        """Whether strangers' logins kept others waiting for this object just now."""
        until = self._contested.get((registry, digest)) if self._contested else None
        if until is None:
            return False
        if self._monotonic() < until:
            return True
        del self._contested[registry, digest]
        return False

    def mismatched(self, registry: str) -> None:
        """Bytes of this registry that passed through did not have their digest."""
        self._on_verify_failure(registry)

    def forget(self) -> None:
        """After a change of settings: failures and rate limits of before count no more, and nobody joins what is asked for."""
        self._generation += 1
        self._failed.clear()
        self._contested.clear()
        self.limits.forget()

    def in_flight(self) -> set[str]:
        """The digests of the objects that are on their way in."""
        return {flight.digest for flight in self.flights}

    # Blobs

    def flight(self, ref: Reference, headers: HeaderList) -> Flight:
        """The flight of a blob: the one that is under way, or a new one started with these headers."""
        assert ref.digest
        flight = self.flights.get(ref.registry, ref.digest)
        if flight is None:
            flight = Flight(ref.digest, requester_of(ref, headers), self.budget)
            self.flights.add(flight)
            self.store.partials.reservations.expect(flight.digest)
            task = asyncio.create_task(self._run(flight, ref, headers), name=f"flight {ref.digest[:19]}")
            if not task.done():
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return flight

    async def stop(self) -> None:
        """Ends running flights; what they have stays in partial files for the next process."""
        tasks = [*self._tasks, *self._manifests.tasks()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, flight: Flight, ref: Reference, headers: HeaderList) -> None:
        try:
            await self._take_slot(flight)
            try:
                flight.began = self._monotonic()
                await self._fly(flight, ref, headers)
            finally:
                self._slots.leave(ref.registry)
        except (Relayed, RequestError, NotKept) as error:
            if flight.streaming and not isinstance(error, Relayed):
                self._note_failure(flight, error)
            if flight.contested and isinstance(error, Relayed) and error.relay.status in PERSONAL:
                _bound(self._contested)
                self._contested[flight.key] = self._monotonic() + CONTESTED
            self._end(flight, error)
        except asyncio.CancelledError:
            # The descriptor stays open: a thread may still be writing to it.
            flight.fail(upstream_error(503, "cacheyd is stopping"))
            raise
        except Exception as error:
            self._end(flight, _unexpected(ref.registry, error))
        finally:
            self._promise(flight, 0)
            self._remove(flight)
            flight.end()

    def _note_failure(self, flight: Flight, error: RequestError | NotKept) -> None:
        """Clients have bytes of it that nobody has verified: they are not to go on here for a while."""
        failure = (
            upstream_error(502, "there was no room for the rest").failure if isinstance(error, NotKept) else error.failure
        )
        before = self._recently_failed(*flight.key)
        wrong = failure.code is Code.DIGEST_INVALID
        mismatches = int(wrong) + (before[3] if before else 0)
        _bound(self._failed)
        until = self._monotonic() + (MISMATCH_PAUSE if wrong else FAILURE_PAUSE)
        self._failed[flight.key] = (until, failure, flight.received, mismatches)

    async def _take_slot(self, flight: Flight) -> None:
        registry = flight.requester.registry
        if self._slots.try_enter(registry):
            return
        turn = asyncio.ensure_future(self._slots.enter(registry))
        try:
            async with asyncio.timeout(self.settings.head_timeout):
                while not (await asyncio.wait({turn}, timeout=LOOK_FOR_WAY))[0]:
                    if not flight.audience:
                        raise upstream_error(503, "nobody waits for it any more")
                    self._make_way(registry)
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._slots.leave(registry)
            turn.cancel()
            if isinstance(error, TimeoutError):
                raise upstream_error(503, "too many objects are being fetched") from None
            raise

    def _make_way(self, registry: str) -> None:
        """Ends one flight for those who wait: one that nobody waits for, or the slowest of a registry that has more turns."""
        now = self._monotonic()
        if now - self._made_way < WAY_EVERY:
            return
        self._made_way = now
        mine = self._slots.taken(registry)
        old = [flight for flight in self.flights if flight.cut is None and 0 < flight.began <= now - YOUNG]
        if not self._slots.full:
            old = [flight for flight in old if flight.requester.registry == registry]
        chosen = [flight for flight in old if not flight.audience] or [
            flight for flight in old if flight.rate(now) < SLOW and self._slots.taken(flight.requester.registry) > mine
        ]
        if chosen:
            slowest = min(chosen, key=lambda flight: flight.rate(now))
            slowest.cut_off(upstream_error(503, "the fetch made way for others: it was slow, or nobody waited for it"))

    def _remove(self, flight: Flight) -> None:
        if self.flights.remove(flight):
            self.store.partials.reservations.expect_no_more(flight.digest)

    def _end(self, flight: Flight, error: FlightError) -> None:
        self._remove(flight)
        if flight.verified:
            return
        if flight.partial is not None:
            # What could not be kept is not to fill the disk either.
            self.store.release(flight.partial, keep=not (flight.sealed or isinstance(error, NotKept)))
        if flight.streaming and not isinstance(error, NotKept):
            log.warning("fetch of %s ended at byte %d: %s", flight.digest, flight.received, error)
        flight.fail(error)

    async def _fly(self, flight: Flight, ref: Reference, headers: HeaderList) -> None:
        if not self.store.writable:
            raise NotKept
        try:
            flight.partial = await self.store.open_partial(flight.digest, ref.registry)
        except OSError as error:
            self.store.report_write_error(error)
            raise NotKept from error
        flight.received = flight.partial.size
        # Where logins are verified, what is complete may be another repository's: upstream is asked for the rest.
        trusted = self.settings.registry(ref.registry).access == "open"
        if trusted and flight.partial.size and flight.partial.verified():
            await self._land(flight, flight.partial, ref)
            return
        flight.resumed_at = flight.received
        flight.credit = self.store.credit(ref.registry)
        attempt = 0
        while not flight.over:
            self._check_wanted(flight)
            before = flight.received
            try:
                await self._attempt(flight, flight.partial, ref, headers)
            except _StartOver:
                # Once is not much: what is here of it may be out of date.
                attempt += 1
                if attempt > max(1, self.settings.retries):
                    raise upstream_error(502, "upstream has something else each time") from None
                await asyncio.sleep(_pause(attempt))
            except UpstreamBroken as error:
                if flight.partial.size and flight.partial.verified():
                    # All is there; only the end of the message was missing.
                    await self._land(flight, flight.partial, ref)
                    return
                # Of what is encoded nothing is left for the next attempt.
                attempt = 1 if flight.received - before >= PROGRESS and not flight.sealed else attempt + 1
                given_up = attempt > self.settings.retries or error.hopeless or (error.timeout and not flight.audience)
                if not flight.streaming or given_up or flight.cut is not None:
                    raise flight.cut or _as_request_error(error) from error
                if flight.sealed and isinstance(restart := await self._restart(flight, flight.partial, ref, ""), NotKept):
                    raise restart from error
                log.info("fetch of %s broke at byte %d (%s); resuming", flight.digest, flight.received, error)
                await asyncio.sleep(max(_pause(attempt), (error.again_at or 0.0) - self._monotonic()))

    def _check_wanted(self, flight: Flight) -> None:
        """Raises RequestError for what has to make way, or is abandoned."""
        if flight.cut is not None:
            raise flight.cut
        if self._is_abandoned(flight):
            raise upstream_error(503, "nobody waits for it any more")

    async def _attempt(self, flight: Flight, partial: Partial, ref: Reference, headers: HeaderList) -> None:
        if partial.size:
            headers = (*headers, ("Range", f"bytes={partial.size}-"))
        try:
            response = await self.open(ref, "GET", headers)
        except RequestError as error:
            if flight.streaming:
                raise UpstreamBroken(error.failure.message) from error
            raise
        except Relayed as error:
            if flight.streaming:
                raise UpstreamBroken(str(error), again_at=error.again_at) from error
            raise
        flight.on_cut = response.close
        try:
            skip = await self._begin(flight, partial, ref, response)
            await self._receive(flight, partial, ref, response, skip)
        finally:
            flight.on_cut = None
            response.close()
        await self._finish(flight, partial, ref)

    async def _begin(self, flight: Flight, partial: Partial, ref: Reference, response: UpstreamResponse) -> int:
        """Checks the head of a response and tells the clients; how many bytes of the body are there already."""
        await self._seal(flight, partial, ref, response)
        length = None if flight.codings else content_length(response.headers)
        skip, size = 0, length
        if response.status == 206 and partial.size:
            part = parse_content_range(header(response.headers, "content-range"))
            if part is None or part[0] != partial.size:
                raise await self._restart(flight, partial, ref, "upstream answered another range than was asked for")
            size = part[2] if part[2] is not None else (None if length is None else partial.size + length)
        elif response.status == 200:
            skip = partial.size
        elif response.status == 416 and partial.size:
            raise await self._restart(flight, partial, ref, "upstream has less of it than this cache")
        else:
            relay = await self.relay(response)
            if flight.streaming:
                raise UpstreamBroken(f"upstream answered {relay.status}")
            if relay.status < 400:
                raise upstream_error(502, f"upstream answered {relay.status} to a GET of a blob")
            raise Relayed(relay)
        if flight.size is not None and size is not None and size != flight.size:
            raise await self._restart(flight, partial, ref, "upstream changed the size of a blob")
        if size is not None and flight.size is None:
            if not await self._accept(flight, size - partial.size):
                raise NotKept
            # What may begin anew may have another one then.
            flight.size = None if flight.sealed else size
        if not flight.streaming:
            flight.streaming = True
            flight.notify()
        return skip

    async def _seal(self, flight: Flight, partial: Partial, ref: Reference, response: UpstreamResponse) -> None:
        """What comes encoded has another length than the object, and other bytes at each place; or only says so, as object
        stores do of compressed layers. Its digest tells, so nobody gets any of it before, and it is never gone on with.
        """
        flight.codings = codings_of(response.headers) if response.status in (200, 206) else ()
        if not flight.codings:
            return
        if partial.size or (flight.streaming and not flight.sealed):
            raise await self._restart(flight, partial, ref, "upstream goes on with encoded bytes")
        if response.status != 200:
            raise upstream_error(502, "upstream answered a part of something encoded")
        flight.sealed = True

    async def _accept(self, flight: Flight, size: int) -> bool:
        """Whether there is room for what the head of a response promises.

        A stranger promises what he likes: his room is made as bytes come. For a registry that has delivered something it is
        made now, at the price of as much, and kept: its flights do not run out of it on their way.
        """
        if not flight.credit:
            return self.store.can_take(size)
        if not await self.store.make_room(size, unverified=True, credit=flight.credit):
            return False
        self._promise(flight, size)
        return True

    def _promise(self, flight: Flight, size: int) -> None:
        self.store.promise(size - flight.promised)
        flight.promised = size

    async def _restart(self, flight: Flight, partial: Partial, ref: Reference, why: str) -> Exception:
        """What is in the partial file does not continue: starts over if no client has any of it, else gives up."""
        await self.store.discard(partial)
        if flight.streaming and not flight.sealed:
            return upstream_error(502, why, digest=flight.digest)
        try:
            flight.partial = await self.store.open_partial(flight.digest, ref.registry)
        except OSError as error:
            self.store.report_write_error(error)
            return NotKept()
        flight.received, flight.size, flight.codings = 0, None, ()
        self._promise(flight, 0)
        return _StartOver()

    async def _receive(self, flight: Flight, partial: Partial, ref: Reference, response: UpstreamResponse, skip: int) -> None:
        pace = Pace(self.settings.min_rate, self.settings.progress_timeout)
        while True:
            began = pace.begin()
            try:
                async with asyncio.timeout(self.settings.progress_timeout):
                    chunks = await response.read()
            except TimeoutError:
                raise UpstreamBroken("no progress", timeout=True) from None
            if not chunks:
                return
            if not pace.end(began, sum(map(len, chunks))):
                raise UpstreamBroken("too slow", timeout=True)
            if skip:
                chunks, skip = _drop(chunks, skip)
            if chunks:
                await self._keep_chunks(flight, partial, ref, chunks)
            if self._is_abandoned(flight):
                raise upstream_error(503, "nobody waits for it any more")

    async def _keep_chunks(self, flight: Flight, partial: Partial, ref: Reference, chunks: Sequence[Chunk]) -> None:
        await self._check_length(flight, partial, ref, sum(map(len, chunks)))
        if len(chunks) > 1 and sum(map(len, chunks)) < LARGE_CHUNK * len(chunks):
            chunks = [b"".join(chunks)]
        try:
            with self.store.writing(sum(map(len, chunks))):
                start, flight.received = flight.received, await self.store.append(partial, chunks)
        except OSError as error:
            self.store.report_write_error(error)
            raise NotKept from error
        if not flight.sealed:
            flight.remember(start, chunks)
        flight.notify()

    def _is_abandoned(self, flight: Flight) -> bool:
        """Whether nobody has wanted it for longer than it may go on like this."""
        now = self._monotonic()
        if flight.audience:
            flight.alone_since = None
        elif flight.alone_since is None:
            flight.alone_since = now
        else:
            return now - flight.alone_since >= self.settings.finish_abandoned
        return False

    async def _check_length(self, flight: Flight, partial: Partial, ref: Reference, more: int) -> None:
        """No more is written than was announced, nor more than there is room for."""
        if flight.size is not None and flight.received + more > flight.size:
            raise await self._mismatch(partial, ref, "upstream sent more bytes than it said")
        if flight.promised >= more:
            self._promise(flight, flight.promised - more)
        elif not await self.store.make_room(more, unverified=True, credit=flight.credit):
            raise NotKept

    async def _finish(self, flight: Flight, partial: Partial, ref: Reference) -> None:
        if partial.verified():
            await self._land(flight, partial, ref)
            return
        if flight.codings:
            await self._unpack(flight, partial, ref)
            return
        if flight.size is not None and flight.received < flight.size:
            raise UpstreamBroken("the body ended early")
        raise await self._mismatch(partial, ref, _WRONG)

    async def _unpack(self, flight: Flight, encoded: Partial, ref: Reference) -> None:
        """Undoes the codings of what came, which is not the object as it is: now it is on disk, and nobody has any of it."""
        try:
            check_known(flight.codings)
        except UnknownCoding as error:
            raise await self._mismatch(encoded, ref, f"{_WRONG}, nor can they be decoded: {error}") from None
        # Its descriptor stays open until the last piece is read.
        self.store.release(encoded, close=False, keep=False)
        codings, flight.codings, flight.received = flight.codings, (), 0
        try:
            flight.partial = partial = await self.store.open_partial(flight.digest, ref.registry)
        except OSError as error:
            self.store.report_write_error(error)
            raise NotKept from error
        await self._turn_to_decode(flight)
        self.budget.take(WINDOW)
        try:
            await self._decode(flight, encoded, codings, partial, ref)
        except BadCoding as error:
            raise await self._mismatch(partial, ref, f"{_WRONG}: {error}") from None
        finally:
            self.budget.give(WINDOW)
            self._decoding.leave(flight.requester.registry)
        await self._finish(flight, partial, ref)

    async def _turn_to_decode(self, flight: Flight) -> None:
        registry = flight.requester.registry
        turn = asyncio.ensure_future(self._decoding.enter(registry))
        try:
            while not (await asyncio.wait({turn}, timeout=LOOK_FOR_WAY))[0]:
                self._check_wanted(flight)
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._decoding.leave(registry)
            turn.cancel()
            raise

    async def _decode(
        self, flight: Flight, encoded: Partial, codings: Sequence[str], partial: Partial, ref: Reference
    ) -> None:
        decoder, at = Decoder(codings, BLOB_SECONDS, SECONDS_OF_MIB), 0
        pieces: Iterator[bytes] = iter(())
        try:
            while data := await self.store.in_thread(encoded.read, at, at + LARGE_CHUNK):
                at += len(data)
                pieces, is_all = decoder.feed(data), False
                while not is_all:
                    self._check_wanted(flight)
                    batch, is_all = await next_slice(pieces)
                    if batch:
                        await self._keep_chunks(flight, partial, ref, batch)
            decoder.finish()
        finally:
            # An error keeps this frame, and they keep the window.
            del decoder, pieces

    async def _mismatch(self, partial: Partial, ref: Reference, message: str) -> RequestError:
        """Wrong bytes: nothing of them is kept."""
        self._on_verify_failure(ref.registry)
        await self.store.discard(partial)
        return RequestError(Failure(502, Code.DIGEST_INVALID, message, Blame.UPSTREAM, {"digest": partial.digest}))

    async def _land(self, flight: Flight, partial: Partial, ref: Reference) -> None:
        """Verified: the clients get the rest at once, then the disk is waited for."""
        flight.size = flight.received  # Whatever upstream said.
        flight.streaming = flight.verified = True
        if (broken := self._failed.get(flight.key)) is not None:
            self._failed[flight.key] = (*broken[:3], 0)
        flight.notify()
        try:
            flight.stored = await self.store.commit(partial, within=ref.name)
        except OSError as error:
            self.store.report_write_error(error)
        if flight.stored is None:
            self.store.release(partial, close=False)
            log.info("%s of %s was served but not kept", flight.digest, ref.registry)

    # Manifests

    async def manifest(self, ref: Reference, headers: HeaderList, asked: frozenset[str]) -> ManifestContent:
        """A manifest by tag or digest, verified and kept; once for all who ask at once with the same Accept.

        Raises Relayed for an answer that is not the manifest, RequestError if upstream cannot be had.
        """
        # By repository, also a digest: who may read it in one may not in another.
        of_tag = () if ref.digest else sorted(asked)
        question = self._generation, ref.registry, ref.repository, ref.reference, *of_tag
        return await ask_once(
            self._manifests, question, requester_of(ref, headers), lambda: self._manifest(ref, headers, asked)
        )

    async def _manifest(self, ref: Reference, headers: HeaderList, asked: frozenset[str]) -> ManifestContent:
        response = await self.open(ref, "GET", headers)
        if response.status != 200:
            relay = await self.relay(response)
            if relay.status < 400:
                raise upstream_error(502, f"upstream answered {relay.status} to a GET of a manifest")
            raise Relayed(relay)
        data = bytearray()
        try:
            await self._read_manifest(ref, response, data)
            content = await self._keep_manifest(ref, response.headers, data)
        finally:
            response.close()
            self._manifest_bytes -= len(data)
        if ref.digest is None:
            variant = TagVariant(asked, content.digest, content.media_type, len(data), self._clock())
            await self.tag_found(ref, headers, variant, content.data)
        return content

    async def tag_found(self, ref: Reference, headers: HeaderList, variant: TagVariant, data: bytes = b"") -> None:
        """Remembers what upstream says of a tag, unless `admit` does; `data` are the manifest's bytes where they are known.

        To be called where upstream is asked, and not where that is waited for: who comes in between must find it.
        """
        if not await self.admit(ref, headers, variant, data) and is_memorable(variant.asked):
            self.store.set_tag(ref.registry, ref.repository, ref.reference, variant)

    async def _read_manifest(self, ref: Reference, response: UpstreamResponse, data: bytearray) -> None:
        """Appends the body to `data`. Raises RequestError, and NotKept for what is too large to be held."""
        length = content_length(response.headers)
        if length is not None and KEPT_MAX < length <= MANIFEST_MAX:
            raise NotKept
        limit = KEPT_MAX if length is None or length <= KEPT_MAX else 0
        try:
            async with asyncio.timeout(self.settings.progress_timeout):
                while chunks := await response.read():
                    more = sum(map(len, chunks))
                    if len(data) + more > limit:
                        raise upstream_error(502, f"upstream's manifest has more than {limit or MANIFEST_MAX} bytes")
                    if self._manifest_bytes + more > MANIFESTS_MAX:
                        raise NotKept
                    self._manifest_bytes += more
                    for chunk in chunks:
                        data += chunk
        except UpstreamBroken as error:
            if not _is_whole(ref, response.headers, data):
                raise _as_request_error(error) from error
            return
        except TimeoutError:
            raise upstream_error(504, "upstream stopped in the middle of a manifest") from None
        if len(data) != (length or len(data)):
            raise upstream_error(502, "upstream's manifest ended early")

    async def _keep_manifest(self, ref: Reference, headers: HeaderList, data: bytearray) -> ManifestContent:
        if not (codings := codings_of(headers)):
            return await self._keep_decoded(ref, headers, data)
        try:
            decoded = await self._undone(ref, data, codings, KEPT_MAX, _expected(ref, headers)[0])
        except RequestError as error:
            if error.failure.code is Code.DIGEST_INVALID:
                self._on_verify_failure(ref.registry)
            raise
        if self._manifest_bytes + len(decoded) > MANIFESTS_MAX:
            raise NotKept
        self._manifest_bytes += len(decoded)
        try:
            return await self._keep_decoded(ref, headers, decoded)
        finally:
            self._manifest_bytes -= len(decoded)

    async def _keep_decoded(self, ref: Reference, headers: HeaderList, data: bytes | bytearray) -> ManifestContent:
        try:
            if len(data) > LARGE_MANIFEST:
                async with self._large_manifest:
                    found = await asyncio.to_thread(_examine, ref, headers, data)
            else:
                found = _examine(ref, headers, data)
        except RequestError as error:
            if error.failure.code is Code.DIGEST_INVALID:
                self._on_verify_failure(ref.registry)
            raise
        stored = None
        # A type that is not from the bytes themselves is this one upstream's word, and not for others.
        if found.description.media_type and self.store.writable and await self.store.make_room(len(found.data)):
            stored = await self.store.put(
                found.digest, found.data, found.media_type, within=ref.name, description=found.description
            )
        if len(found.data) <= SMALL:
            return ManifestContent(found.digest, found.media_type, bytes(found.data), stored is not None)
        if stored is None and len(found.data) > LARGE_MANIFEST:
            raise NotKept
        return ManifestContent(found.digest, found.media_type, b"" if stored else bytes(found.data), stored is not None)


@dataclass(frozen=True, slots=True)
class _Examined:
    """A manifest's bytes with the digest that they have, and its type. `description` is what they say themselves."""

    digest: str
    media_type: str
    data: bytes | bytearray
    description: Description


def _examine(ref: Reference, headers: HeaderList, data: bytes | bytearray) -> _Examined:
    """What upstream sent, decoded, as a manifest. Raises RequestError for what is not the one that was asked for."""
    expected, algorithm = _expected(ref, headers)
    digest = digest_of(data, algorithm)
    description = describe(data)
    media_type = description.media_type
    if description.schema == 1:
        payload = signed_payload(data)
        media_type = SCHEMA_1 if payload is None else SCHEMA_1_SIGNED
        digest = digest if payload is None else digest_of(payload, algorithm)
    if expected not in ("", digest):
        message = "upstream sent a manifest that does not have its digest"
        raise RequestError(Failure(502, Code.DIGEST_INVALID, message, Blame.UPSTREAM, {"digest": expected}))
    return _Examined(digest, media_type or _stated_type(ref, headers), data, description)


def _expected(ref: Reference, headers: HeaderList) -> tuple[str, str]:
    """The digest that a manifest is to have, empty if nobody says, and its algorithm."""
    expected = ref.digest or header(headers, "docker-content-digest") or ""
    algorithm = expected.partition(":")[0]
    return (expected, algorithm) if algorithm in ("sha256", "sha512") else ("", "sha256")


def _is_whole(ref: Reference, headers: HeaderList, data: bytearray) -> bool:
    """Whether all of a manifest is there, and only the end of the message was missing."""
    expected, algorithm = _expected(ref, headers)
    return bool(expected) and digest_of(data, algorithm) == expected


def _stated_type(ref: Reference, headers: HeaderList) -> str:
    """The type to pass on with what is no manifest by its bytes. Raises RequestError for a page in place of a manifest."""
    stated = (header(headers, "content-type") or OCTET_STREAM).partition(";")[0].strip()
    if stated.startswith("text/") and ref.digest is None:
        raise upstream_error(502, f"upstream answered {stated[:100]} where a manifest was asked for")
    return stated if is_media_type(stated) and not stated.startswith("text/") else OCTET_STREAM


def _to_remember(relay: Relay) -> Relay:
    """What is kept of an answer for those who ask again: it may be large, and there may be thousands."""
    headers = tuple(
        (name, value) for name, value in relay.headers if len(value) <= REMEMBERED_HEADER and name.lower() in _REMEMBERED
    )[:MAX_REMEMBERED_HEADERS]
    if len(relay.body) <= REMEMBERED_BODY:
        return replace(relay, headers=headers)
    # As an answer to a HEAD it gets a body of ours.
    return replace(relay, headers=without(headers, "content-type"), body=b"", from_head=True)


def _pause(attempt: int) -> float:
    return min(5.0, 0.1 * float(2**attempt)) * random.uniform(0.5, 1.0)  # noqa: S311


class _StartOver(Exception):
    """The fetch begins anew, from the first byte."""


def _unexpected(registry: str, error: Exception) -> RequestError:
    """An exception where none belongs, which is an error line, is upstream's failure to the client: it asks elsewhere."""
    log.error("fetching from %s failed: %s", registry, explain(error))
    log.debug("it was", exc_info=error)
    return upstream_error(502, f"fetching failed: {type(error).__name__}")


def _as_request_error(error: UpstreamBroken) -> RequestError:
    status = 504 if error.timeout else 503 if error.refused else 502
    return upstream_error(status, f"upstream: {error}")


def _drop(chunks: Sequence[Chunk], skip: int) -> tuple[list[Chunk], int]:
    """The chunks without their first `skip` bytes, and what is left to skip."""
    kept: list[Chunk] = []
    for chunk in chunks:
        if skip >= len(chunk):
            skip -= len(chunk)
        else:
            kept.append(chunk[skip:])
            skip = 0
    return kept, skip


class Whole:
    """A response whose body is in memory, decoded, and counts until it is closed; without a body it breaks when it is read."""

    def __init__(self, response: UpstreamResponse, body: bytes | None, budget: Budget) -> None:
        self.status = response.status
        length = () if body is None else (("Content-Length", str(len(body))),)
        self.headers: HeaderList = (*without(response.headers, "content-encoding", "content-length"), *length)
        self.elsewhere = response.elsewhere
        self._held = None if body is None else HeldBody(body, budget)

    async def read(self) -> Sequence[Chunk]:
        """As the response's own, up to 64 KiB at once. Raises UpstreamBroken."""
        if self._held is None:
            raise UpstreamBroken("its body cannot be decoded")
        piece = await self._held.read()
        return [piece] if piece else []

    def close(self) -> None:
        """As the response's own."""
        if self._held is not None:
            self._held.close()


def _is_an_answer(ref: Reference, status: int, *, part: bool) -> bool:
    """Whether what was asked may have such an answer: of lists, what other statuses mean is the registry's affair."""
    if ref.kind in (Kind.MANIFEST, Kind.BLOB):
        return status == 200 or (status == 206 and part) or 400 <= status < 600
    return (200 <= status < 300 or 400 <= status < 600) and status not in (204, 205, 206)


def _bound[K, V](table: dict[K, V], limit: int = 10_000) -> None:
    """Makes room in a table of recent events by forgetting the oldest half."""
    if len(table) >= limit:
        for key in list(table)[: limit // 2]:
            del table[key]
