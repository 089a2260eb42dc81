"""Blobs that are not stored: a client joins the flight that fetches the blob, or gets a small piece of it from upstream."""

import asyncio

from cacheyd.cache.answer import HIT, MISS, Answer, object_headers, unsatisfiable
from cacheyd.cache.boarding import Boarding
from cacheyd.cache.bypass import Bypass
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.flight import Flight, NotKept
from cacheyd.cache.flight_reader import FlightReader
from cacheyd.cache.pieces import Pieces, is_far, is_little, is_small_piece
from cacheyd.cache.request import Request
from cacheyd.protocol.media_types import OCTET_STREAM
from cacheyd.protocol.ranges import Part, RangeRequest, Unsatisfiable
from cacheyd.store.store import Store

# How long a request for a small piece waits for the end of a flight (seconds).
PIECE_WAIT = 0.5
# How long a request for a small piece waits for the head of a flight (seconds).
PIECE_HEAD = 0.1


class Blobs:
    """Answers requests for blobs that are not stored."""

    def __init__(self, store: Store, fetcher: Fetcher, boarding: Boarding, pieces: Pieces, bypass: Bypass) -> None:
        self._store = store
        self._fetcher = fetcher
        self._boarding = boarding
        self._pieces = pieces
        self._bypass = bypass

    async def answer(self, request: Request, *, permitted: bool) -> Answer:
        """The answer for a blob that `Hits` could not find for this client. Raises Relayed, RequestError.

        `permitted` says that upstream just allowed this very request.
        """
        ref = request.ref
        assert ref.digest
        stored = self._store.objects.find(ref.digest)
        if stored is not None and stored.media_type:
            # The object is stored as a manifest, and must not become a blob for all clients.
            return await self._bypass.answer(request, MISS)
        running = self._fetcher.flights.get(ref.registry, ref.digest)
        if request.head and (running is None or running.size is None):
            return await self._bypass.answer(request, MISS)
        wanted = request.wanted
        if error := self._fetcher.failures.resume_refused(ref.registry, ref.digest, (wanted.start if wanted else 0) or 0):
            raise error
        # A range from the first byte on may be the whole blob, so this request waits for the blob's size.
        little = wanted is not None and is_little(wanted) and wanted.start != 0
        flight = None
        try:
            async with asyncio.timeout(PIECE_HEAD if little else None):
                flight = await self._boarding.board(request, permitted=permitted)
            elsewhere = wanted is not None and await self._is_elsewhere(wanted, flight)
        except NotKept:
            return await self._bypass.answer(request)
        except TimeoutError:
            # The flight goes on; a client that wants little, as lazily pulling clients do, does not wait for its turn.
            elsewhere = True
        size = flight.size if flight is not None else None
        if wanted and elsewhere and (answer := await self._pieces.answer(request, wanted, size)):
            return answer
        try:
            return _join(request, flight or await self._boarding.board(request, permitted=permitted))
        except NotKept:
            return await self._bypass.answer(request)

    async def _is_elsewhere(self, wanted: RangeRequest, flight: Flight) -> bool:
        """Whether a small piece is wanted (lazy pulling), and the flight will not have it verified within PIECE_WAIT."""
        if flight.verified or flight.sealed or not is_small_piece(wanted, flight):
            return False
        with flight.wanted():
            # If the flight ends soon, waiting is better: upstream need not send the same bytes twice.
            if not is_far((flight.size or 0) - flight.received):
                await flight.settled(PIECE_WAIT)
        return not flight.verified


def _join(request: Request, flight: Flight) -> Answer:
    """The answer that reads a flight while the flight grows."""
    ref, size = request.ref, flight.size
    result = HIT if flight.verified and flight.stored is not None else MISS
    headers = object_headers(ref, flight.digest, OCTET_STREAM, result)
    if size is None:
        return Answer(200, headers, source=FlightReader(flight, 0, None), length=None, result=result, ref=ref)
    try:
        parts = request.parts(size)
    except Unsatisfiable:
        return unsatisfiable(ref, size, headers, result)
    # Several parts of a blob that is still on its way: the whole blob is a correct answer, too (RFC 9110 section 14.2).
    part, status = (parts[0], 206) if len(parts) == 1 else (Part(0, size), 200)
    if status == 206:
        headers = (*headers, ("Content-Range", part.content_range(size)))
    if request.head:
        return Answer(status, headers, length=part.length, result=result, ref=ref)
    reader = FlightReader(flight, part.start, part.end)
    return Answer(status, headers, source=reader, length=part.length, result=result, ref=ref)
