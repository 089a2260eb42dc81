"""One request to an upstream and its response, between the flow's layers and whoever reads the response."""

import asyncio
from collections.abc import Callable

from mitmproxy import http

from cacheyd.fetch import Chunk, UpstreamBroken

# What may wait in memory of one body until it is on disk; the upstream is not read while there is more (bytes).
BUFFER = 4 << 20


class Exchange:
    """The response as it comes: fed by layers, read by `fetch`."""

    def __init__(self) -> None:
        self.response: http.Response | None = None
        self.error: str | None = None
        self.complete = False
        # Called when somebody begins to wait for more of the body.
        self.on_hungry: Callable[[], None] | None = None
        self.hungry = False
        self._chunks: list[Chunk] = []
        self._buffered = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def head(self, response: http.Response) -> None:
        """The head has arrived."""
        self.response = response
        self._changed.set()

    def data(self, data: Chunk) -> None:
        """A part of the body has arrived."""
        self._chunks.append(data)
        self._buffered += len(data)
        if self._buffered >= BUFFER:
            self._room.clear()
        self._changed.set()

    def end(self) -> None:
        """The body is complete."""
        self.complete = True
        self._changed.set()

    def fail(self, message: str) -> None:
        """Nothing more will come."""
        if not self.complete and self.error is None:
            self.error = message
        self._room.set()
        self._changed.set()

    async def room(self) -> None:
        """Waits until more of the body may be read from the network."""
        await self._room.wait()

    async def wait_head(self) -> http.Response:
        """The head of the response. Raises UpstreamBroken."""
        while self.response is None:
            if self.error is not None:
                raise UpstreamBroken(self.error)
            self._changed.clear()
            await self._changed.wait()
        return self.response

    async def read(self) -> list[Chunk]:
        """What has come since the last read; empty at the end. Raises UpstreamBroken."""
        while not self._chunks:
            if self.complete:
                return []
            if self.error is not None:
                raise UpstreamBroken(self.error)
            self._changed.clear()
            self.hungry = True
            if self.on_hungry is not None:
                self.on_hungry()
            await self._changed.wait()
            self.hungry = False
        chunks, self._chunks = self._chunks, []
        self._buffered = 0
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
