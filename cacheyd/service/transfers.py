"""What is being sent to clients, and how long a cache that is asked to stop goes on with it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from cacheyd.cache.answer import Answer
from cacheyd.cache.request import Request
from cacheyd.protocol.reference import Kind
from cacheyd.service.pieces import Pieces

log = logging.getLogger(__name__)

# How often a cache that stops looks whether it is done (seconds): a counter on the hot path is cheaper than an event.
LOOK_EVERY = 0.05


class Transfers:
    """Counts the answers that are under way. `stopping` says that no more than these, and layers in pieces, are wanted."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.active = 0
        self.stopping = False
        self._listening = True
        self._cut_short = False
        self._pieces = Pieces(monotonic)

    def begin(self) -> None:
        """A request has come that takes its time; `end` follows."""
        self.active += 1

    def end(self) -> None:
        """Its response was sent, or broke off."""
        self.active -= 1

    def sending(self, answer: Answer) -> None:
        """The body of an answer begins to be sent; `sent` follows where it has a source."""
        self._pieces.begin(answer)

    def sent(self, answer: Answer) -> None:
        """It was sent, or its client has left."""
        self._pieces.end(answer)

    def refuses(self, request: Request) -> bool:
        """Whether the cache stops and this begins a layer in pieces: only with the first piece its client goes elsewhere."""
        if not self.stopping or request.range is None or request.ref.kind is not Kind.BLOB:
            return False
        return not self._pieces.goes_on(request.ref.digest)

    def closing(self, answer: Answer) -> bool:
        """Whether a connection ends with this answer."""
        return self.stopping and not (self._listening and self._pieces.keeps(answer))

    def cut_short(self) -> None:
        """Called while stopping: running transfers get no more time."""
        self._cut_short = self.stopping

    async def wind_down(self, grace: float, stop_listening: Callable[[], Awaitable[object]]) -> None:
        """Ends layers in pieces first, then takes no new connections, then ends the rest; within `grace` seconds in all."""
        self.stopping = True
        deadline = time.monotonic() + grace
        if layers := self._pieces.stop():
            log.info("stopping: still listening for %d layers that are read in pieces, %g s at most", layers, grace)
        while self._pieces.wanted and time.monotonic() < deadline and not self._cut_short:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_EVERY)
        self._listening = False
        await stop_listening()
        if self.active:
            log.info("stopping: %d transfers have %g s to end", self.active, grace)
        while self.active and time.monotonic() < deadline and not self._cut_short:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_EVERY)
