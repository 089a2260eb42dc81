"""Fetches one blob: each attempt goes on where the last attempt broke, until the blob's digest is verified."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from cacheyd.cache.asking import Asking
from cacheyd.cache.decoded import WRONG
from cacheyd.cache.flight import Flight, NotKept
from cacheyd.cache.incoming import Incoming, StartOver
from cacheyd.cache.unpacking import Unpacking
from cacheyd.protocol.codings import codings_of
from cacheyd.protocol.errors import RequestError, upstream_error
from cacheyd.protocol.headers import HeaderList, content_length, header
from cacheyd.protocol.ranges import parse_content_range
from cacheyd.protocol.reference import Reference
from cacheyd.resources.pace import Pace
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.upstream.port import Chunk, Relayed, UpstreamBroken, UpstreamResponse, as_request_error

log = logging.getLogger(__name__)

# The progress after which the next break counts as the first again (bytes).
PROGRESS = 64 << 10


class BlobFetch:
    """Fetches the blob of one flight, with the headers of the client that started it."""

    def __init__(
        self,
        flight: Flight,
        ref: Reference,
        headers: HeaderList,
        incoming: Incoming,
        *,
        asking: Asking,
        unpacking: Unpacking,
        settings: Settings | Live,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.flight = flight
        self.ref = ref
        self.incoming = incoming
        self._headers = headers
        self._asking = asking
        self._unpacking = unpacking
        self._live = Live.of(settings)
        self._monotonic = monotonic
        # The codings of the body that is coming.
        self._codings: tuple[str, ...] = ()

    async def run(self) -> None:
        """Brings the blob in. Raises Relayed, RequestError, NotKept."""
        flight, body, incoming = self.flight, self.flight.body, self.incoming
        await incoming.open()
        # If the registry verifies logins, a complete file may be from another repository: upstream is asked for the rest.
        trusted = self._live.settings.registry(self.ref.registry).access == "open"
        if trusted and incoming.is_whole():
            await incoming.land()
            return
        flight.speed.resume(body.received)
        incoming.claim.begin()
        attempt = 0
        while not flight.over:
            self._check_wanted()
            before = body.received
            try:
                await self._attempt()
            except StartOver:
                # One new start is always allowed: the bytes in the file may be out of date.
                attempt += 1
                if attempt > max(1, self._live.settings.retries):
                    raise upstream_error(502, "upstream sends another blob at each attempt") from None
                await asyncio.sleep(_pause(attempt))
            except UpstreamBroken as error:
                if incoming.is_whole():
                    # All bytes are there; only the end of the message was missing.
                    await incoming.land()
                    return
                # Nothing is left of an encoded body for the next attempt.
                attempt = 1 if body.received - before >= PROGRESS and not body.sealed else attempt + 1
                await self._prepare_next(attempt, error)

    async def _prepare_next(self, attempt: int, error: UpstreamBroken) -> None:
        """Waits for the next attempt. If there must be no other attempt, raises the error that ends the flight."""
        flight = self.flight
        given_up = attempt > self._live.settings.retries or error.hopeless or (error.timeout and not flight.demand.audience)
        if not flight.streaming or given_up or flight.cut.error is not None:
            raise flight.cut.error or as_request_error(error) from error
        if flight.body.sealed and isinstance(restart := await self._restart(""), NotKept):
            raise restart from error
        log.info("fetch of %s broke at byte %d (%s); resuming", flight.digest, flight.body.received, error)
        await asyncio.sleep(max(_pause(attempt), (error.again_at or 0.0) - self._monotonic()))

    def _check_wanted(self) -> None:
        """Raises RequestError if the flight was cut off, or if no client has waited for it for too long."""
        if self.flight.cut.error is not None:
            raise self.flight.cut.error
        self._check_demand()

    def _check_demand(self) -> None:
        """Raises RequestError if no client has waited for the flight for `finish_abandoned` seconds."""
        if self.flight.demand.is_over(self._monotonic(), self._live.settings.finish_abandoned):
            raise upstream_error(503, "no client waits for this object any more")

    async def _attempt(self) -> None:
        flight, headers = self.flight, self._headers
        if self.incoming.size:
            headers = (*headers, ("Range", f"bytes={self.incoming.size}-"))
        try:
            response = await self._asking.open(self.ref, "GET", headers)
        except RequestError as error:
            if flight.streaming:
                raise UpstreamBroken(error.failure.message) from error
            raise
        except Relayed as error:
            if flight.streaming:
                raise UpstreamBroken(str(error), again_at=error.again_at) from error
            raise
        with flight.cut.closing(response):
            skip = await self._begin(response)
            await self._receive(response, skip)
        await self._finish()

    async def _begin(self, response: UpstreamResponse) -> int:
        """Checks the head of a response and tells the clients. Gives how many bytes of its body are already in the file."""
        flight, body, there = self.flight, self.flight.body, self.incoming.size
        await self._seal(response)
        length = None if self._codings else content_length(response.headers)
        skip, size = 0, length
        if response.status == 206 and there:
            part = parse_content_range(header(response.headers, "content-range"))
            if part is None or part[0] != there:
                raise await self._restart("upstream answered with another range than cacheyd asked for")
            size = part[2] if part[2] is not None else (None if length is None else there + length)
        elif response.status == 200:
            skip = there
        elif response.status == 416 and there:
            raise await self._restart("upstream's blob is shorter than what this cache has of it")
        else:
            await self._refuse(response)
        if body.size is not None and size is not None and size != body.size:
            raise await self._restart("upstream changed the size of a blob")
        if size is not None and body.size is None:
            if not await self.incoming.claim.accept(size - there):
                raise NotKept
            body.measured(size)
        flight.answered()
        return skip

    async def _refuse(self, response: UpstreamResponse) -> NoReturn:
        """Raises the error that an answer other than the blob means."""
        relay = await self._asking.relay(response)
        if self.flight.streaming:
            raise UpstreamBroken(f"upstream answered {relay.status}")
        if relay.status < 400:
            raise upstream_error(502, f"upstream answered {relay.status} to a GET of a blob")
        raise Relayed(relay)

    async def _seal(self, response: UpstreamResponse) -> None:
        """Seals a body that comes encoded: its length differs from the object's, and so do its bytes at each place.

        Some bodies are not encoded although their headers say so: object stores do this for compressed layers. Only the digest
        tells, at the end. Until then no client gets any byte of the body, and no attempt resumes it.
        """
        self._codings = codings_of(response.headers) if response.status in (200, 206) else ()
        if not self._codings:
            return
        if self.incoming.size or (self.flight.streaming and not self.flight.body.sealed):
            raise await self._restart("upstream continues a body that was not encoded with encoded bytes")
        if response.status != 200:
            raise upstream_error(502, "upstream answered with a part of an encoded body")
        self.flight.body.seal()

    async def _restart(self, why: str) -> Exception:
        """Drops a file that cannot be continued; begins again if no client has any byte of it. Gives the error to raise."""
        error = await self.incoming.restart(why)
        if isinstance(error, StartOver):
            self._codings = ()
        return error

    async def _receive(self, response: UpstreamResponse, skip: int) -> None:
        settings = self._live.settings
        pace = Pace(settings.min_rate, settings.progress_timeout)
        while True:
            began = pace.begin()
            try:
                async with asyncio.timeout(self._live.settings.progress_timeout):
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
                await self.incoming.keep(chunks)
            self._check_demand()

    async def _finish(self) -> None:
        if self.incoming.partial.verified():
            await self.incoming.land()
            return
        if self._codings:
            codings, self._codings = self._codings, ()
            await self._unpacking.unpack(self.incoming, self.ref.registry, codings, self._check_wanted)
            await self._finish()
            return
        if self.flight.size is not None and self.flight.received < self.flight.size:
            raise UpstreamBroken("the body ended early")
        raise await self.incoming.mismatch(WRONG)


def _pause(attempt: int) -> float:
    return min(5.0, 0.1 * float(2**attempt)) * random.uniform(0.5, 1.0)  # noqa: S311


def _drop(chunks: Sequence[Chunk], skip: int) -> tuple[list[Chunk], int]:
    """The chunks without their first `skip` bytes, and how many bytes are left to skip."""
    kept: list[Chunk] = []
    for chunk in chunks:
        if skip >= len(chunk):
            skip -= len(chunk)
        else:
            kept.append(chunk[skip:])
            skip = 0
    return kept, skip
