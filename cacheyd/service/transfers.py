"""The transfers to clients, and how long a stopping cache still serves them."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from cacheyd.cache.answer import Answer
from cacheyd.cache.request import Request
from cacheyd.protocol.reference import Kind
from cacheyd.service.pieces import Pieces

log = logging.getLogger(__name__)

# How often a stopping cache looks whether its transfers have ended (seconds). Requests only change a counter, which is cheaper
# for each hit than an event.
LOOK_EVERY = 0.05


class Transfers:
    """Counts the answers that are on their way to clients. After the stop began (`stopping`), cacheyd ends only these answers,
    and the layers that clients read in pieces.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.active = 0
        self.stopping = False
        self._listening = True
        self._cut_short = False
        self._pieces = Pieces(monotonic)

    def begin(self) -> None:
        """Counts a request that needs time. The caller must call `end` after it."""
        self.active += 1

    def end(self) -> None:
        """Notes that the response to such a request was sent, or broke off."""
        self.active -= 1

    def sending(self, answer: Answer) -> None:
        """Notes that cacheyd begins to send the body of an answer. If the answer has a source, the caller must call `sent`."""
        self._pieces.begin(answer)

    def sent(self, answer: Answer) -> None:
        """Notes that the body was sent, or that its client has left."""
        self._pieces.end(answer)

    def refuses(self, request: Request) -> bool:
        """Whether the cache stops and the request asks for a piece of a layer that no client read at the stop.

        The client goes to another mirror only if its first request for a layer is refused.
        """
        if not self.stopping or request.range is None or request.ref.kind is not Kind.BLOB:
            return False
        return not self._pieces.goes_on(request.ref.digest)

    def closing(self, answer: Answer) -> bool:
        """Whether the client's connection must end with this answer."""
        return self.stopping and not (self._listening and self._pieces.keeps(answer))

    def cut_short(self) -> None:
        """Ends the waiting in `wind_down` at once: running transfers get no more time. Does nothing before the stop."""
        self._cut_short = self.stopping

    async def wind_down(self, grace: float, stop_listening: Callable[[], Awaitable[object]]) -> None:
        """Waits for the layers that clients read in pieces, then stops listening, then waits for the other transfers.

        All this takes `grace` seconds at most.
        """
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
