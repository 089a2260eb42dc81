"""One request to an upstream and its response, between the flow's layers and whoever reads the response."""

import asyncio
from collections.abc import Callable

from mitmproxy import http

from cacheyd.resources.budget import Budget
from cacheyd.upstream.port import Chunk, UpstreamBroken

# What may wait in memory of one body until it is on disk; the upstream is not read while there is more (bytes).
BUFFER = 4 << 20
# Pieces below this size are put together up to so many bytes: each object of its own costs a hundred bytes.
TINY, JOINED = 4 << 10, 64 << 10
# A body in more pieces than this with fewer bytes than that on average is an attack on the CPU: honest ones have thousands.
MANY_PIECES, FEW_BYTES = 5_000, 32
# What is passed on of a message that may quote a peer (characters).
MAX_MESSAGE = 300


class Exchange:
    """The response as it comes: fed by layers, read by `fetch`. What it holds counts against the budget."""

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or Budget(BUFFER * 32)
        self.response: http.Response | None = None
        self.error: str | None = None
        self._hopeless = False
        self._cut = False
        self.complete = False
        # Called when somebody begins to wait for more of the body.
        self.on_hungry: Callable[[], None] | None = None
        self.hungry = False
        # How many pieces came through the layers, and their bytes.
        self.pieces = 0
        self.piece_bytes = 0
        self._chunks: list[Chunk] = []
        # What waits to be read, and what was read last and is on its way to the disk or a client.
        self._buffered = 0
        self._reading = 0
        self._over = False
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def head(self, response: http.Response) -> None:
        """The head has arrived."""
        self.response = response
        self._changed.set()

    def data(self, data: Chunk) -> None:
        """A part of the body has arrived."""
        if self._over or self._hopeless:
            return
        last = self._chunks[-1] if self._chunks else b""
        if len(data) < TINY and isinstance(last, bytearray) and len(last) < JOINED:
            last += data
        else:
            self._chunks.append(bytearray(data) if len(data) < TINY else data)
        self._buffered += len(data)
        self.budget.take(len(data))
        if self._buffered >= self.budget.share(BUFFER):
            self._room.clear()
        self._changed.set()

    def piece(self, data: bytes) -> None:
        """As `data`, for what comes through the layers: each piece costs their time, however small it is."""
        self.pieces += 1
        self.piece_bytes += len(data)
        if self.pieces > MANY_PIECES and self.piece_bytes < FEW_BYTES * self.pieces:
            self.fail("the body comes in absurdly small pieces", hopeless=True)
        self.data(data)

    def end(self) -> None:
        """The body is complete, as far as anybody can see."""
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
                self._chunks.clear()
        self._room.set()
        self._changed.set()

    def cut(self, message: str) -> None:
        """The connection did not end as it ought to, which is all that says where this body ends."""
        if not self.complete:
            self._cut = True
            self.fail(message)

    def over(self) -> None:
        """Nobody reads it any more."""
        self._over = True
        self._chunks.clear()
        self.budget.give(self._buffered + self._reading)
        self._buffered = self._reading = 0
        self._room.set()

    async def room(self) -> None:
        """Waits until more of the body may be read from the network."""
        await self._room.wait()

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
        self.budget.give(self._reading)
        self._reading = 0
        while not self._chunks:
            if self.complete and not self._hopeless:
                return []
            if self.error is not None:
                raise self._broken(self.error)
            self._changed.clear()
            self.hungry = True
            if self.on_hungry is not None:
                self.on_hungry()
            await self._changed.wait()
            self.hungry = False
        chunks, self._chunks = self._chunks, []
        self._buffered, self._reading = 0, self._buffered
        self._room.set()
        return chunks


def without_end[M: http.Message](message: M) -> M:
    """The message without trailers and the time of its end, which it was made with.

    mitmproxy's check of a None in their places leaves an exception that refers to itself, and with it the frames of all
    callers: what they hold, the descriptor of a flight's file for one, would stay open until the garbage collector comes by.
    """
    message.data.trailers = None
    message.data.timestamp_end = None
    return message
