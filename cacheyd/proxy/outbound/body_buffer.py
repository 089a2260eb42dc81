"""What of a response's body waits in memory for its reader; the budget counts it."""

import asyncio

from cacheyd.resources.budget import Budget
from cacheyd.upstream.port import Chunk

# What may wait in memory of one body until it is on disk; the upstream is not read while there is more (bytes).
BUFFER = 4 << 20
# Pieces below this size are put together up to so many bytes: each object of its own costs a hundred bytes.
TINY, JOINED = 4 << 10, 64 << 10


class BodyBuffer:
    """Pieces of one body between the network and its reader."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.chunks: list[Chunk] = []
        # What waits to be read, and what was read last and is on its way to the disk or a client.
        self._buffered = 0
        self._reading = 0
        self._room = asyncio.Event()
        self._room.set()

    def add(self, data: Chunk) -> None:
        """A part of the body has arrived."""
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
        """What was taken last is in memory no more."""
        self.budget.give(self._reading)
        self._reading = 0

    def take(self) -> list[Chunk]:
        """All that waits; the reader has it until `written`."""
        chunks, self.chunks = self.chunks, []
        self._buffered, self._reading = 0, self._buffered
        self._room.set()
        return chunks

    def drop(self) -> None:
        """Nobody reads any of it."""
        self.chunks.clear()
        self.budget.give(self._buffered + self._reading)
        self._buffered = self._reading = 0
        self._room.set()

    def open(self) -> None:
        """Nobody waits for room any more: nothing more will come."""
        self._room.set()

    async def room(self) -> None:
        """Waits until more of the body may be read from the network."""
        await self._room.wait()
