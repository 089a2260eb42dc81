"""Small pieces out of the middle of a blob, as lazily pulling clients ask for them: from upstream, not from a flight."""

import time
from collections.abc import Callable

from cacheyd.cache.bodies import BodyBroken
from cacheyd.cache.relaying import RelaySource
from cacheyd.upstream.port import UpstreamResponse

# A piece has a turn at its registry until its client has it; for so long at the most (seconds).
PIECE_TIME = 120.0


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
