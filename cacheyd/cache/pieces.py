"""Small pieces out of the middle of a blob, as lazily pulling clients ask for them: from upstream, not from a flight."""

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

# A piece of up to so many bytes is asked of upstream on its own where a flight has more than that to go (bytes).
FAR_AHEAD = 8 << 20
# A range that is open to the end counts as a piece up to so many bytes, and where nobody else wants the flight: clients that
# fetch a layer in parallel ask for its chunks like that, drop each when it is full, and are to share the flight.
OPEN_END = 1 << 20
# A blob of which a range was answered with all of it, or in a coding, is not asked for in ranges for so long (seconds); so
# many are known. One by one: any client can find one that is labelled wrong, and is not to slow down others of its registry.
WHOLE_ONLY, MAX_WHOLE_ONLY = 60.0, 1000
# A piece has a turn at its registry until its client has it; for so long at the most (seconds).
PIECE_TIME = 120.0


class Pieces:
    """Asks upstream for pieces, and remembers which blobs it sends whole only."""

    def __init__(self, fetcher: Fetcher, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._fetcher = fetcher
        self._monotonic = monotonic
        self._whole_only: dict[tuple[str, str], float] = {}

    async def answer(self, request: Request, wanted: RangeRequest, size: int | None = None) -> Answer | None:
        """A small piece in the middle of a blob, as upstream has it: nothing can verify a piece before all is there.

        None where upstream gives no such piece, or has no turn for one. `size` is the blob's, where it is known. Raises
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
                raise upstream_error(502, "upstream answered another range than was asked for")
        elif response.status >= 400:
            return stream_answer(ref, response, BYPASS, content_length(response.headers))
        if part is None:
            # All of it, or in a coding: once is enough, and for that there is the flight.
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
    """A piece of an upstream's blob, passed on as it comes: no more of it than was said, and not for ever."""

    def __init__(self, response: UpstreamResponse, length: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(response)
        self._left = length
        self._clock = clock
        self._until = clock() + PIECE_TIME

    async def read(self) -> bytes:
        """As in the base class."""
        if self._left and self._clock() > self._until:
            raise BodyBroken("the client takes too long for a piece")
        data = await super().read()
        self._left -= len(data)
        if self._left < 0:
            raise BodyBroken("upstream sent more of a piece than it said")
        return data


def is_far(missing: int) -> bool:
    """Whether so many bytes are too many to be waited for by a client that wants little."""
    return missing > FAR_AHEAD


def is_little(wanted: RangeRequest) -> bool:
    """Whether little is wanted, however large the blob is: one range or suffix, not several, nor one open to the end."""
    if len(wanted.specs) != 1:
        return False
    first, last = wanted.specs[0]
    return last is not None and last - (first - 1 if first is not None else 0) <= FAR_AHEAD


def is_small_piece(wanted: RangeRequest, flight: Flight) -> bool:
    """Whether all that is wanted is little, and not all of it.

    A range that is open to the end counts where nobody else wants the flight, and the flight has not come to its start yet;
    else a client goes on with what it had before, or has others of its own that read what is before it.
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
