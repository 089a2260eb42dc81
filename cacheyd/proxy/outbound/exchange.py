"""One request to an upstream and its response, between the flow's layers and the reader of the response."""

import asyncio
from collections.abc import Callable

from mitmproxy import http

from cacheyd.proxy.outbound.body_buffer import BUFFER, BodyBuffer
from cacheyd.resources.budget import Budget
from cacheyd.upstream.port import Chunk, UpstreamBroken

# A body in more than MANY_PIECES with fewer than FEW_BYTES on average counts as an attack on the CPU: the pieces of an honest
# body have thousands of bytes.
MANY_PIECES, FEW_BYTES = 5_000, 32
# The longest error message that is passed on (characters): the message can quote a peer.
MAX_MESSAGE = 300


class Exchange:
    """The response as it comes: the layers feed it, `FetchResponse` reads it. Its bytes in memory count in the budget."""

    def __init__(self, budget: Budget | None = None) -> None:
        self._body = BodyBuffer(budget or Budget(BUFFER * 32))
        self.response: http.Response | None = None
        self.error: str | None = None
        self._hopeless = False
        self._cut = False
        self.complete = False
        # Called when the reader begins to wait for more of the body.
        self._on_hungry: Callable[[], None] | None = None
        self.hungry = False
        # The number of pieces that came through the layers, and their bytes.
        self.pieces = 0
        self.piece_bytes = 0
        self._over = False
        self._changed = asyncio.Event()

    @property
    def budget(self) -> Budget:
        """The budget that counts the bytes of this response in memory."""
        return self._body.budget

    def head(self, response: http.Response) -> None:
        """Takes the head of the response."""
        self.response = response
        self._changed.set()

    def data(self, data: Chunk) -> None:
        """Takes a part of the body."""
        if self._over or self._hopeless:
            return
        self._body.add(data)
        self._changed.set()

    def piece(self, data: bytes) -> None:
        """As `data`, for a piece that comes through the layers. Fails a body in tiny pieces: each piece costs CPU time."""
        self.pieces += 1
        self.piece_bytes += len(data)
        if self.pieces > MANY_PIECES and self.piece_bytes < FEW_BYTES * self.pieces:
            self.fail("the body comes in absurdly small pieces", hopeless=True)
        self.data(data)

    def tell_when_hungry(self, wake: Callable[[], None] | None) -> None:
        """From now on, calls `wake` each time the reader begins to wait for more of the body. None ends this."""
        self._on_hungry = wake

    def end(self) -> None:
        """Notes that the body is complete, as far as the layers can tell."""
        self.complete = not self._cut
        self._changed.set()

    def fail(self, message: str, *, hopeless: bool = False) -> None:
        """Notes that no more bytes come. `hopeless` says that another request would not help."""
        if not self.complete and self.error is None:
            # The message is cut, so that a peer's text of any length is not passed on.
            self.error = message[:MAX_MESSAGE]
            self._hopeless = hopeless
            if hopeless:
                # The bytes that came are of no use.
                self._body.chunks.clear()
        self._body.open()
        self._changed.set()

    def cut(self, message: str) -> None:
        """Fails a body whose end only the connection marks, after the connection did not end in order."""
        if not self.complete:
            self._cut = True
            self.fail(message)

    def over(self) -> None:
        """Drops the body: nobody reads this response any more."""
        self._over = True
        self._body.drop()

    async def room(self) -> None:
        """Waits until there is room to read more of the body from the network."""
        await self._body.room()

    async def wait_head(self) -> http.Response:
        """Waits for the head of the response. Raises UpstreamBroken."""
        while self.response is None:
            if self.error is not None:
                raise self._broken(self.error)
            self._changed.clear()
            await self._changed.wait()
        return self.response

    def _broken(self, message: str) -> UpstreamBroken:
        return UpstreamBroken(message, hopeless=self._hopeless)

    async def read(self) -> list[Chunk]:
        """Waits for the next pieces of the body; gives all that came since the last read, empty at the end.

        Raises UpstreamBroken.
        """
        self._body.written()
        while not self._body.chunks:
            if self.complete and not self._hopeless:
                return []
            if self.error is not None:
                raise self._broken(self.error)
            self._changed.clear()
            self.hungry = True
            if self._on_hungry is not None:
                self._on_hungry()
            await self._changed.wait()
            self.hungry = False
        return self._body.take()


def without_end[M: http.Message](message: M) -> M:
    """The message, with its trailers and the time of its end set to None.

    The caller makes the message with values for both. If the caller gave None to mitmproxy's constructor, mitmproxy's check
    would leave an exception that refers to itself, and so to the frames of all callers. Then objects of these frames, for
    example the descriptor of a flight's file, would stay open until the garbage collector runs.
    """
    # mitmproxy has no other way to set these two to None.
    message.data.trailers = None
    message.data.timestamp_end = None  # As above.
    return message
