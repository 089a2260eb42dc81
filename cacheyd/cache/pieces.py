"""Fetches small pieces of a blob for clients that pull lazily: from upstream directly, not from a flight."""

import time
from collections.abc import Callable

from cacheyd.cache.answer import BYPASS, Answer
from cacheyd.cache.bodies import BodyBroken
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.flight import Flight
from cacheyd.cache.relaying import RelaySource, stream_answer
from cacheyd.cache.request import Request
from cacheyd.protocol.codings import codings_of
from cacheyd.protocol.errors import RequestError, upstream_error
from cacheyd.protocol.headers import content_length, header
from cacheyd.protocol.ranges import Part, RangeRequest, Unsatisfiable, parse_content_range
from cacheyd.upstream.port import UpstreamResponse

# The largest piece that is asked of upstream on its own, if the flight still has more than this to fetch (bytes).
FAR_AHEAD = 8 << 20
# The largest range open to the end that counts as a piece (bytes), and only if no other client wants the flight. Clients that
# fetch a layer in parallel ask for its chunks with such ranges, and end each request when its chunk is full: these clients
# should share the flight.
OPEN_END = 1 << 20
# How long the cache does not ask for ranges of a blob after upstream answered a range with the whole blob, or encoded
# (seconds); the most such blobs that are remembered. They are remembered one by one: any client can find a wrongly labelled
# blob, and this must not slow down other blobs of its registry.
WHOLE_ONLY, MAX_WHOLE_ONLY = 60.0, 1000
# How long a piece may keep its turn at its registry (seconds). It keeps the turn until its client has all bytes of the piece.
PIECE_TIME = 120.0


class Pieces:
    """Asks upstream for pieces, and remembers the blobs that upstream sends only whole."""

    def __init__(self, fetcher: Fetcher, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._fetcher = fetcher
        self._monotonic = monotonic
        self._whole_only: dict[tuple[str, str], float] = {}

    async def answer(self, request: Request, wanted: RangeRequest, size: int | None = None) -> Answer | None:
        """A small piece of a blob, as upstream sends it: no one can verify a piece before the whole blob is there.

        None if upstream does not give this piece, or has no turn for it. `size` is the blob's, if known (bytes). Raises
        Relayed, RequestError.
        """
        ref = request.ref
        blob = ref.registry, ref.digest or ""
        if self._monotonic() < self._whole_only.get(blob, 0.0):
            return None
        fields = [("Range", request.range or ""), *([("If-Range", request.if_range)] if request.if_range else [])]
        try:
            response = await self._fetcher.asking.open(ref, request.method, (*request.headers, *fields), piece=True)
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
                raise upstream_error(502, "upstream answered with another range than cacheyd asked for")
        elif response.status >= 400:
            return stream_answer(ref, response, BYPASS, content_length(response.headers))
        if part is None:
            # Upstream sends the whole blob, or encodes it: the flight fetches the whole blob once.
            response.close()
            self._note_whole_only(blob)
            return None
        whole = stream_answer(ref, response, BYPASS, part.length)
        return whole.with_source(PieceSource(response, part.length), part.length)

    def _note_whole_only(self, blob: tuple[str, str]) -> None:
        self._whole_only[blob] = self._monotonic() + WHOLE_ONLY
        while len(self._whole_only) > MAX_WHOLE_ONLY:
            del self._whole_only[next(iter(self._whole_only))]


class PieceSource(RelaySource):
    """A piece of an upstream's blob, passed on as it comes: at most `length` bytes, for at most PIECE_TIME seconds."""

    def __init__(self, response: UpstreamResponse, length: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(response)
        self._left = length
        self._clock = clock
        self._until = clock() + PIECE_TIME

    async def read(self) -> bytes:
        """The next bytes, as in the base class. Raises BodyBroken, also for too many bytes or after PIECE_TIME seconds."""
        if self._left and self._clock() > self._until:
            raise BodyBroken("the client takes too long for a piece")
        data = await super().read()
        self._left -= len(data)
        if self._left < 0:
            raise BodyBroken("upstream sent more bytes of a piece than it announced")
        return data


def is_far(missing: int) -> bool:
    """Whether `missing` bytes are too many for a client that wants little to wait for."""
    return missing > FAR_AHEAD


def is_little(wanted: RangeRequest) -> bool:
    """Whether little is wanted of a blob of any size: one small range or suffix, not several, nor a range open to the end."""
    if len(wanted.specs) != 1:
        return False
    first, last = wanted.specs[0]
    return last is not None and last - (first - 1 if first is not None else 0) <= FAR_AHEAD


def is_small_piece(wanted: RangeRequest, flight: Flight) -> bool:
    """Whether the client wants little of the flight's blob, and not the whole blob.

    A range open to the end counts only if no other client wants the flight, and the flight has not come to the range's start
    yet: else the client resumes an earlier download, or other requests of this client read the bytes before the range.
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
    """The part that a Content-Range names, if the client asked for this part, and it is not the whole blob; else None.

    `size` is the blob's, if known (bytes); else the Content-Range must state the size, or begin behind the first byte.
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
