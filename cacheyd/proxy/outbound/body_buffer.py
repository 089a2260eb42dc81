"""The part of a response's body that waits in memory for its reader. The budget counts its bytes."""

import asyncio

from cacheyd.resources.budget import Budget
from cacheyd.upstream.port import Chunk

# The most bytes of one body that wait in memory until they are on disk. With more, cacheyd does not read from the upstream.
BUFFER = 4 << 20
# Pieces smaller than TINY are joined to pieces of JOINED bytes at most: each Python object takes about a hundred bytes more.
TINY, JOINED = 4 << 10, 64 << 10


class BodyBuffer:
    """The pieces of one body between the network and its reader."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.chunks: list[Chunk] = []
        # The bytes that wait for the reader, and the bytes that the reader took last and that go to the disk or to a client.
        self._buffered = 0
        self._reading = 0
        self._room = asyncio.Event()
        self._room.set()

    def add(self, data: Chunk) -> None:
        """Adds a part of the body that has arrived."""
        last = self.chunks[-1] if self.chunks else b""
        if len(data) < TINY and isinstance(last, bytearray) and len(last) < JOINED:
            last += data
        else:
            self.chunks.append(bytearray(data) if len(data) < TINY else data)
        self._buffered += len(data)
        self.budget.take(len(data))
        if self._buffered >= self.budget.share(BUFFER):
            self._room.clear()

    def written(self) -> None:
        """Notes that the pieces that were taken last are no longer in memory."""
        self.budget.give(self._reading)
        self._reading = 0

    def take(self) -> list[Chunk]:
        """Takes all pieces that wait. The budget counts them until `written`."""
        chunks, self.chunks = self.chunks, []
        self._buffered, self._reading = 0, self._buffered
        self._room.set()
        return chunks

    def drop(self) -> None:
        """Drops all pieces: nobody reads this body any more."""
        self.chunks.clear()
        self.budget.give(self._buffered + self._reading)
        self._buffered = self._reading = 0
        self._room.set()

    def open(self) -> None:
        """Ends the waiting for room: no more bytes come."""
        self._room.set()

    async def room(self) -> None:
        """Waits until there is room to read more of the body from the network."""
        await self._room.wait()
