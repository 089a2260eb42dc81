"""The transport side of an upstream connection: what mitmproxy parses goes to mitmproxy, large bodies go past it.

asyncio's streams and h11 copy each byte of a body about five times; on plain connections the kernel writes a body right
into the blocks that are hashed and written to disk.
"""

import asyncio

from cacheyd.proxy.exchange import Exchange

# The largest piece that mitmproxy gets, and the size of the blocks of a body (bytes).
READ = 256 << 10
BLOCK = 1 << 20


class Wire(asyncio.BufferedProtocol):
    """Reads for `ConnectionHandler.handle_connection`, or straight into blocks with `read_body`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._block = bytearray(READ)
        self._filled = 0
        self._closed: Exception | None = None
        self._ended = False
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return memoryview(self._block)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        self._filled += nbytes
        if self._filled == len(self._block):
            self._pause(True)
        self._wake()

    def eof_received(self) -> bool:
        """The peer has sent all; our side stays open until the layers close it."""
        self._ended = True
        self._wake()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._ended, self._closed = True, exc
        self._wake()

    def _pause(self, pause: bool) -> None:
        if self._transport is not None and pause != self._paused and not self._ended:
            self._paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _more(self) -> None:
        self._pause(False)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # The reader's side

    async def read(self, _: int) -> bytes:
        """What has come, at least one byte; empty at the end. Raises OSError where the connection broke."""
        while not self._filled:
            if self._ended:
                if isinstance(self._closed, OSError):
                    raise self._closed
                return b""
            await self._more()
        data = bytes(memoryview(self._block)[: self._filled])
        self._filled = 0
        self._pause(False)
        return data

    async def read_body(self, length: int, exchange: Exchange) -> int:
        """Gives the next `length` bytes to the exchange, in blocks that are its own; returns how many the peer left out."""
        exchange.on_hungry = self._wake
        self._take(0, BLOCK)
        try:
            while length and not (self._ended and not self._filled):
                size = min(self._filled, length)
                if size == length or self._filled == len(self._block) or (size and (exchange.hungry or self._ended)):
                    exchange.data(self._take(size, BLOCK))
                    length -= size
                    await exchange.room()
                else:
                    await self._more()
        finally:
            exchange.on_hungry = None
            self._take(0, READ)
        return length

    def _take(self, size: int, next_block: int) -> memoryview:
        """The first `size` bytes, and a new block that begins with the rest."""
        taken, rest = memoryview(self._block)[:size], memoryview(self._block)[size : self._filled]
        if size or len(self._block) != next_block:
            self._block = bytearray(max(next_block, len(rest)))
            self._block[: len(rest)] = rest
            self._filled = len(rest)
            if self._filled == len(self._block):
                self._pause(True)
        return taken
