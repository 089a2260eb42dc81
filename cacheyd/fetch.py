"""Drives fetches: chunks to the sink thread, resume, verification, commit. Defines the `Upstream` that it needs."""

import asyncio
import hashlib
import logging
import random
import re
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from cacheyd.config import Settings
from cacheyd.errors import Blame, Code, Failure, HeaderList, RequestError, upstream_error
from cacheyd.flight import Asker, Flight, FlightError, FlightTable, NotKept, Relay, Relayed
from cacheyd.once import Once
from cacheyd.policy import is_memorable
from cacheyd.ranges import parse_content_range
from cacheyd.reference import OCTET_STREAM, Reference
from cacheyd.store.blobs import Partial, digest_of
from cacheyd.store.rows import TagVariant
from cacheyd.store.store import Store

log = logging.getLogger(__name__)

# The most that an answer held in memory may have: manifests (clients refuse more than 4 MiB) and error bodies (bytes).
MANIFEST_MAX = 8 << 20
RELAY_MAX = 1 << 20
# How long the body of an error is waited for (seconds).
RELAY_WAIT = 5.0
# A broken flight is answered 502 for so long, so that clients resume at the upstream and not here (seconds).
FAILURE_PAUSE = 15.0
MISMATCH_PAUSE = 60.0
RATE_LIMIT_DEFAULT, RATE_LIMIT_MAX = 1.0, 300.0
# Progress of so many bytes makes the next break a first one again.
PROGRESS = 64 << 10
_HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
        "trailers", "transfer-encoding", "upgrade",
    }
)  # fmt: skip


type Chunk = bytes | memoryview


class UpstreamBroken(Exception):
    """The upstream gave no response, or broke off in one.

    `timeout` tells a deadline from the rest, `refused` that it was not even asked, and `elsewhere` that it was not the
    registry's own host that failed but one that it redirected to.
    """

    def __init__(self, message: str, *, timeout: bool = False, refused: bool = False) -> None:
        super().__init__(message)
        self.timeout = timeout
        self.refused = refused
        self.elsewhere = False


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """What is asked of an upstream. `headers` hold Accept, Authorization, User-Agent and Range only.

    `as_client` says that the client's own login counts, whatever the registry's settings say.
    """

    ref: Reference
    method: str
    headers: HeaderList
    as_client: bool = False


class UpstreamResponse(Protocol):
    """A response whose head has arrived, redirects followed."""

    status: int
    headers: HeaderList

    async def read(self) -> Sequence[Chunk]:
        """What has come of the body since, at least one byte; empty at its end. Raises UpstreamBroken."""

    def close(self) -> None:
        """No more of it is wanted; safe to call at any time."""


class Transport(Protocol):
    """HTTP to upstreams, redirects followed; `registry` says whose settings hold for TLS, proxy and addresses."""

    async def fetch(self, registry: str, method: str, url: str, headers: HeaderList) -> UpstreamResponse:
        """Sends the request and waits for the head of the response. Raises UpstreamBroken."""


class Upstream(Protocol):
    """Origin registries, over whatever transport."""

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """The head of the registry's response. Raises UpstreamBroken, and RequestError for what is not to be asked."""


@dataclass(frozen=True, slots=True)
class ManifestContent:
    """A verified manifest. `stored` says whether it is on disk."""

    digest: str
    media_type: str
    data: bytes
    stored: bool


def header(headers: HeaderList, name: str) -> str | None:
    """The first value of a header, None if it is not there."""
    return next((value for key, value in headers if key.lower() == name), None)


def without(headers: HeaderList, *names: str) -> HeaderList:
    """All but the headers of these names (in lower case)."""
    return tuple(item for item in headers if item[0].lower() not in names)


def end_to_end(headers: HeaderList) -> HeaderList:
    """Without hop-by-hop headers and those that Connection names (RFC 9110 section 7.6.1)."""
    named = {token.strip().lower() for key, value in headers if key.lower() == "connection" for token in value.split(",")}
    return without(headers, *_HOP_BY_HOP, *named)


def credentials_of(headers: HeaderList) -> bytes:
    """What tells two clients' credentials apart without keeping them."""
    return hashlib.blake2b((header(headers, "authorization") or "").encode(), digest_size=16).digest()


def asker(ref: Reference, headers: HeaderList) -> Asker:
    """Who asks for something."""
    return Asker(ref.registry, ref.repository, credentials_of(headers))


def content_length(headers: HeaderList) -> int | None:
    """Content-Length in bytes, None if it is missing or no number."""
    value = header(headers, "content-length") or ""
    return int(value) if re.fullmatch(r"\d{1,18}", value) else None


def retry_after(headers: HeaderList) -> float:
    """Seconds of a Retry-After in seconds, bounded; one second where there is none (or a date)."""
    value = (header(headers, "retry-after") or "").strip()
    return min(float(value), RATE_LIMIT_MAX) if re.fullmatch(r"\d{1,9}", value) else RATE_LIMIT_DEFAULT


async def read_all(response: UpstreamResponse, limit: int) -> bytes | None:
    """The whole body; None if it has more than `limit` bytes. Raises UpstreamBroken."""
    data = bytearray()
    while chunks := await response.read():
        for chunk in chunks:
            data += chunk
        if len(data) > limit:
            return None
    return bytes(data)


class Fetcher:
    """Fetches objects, each once however many clients wait."""

    def __init__(
        self,
        store: Store,
        upstream: Upstream,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        on_verify_failure: Callable[[str], None] = lambda registry: None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.flights = FlightTable()
        self._upstream = upstream
        self._clock = clock
        self._monotonic = monotonic
        self._on_verify_failure = on_verify_failure
        self._manifests: Once[tuple[str, ...], Asker, ManifestContent] = Once()
        self._failed: dict[tuple[str, str], tuple[float, RequestError]] = {}
        self._limited: dict[tuple[str, bytes], tuple[float, Relay]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(settings.max_flights)

    # What every request goes through

    async def open(self, ref: Reference, method: str, headers: HeaderList, *, as_client: bool = False) -> UpstreamResponse:
        """Asks upstream; raises Relayed for a rate limit that is still in force, RequestError 502, 503 or 504 if it fails."""
        limited = (ref.registry, credentials_of(headers))
        if known := self._limited.get(limited):
            if self._monotonic() < known[0]:
                raise Relayed(known[1])
            del self._limited[limited]
        try:
            response = await self._upstream.open(UpstreamRequest(ref, method, headers, as_client))
        except UpstreamBroken as error:
            raise _as_request_error(error) from error
        if not (200 <= response.status < 300 or 400 <= response.status < 600):
            # Nothing that was asked has such an answer, and clients stumble over a 304 or a redirect without a target.
            response.close()
            raise upstream_error(502, f"upstream answered {response.status}")
        if response.status == 429:
            relay = replace(await self.relay(response), from_head=method == "HEAD")
            _bound(self._limited)
            self._limited[limited] = (self._monotonic() + retry_after(response.headers), relay)
            raise Relayed(relay)
        return response

    async def relay(self, response: UpstreamResponse) -> Relay:
        """A response as it is, its body in memory; a body that breaks or is too large is left out."""
        try:
            async with asyncio.timeout(RELAY_WAIT):
                body = await read_all(response, RELAY_MAX)
        except (UpstreamBroken, TimeoutError):
            body = None
        finally:
            response.close()
        return Relay(response.status, end_to_end(response.headers), body or b"")

    def recent_failure(self, registry: str, digest: str) -> RequestError | None:
        """Why an object could not be fetched just now, while it makes no sense to try again."""
        known = self._failed.get((registry, digest))
        if known and self._monotonic() < known[0]:
            return known[1]
        self._failed.pop((registry, digest), None)
        return None

    def in_flight(self) -> set[str]:
        """The digests of the objects that are on their way in."""
        return {flight.digest for flight in self.flights}

    def incoming(self) -> int:
        """How many bytes are still to be written by the flights under way."""
        return sum(max(0, (flight.size or 0) - flight.received) for flight in self.flights)

    # Blobs

    def flight(self, ref: Reference, headers: HeaderList) -> Flight:
        """The flight of a blob: the one that is under way, or a new one started with these headers."""
        assert ref.digest
        flight = self.flights.get(ref.registry, ref.digest)
        if flight is None:
            flight = Flight(ref.digest, asker(ref, headers))
            self.flights.add(flight)
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
            await self._take_slot()
            try:
                await self._fly(flight, ref, headers)
            finally:
                self._slots.release()
        except (Relayed, RequestError, NotKept) as error:
            if flight.streaming and isinstance(error, RequestError):
                pause = MISMATCH_PAUSE if error.failure.code is Code.DIGEST_INVALID else FAILURE_PAUSE
                _bound(self._failed)
                self._failed[flight.key] = (self._monotonic() + pause, error)
            self._end(flight, error)
        except asyncio.CancelledError:
            # The descriptor stays open: a thread may still be writing to it.
            flight.fail(upstream_error(503, "cacheyd is stopping"))
            raise
        except Exception as error:
            log.exception("fetching %s failed", flight.digest)
            self._end(flight, upstream_error(502, f"fetching failed: {type(error).__name__}"))
        finally:
            self.flights.remove(flight)
            flight.end()

    async def _take_slot(self) -> None:
        try:
            async with asyncio.timeout(self.settings.head_timeout):
                await self._slots.acquire()
        except TimeoutError:
            raise upstream_error(503, "too many objects are being fetched") from None

    def _end(self, flight: Flight, error: FlightError) -> None:
        self.flights.remove(flight)
        if flight.verified:
            return
        if flight.partial is not None:
            # What could not be kept is not to fill the disk either.
            self.store.release(flight.partial, keep=not isinstance(error, NotKept))
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
        if flight.partial.size and flight.partial.verified():
            await self._land(flight, flight.partial, ref)
            return
        attempt = 0
        while not flight.over:
            before = flight.received
            try:
                await self._attempt(flight, flight.partial, ref, headers)
            except _StartOver:
                continue
            except UpstreamBroken as error:
                if flight.partial.size and flight.partial.verified():
                    # All is there; only the end of the message was missing.
                    await self._land(flight, flight.partial, ref)
                    return
                attempt = 1 if flight.received - before >= PROGRESS else attempt + 1
                if not flight.streaming or attempt > self.settings.retries:
                    raise _as_request_error(error) from error
                log.info("fetch of %s broke at byte %d (%s); resuming", flight.digest, flight.received, error)
                await asyncio.sleep(min(5.0, 0.1 * 2**attempt) * random.uniform(0.5, 1.0))  # noqa: S311

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
                raise UpstreamBroken(str(error)) from error
            raise
        try:
            skip = await self._begin(flight, partial, ref, response)
            await self._receive(flight, partial, ref, response, skip)
        finally:
            response.close()
        await self._finish(flight, partial, ref)

    async def _begin(self, flight: Flight, partial: Partial, ref: Reference, response: UpstreamResponse) -> int:
        """Checks the head of a response and tells the clients; how many bytes of the body are there already."""
        length = content_length(response.headers)
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
            if not await self.store.make_room(size - partial.size):
                raise NotKept
            flight.size = size
        if not flight.streaming:
            flight.streaming = True
            flight.notify()
        return skip

    async def _restart(self, flight: Flight, partial: Partial, ref: Reference, why: str) -> Exception:
        """What is in the partial file does not continue: starts over if no client has any of it, else gives up."""
        await self.store.discard(partial)
        if flight.streaming:
            return upstream_error(502, why, digest=flight.digest)
        try:
            flight.partial = await self.store.open_partial(flight.digest, ref.registry)
        except OSError as error:
            self.store.report_write_error(error)
            return NotKept()
        flight.received = 0
        return _StartOver()

    async def _receive(self, flight: Flight, partial: Partial, ref: Reference, response: UpstreamResponse, skip: int) -> None:
        while True:
            try:
                async with asyncio.timeout(self.settings.progress_timeout):
                    chunks = await response.read()
            except TimeoutError:
                raise UpstreamBroken("no progress", timeout=True) from None
            if not chunks:
                return
            if skip:
                chunks, skip = _drop(chunks, skip)
            if chunks:
                await self._check_length(flight, partial, ref, sum(map(len, chunks)))
                try:
                    start, flight.received = flight.received, await self.store.append(partial, chunks)
                except OSError as error:
                    self.store.report_write_error(error)
                    raise NotKept from error
                flight.remember(start, chunks)
                flight.notify()

    async def _check_length(self, flight: Flight, partial: Partial, ref: Reference, more: int) -> None:
        """No more is written than was announced, nor more than there is room for."""
        if flight.size is None:
            if not await self.store.make_room(more):
                raise NotKept
        elif flight.received + more > flight.size:
            raise await self._mismatch(partial, ref, "upstream sent more bytes than it said")

    async def _finish(self, flight: Flight, partial: Partial, ref: Reference) -> None:
        if partial.verified():
            await self._land(flight, partial, ref)
            return
        if flight.size is not None and flight.received < flight.size:
            raise UpstreamBroken("the body ended early")
        raise await self._mismatch(partial, ref, "upstream sent bytes that do not have this digest")

    async def _mismatch(self, partial: Partial, ref: Reference, message: str) -> RequestError:
        """Wrong bytes: nothing of them is kept."""
        self._on_verify_failure(ref.registry)
        await self.store.discard(partial)
        return RequestError(Failure(502, Code.DIGEST_INVALID, message, Blame.UPSTREAM, {"digest": partial.digest}))

    async def _land(self, flight: Flight, partial: Partial, ref: Reference) -> None:
        """Verified: the clients get the rest at once, then the disk is waited for."""
        flight.size = flight.received  # Whatever upstream said.
        flight.streaming = flight.verified = True
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
        key = (ref.registry, ref.repository, ref.reference, *(() if ref.digest else sorted(asked)))
        mine = asker(ref, headers)
        while True:
            theirs, content = self._manifests.join(key, mine, lambda: self._manifest(ref, headers, asked))
            try:
                return await content
            except (Relayed, RequestError) as error:
                if mine.shares(theirs, error):
                    raise
                await asyncio.sleep(0)

    async def _manifest(self, ref: Reference, headers: HeaderList, asked: frozenset[str]) -> ManifestContent:
        response = await self.open(ref, "GET", headers)
        if response.status != 200:
            relay = await self.relay(response)
            if relay.status < 400:
                raise upstream_error(502, f"upstream answered {relay.status} to a GET of a manifest")
            raise Relayed(relay)
        try:
            async with asyncio.timeout(self.settings.progress_timeout):
                data = await read_all(response, MANIFEST_MAX)
        except UpstreamBroken as error:
            raise _as_request_error(error) from error
        except TimeoutError:
            raise upstream_error(504, "upstream stopped in the middle of a manifest") from None
        finally:
            response.close()
        if data is not None and len(data) != (content_length(response.headers) or len(data)):
            raise upstream_error(502, "upstream's manifest ended early")
        if data is None:
            raise upstream_error(502, f"upstream's manifest has more than {MANIFEST_MAX} bytes")
        content = await self._keep_manifest(ref, response.headers, data)
        if ref.digest is None and is_memorable(asked):
            # Here and not where it is waited for: who comes in between must find it.
            variant = TagVariant(asked, content.digest, content.media_type, len(content.data), self._clock())
            self.store.set_tag(ref.registry, ref.repository, ref.reference, variant)
        return content

    async def _keep_manifest(self, ref: Reference, headers: HeaderList, data: bytes) -> ManifestContent:
        stated = header(headers, "docker-content-digest")
        expected = ref.digest or stated or digest_of(data)
        algorithm = expected.partition(":")[0]
        if algorithm not in ("sha256", "sha512"):
            expected, algorithm = digest_of(data), "sha256"
        if digest_of(data, algorithm) != expected and (header(headers, "content-encoding") or "").lower() == "gzip":
            data = _gunzip(data)
        if digest_of(data, algorithm) != expected:
            self._on_verify_failure(ref.registry)
            message = "upstream sent a manifest that does not have its digest"
            raise RequestError(Failure(502, Code.DIGEST_INVALID, message, Blame.UPSTREAM, {"digest": expected}))
        media_type = (header(headers, "content-type") or OCTET_STREAM).partition(";")[0].strip()
        if media_type.startswith("text/"):
            raise upstream_error(502, f"upstream answered {media_type} where a manifest was asked for")
        stored = None
        if self.store.writable and await self.store.make_room(len(data)):
            stored = await self.store.put(expected, data, media_type, within=ref.name)
        return ManifestContent(expected, media_type, data, stored is not None)


class _StartOver(Exception):
    """The fetch begins anew, from the first byte."""


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


def _gunzip(data: bytes) -> bytes:
    try:
        decoder = zlib.decompressobj(wbits=31)
        return decoder.decompress(data, MANIFEST_MAX)
    except zlib.error:
        return data


def _bound[K, V](table: dict[K, V], limit: int = 10_000) -> None:
    """Makes room in a table of recent events by forgetting the oldest half."""
    if len(table) >= limit:
        for key in list(table)[: limit // 2]:
            del table[key]
