"""What a client sends: how far it is read ahead, and what its unfinished heads may take."""

import asyncio
from typing import Protocol

from cacheyd.proxy.inbound.outgoing import Outgoing
from cacheyd.resources.budget import Budget

# What the heads of all clients may take that wait for their rest (bytes).
HEADS = 16 << 20


class Reader(Protocol):
    """Who reads what the client sends."""

    @property
    def behind(self) -> bool:
        """Whether so much waits behind a request that no more is to be read."""


class Incoming:
    """The receiving side of one connection. `heads` counts the bytes of the heads of all clients."""

    def __init__(self, outgoing: Outgoing, heads: Budget) -> None:
        self._outgoing = outgoing
        self._heads = heads
        self._head = 0
        self._reader: Reader | None = None
        self._gate: asyncio.Future[None] | None = None

    def read_by(self, reader: Reader) -> None:
        """From now on no more is read while `reader` is behind."""
        self._reader = reader

    def keep_head(self, size: int) -> bool:
        """So many bytes of a request head wait for its rest; whether there is room for them beside those of all others."""
        if size != self._head:
            self._heads.take(size - self._head)
            self._head = size
        return not size or self._heads.held <= self._heads.limit

    def hungry(self) -> None:
        """More of what the client sends is wanted."""
        if self._gate is not None:
            if not self._gate.done():
                self._gate.set_result(None)
            self._gate = None

    async def wait(self) -> None:
        """Waits until more of what the client sends may be read."""
        outgoing = self._outgoing
        while not outgoing.left and (outgoing.full or (self._reader is not None and self._reader.behind)):
            self._gate = asyncio.get_running_loop().create_future()
            await self._gate

    def lost(self) -> None:
        """The socket is closed: nothing more will come."""
        self.hungry()
        self._reader = None
