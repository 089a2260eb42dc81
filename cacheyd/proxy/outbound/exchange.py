"""One request to an upstream and its response, between the flow's layers and whoever reads the response."""

import asyncio
from collections.abc import Callable

from mitmproxy import http

from cacheyd.proxy.outbound.body_buffer import BUFFER, BodyBuffer
from cacheyd.resources.budget import Budget
from cacheyd.upstream.port import Chunk, UpstreamBroken

# A body in more pieces than this with fewer bytes than that on average is an attack on the CPU: honest ones have thousands.
MANY_PIECES, FEW_BYTES = 5_000, 32
# What is passed on of a message that may quote a peer (characters).
MAX_MESSAGE = 300


class Exchange:
    """The response as it comes: fed by layers, read by `fetch`. What it holds counts against the budget."""

    def __init__(self, budget: Budget | None = None) -> None:
        self._body = BodyBuffer(budget or Budget(BUFFER * 32))
        self.response: http.Response | None = None
        self.error: str | None = None
        self._hopeless = False
        self._cut = False
        self.complete = False
        # Called when somebody begins to wait for more of the body.
        self._on_hungry: Callable[[], None] | None = None
        self.hungry = False
        # How many pieces came through the layers, and their bytes.
        self.pieces = 0
        self.piece_bytes = 0
        self._over = False
        self._changed = asyncio.Event()

    @property
    def budget(self) -> Budget:
        """What counts the bytes that it holds."""
        return self._body.budget

    def head(self, response: http.Response) -> None:
        """The head has arrived."""
        self.response = response
        self._changed.set()

    def data(self, data: Chunk) -> None:
        """A part of the body has arrived."""
        if self._over or self._hopeless:
            return
        self._body.add(data)
        self._changed.set()

    def piece(self, data: bytes) -> None:
        """As `data`, for what comes through the layers: each piece costs their time, however small it is."""
        self.pieces += 1
        self.piece_bytes += len(data)
        if self.pieces > MANY_PIECES and self.piece_bytes < FEW_BYTES * self.pieces:
            self.fail("the body comes in absurdly small pieces", hopeless=True)
        self.data(data)

    def tell_when_hungry(self, wake: Callable[[], None] | None) -> None:
        """`wake` is called whenever somebody begins to wait for more of the body; None ends that."""
        self._on_hungry = wake

    def end(self) -> None:
        """The body is complete, as far as the layers can see."""
        self.complete = not self._cut
        self._changed.set()

    def fail(self, message: str, *, hopeless: bool = False) -> None:
        """Nothing more will come; `hopeless`: nor would it with another request."""
        if not self.complete and self.error is None:
            # With it, nothing of the peer's in full length is passed on.
            self.error = message[:MAX_MESSAGE]
            self._hopeless = hopeless
            if hopeless:
                # What came of it is of no use.
                self._body.chunks.clear()
        self._body.open()
        self._changed.set()

    def cut(self, message: str) -> None:
        """The connection did not end in order, and nothing else says where this body ends."""
        if not self.complete:
            self._cut = True
            self.fail(message)

    def over(self) -> None:
        """Nobody reads it any more."""
        self._over = True
        self._body.drop()

    async def room(self) -> None:
        """Waits until more of the body may be read from the network."""
        await self._body.room()

    async def wait_head(self) -> http.Response:
        """The head of the response. Raises UpstreamBroken."""
        while self.response is None:
            if self.error is not None:
                raise self._broken(self.error)
            self._changed.clear()
            await self._changed.wait()
        return self.response

    def _broken(self, message: str) -> UpstreamBroken:
        return UpstreamBroken(message, hopeless=self._hopeless)

    async def read(self) -> list[Chunk]:
        """What has come since the last read; empty at the end. Raises UpstreamBroken."""
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
    """The message without trailers and the time of its end, which it was made with.

    mitmproxy's check of a None in their places leaves an exception that refers to itself, and with it the frames of all
    callers: what they hold, the descriptor of a flight's file for one, would stay open until the garbage collector comes by.
    """
    # A message has no other way to be without them.
    message.data.trailers = None
    message.data.timestamp_end = None  # Nor this.
    return message
