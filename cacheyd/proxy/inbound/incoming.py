"""The bytes that a client sends: how far cacheyd reads ahead, and how much memory incomplete heads can take."""

import asyncio
from typing import Protocol

from cacheyd.proxy.inbound.outgoing import Outgoing
from cacheyd.resources.budget import Budget

# The most memory that incomplete request heads of all clients can take together (bytes).
HEADS = 16 << 20


class Reader(Protocol):
    """The reader of the bytes that the client sends."""

    @property
    def behind(self) -> bool:
        """Whether so many bytes wait behind a request that cacheyd must not read more."""


class Incoming:
    """The receiving side of one connection. `heads` counts the bytes of the incomplete heads of all clients."""

    def __init__(self, outgoing: Outgoing, heads: Budget) -> None:
        self._outgoing = outgoing
        self._heads = heads
        self._head = 0
        self._reader: Reader | None = None
        self._gate: asyncio.Future[None] | None = None

    def read_by(self, reader: Reader) -> None:
        """From now on, cacheyd does not read from the client while `reader` is behind."""
        self._reader = reader

    def keep_head(self, size: int) -> bool:
        """Counts `size` bytes of an incomplete request head (0: none). Gives whether there is room for them in the budget."""
        if size != self._head:
            self._heads.take(size - self._head)
            self._head = size
        return not size or self._heads.held <= self._heads.limit

    def hungry(self) -> None:
        """Lets `wait` look again whether cacheyd can read more from the client."""
        if self._gate is not None:
            if not self._gate.done():
                self._gate.set_result(None)
            self._gate = None

    async def wait(self) -> None:
        """Waits until cacheyd can read more from the client."""
        outgoing = self._outgoing
        while not outgoing.left and (outgoing.full or (self._reader is not None and self._reader.behind)):
            self._gate = asyncio.get_running_loop().create_future()
            await self._gate

    def lost(self) -> None:
        """Notes that the socket is closed: the client sends nothing more."""
        self.hungry()
        self._reader = None
