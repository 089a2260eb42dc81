"""The transport side of an upstream connection: gives mitmproxy the bytes that it parses, and takes large bodies past it.

asyncio's streams and h11 copy each byte of a body about five times. On plain connections, the kernel writes a body directly
into the blocks that the sink hashes and writes to disk.
"""

import asyncio

from cacheyd.proxy.outbound.exchange import Exchange

# The largest piece that mitmproxy gets, and the size of the blocks of a body (bytes).
READ = 256 << 10
BLOCK = 1 << 20
# The size of a connection's first block (bytes): most connections bring few bytes, and there can be thousands of them.
FIRST_READ = 16 << 10


class SocketReader(asyncio.BufferedProtocol):
    """Reads for `ConnectionHandler.handle_connection` with `read`, or directly into blocks with `read_body`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._block = bytearray(FIRST_READ)
        self._filled = 0
        self._closed: Exception | None = None
        self._ended = False
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the transport of the new connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        """The memory for the next bytes."""
        return memoryview(self._block)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Counts the bytes that came, and pauses the transport if the block is full."""
        self._filled += nbytes
        if self._filled == len(self._block):
            self._pause(True)
        self._wake()

    def eof_received(self) -> bool:
        """Notes that the peer has sent everything. cacheyd's side stays open until the layers close it."""
        self._ended = True
        self._wake()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Notes that the connection is closed, and why."""
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

    async def read(self, most: int) -> bytes:
        """Waits for bytes, gives 1 to `most` of them; empty at the end. Raises OSError if the connection broke."""
        if self._filled:
            # Other tasks get their turn between two pieces of the bytes that have come.
            await asyncio.sleep(0)
        while not self._filled:
            if self._ended:
                if isinstance(self._closed, OSError):
                    raise self._closed
                return b""
            await self._more()
        data = bytes(memoryview(self._block)[: min(self._filled, most)])
        was_full, left = self._filled == len(self._block), self._filled - len(data)
        if left:
            self._block[:left] = self._block[len(data) : self._filled]
        elif was_full and len(self._block) < most:
            self._block = bytearray(min(2 * len(self._block), most))
        self._filled = left
        self._pause(False)
        return data

    async def read_body(self, length: int, exchange: Exchange) -> int:
        """Gives the next `length` bytes to the exchange, in blocks that the exchange owns from then on.

        Returns the number of bytes that the peer did not send.
        """
        exchange.tell_when_hungry(self._wake)
        budget = exchange.budget
        self._renew(budget.share(BLOCK))
        budget.take(len(self._block))
        try:
            while length and not (self._ended and not self._filled):
                size = min(self._filled, length)
                if size == length or self._filled == len(self._block) or (size and (exchange.hungry or self._ended)):
                    before = len(self._block)
                    exchange.data(self._take(size, budget.share(BLOCK)))
                    budget.take(len(self._block) - before)
                    length -= size
                    await exchange.room()
                else:
                    await self._more()
        finally:
            budget.give(len(self._block))
            exchange.tell_when_hungry(None)
            self._renew(FIRST_READ)
        return length

    def _renew(self, size: int) -> None:
        """Makes a new block, which begins with the bytes of the old block."""
        rest = memoryview(self._block)[: self._filled]
        self._block = bytearray(max(size, len(rest)))
        self._block[: len(rest)] = rest
        if self._filled == len(self._block):
            self._pause(True)

    def _take(self, size: int, next_block: int) -> bytes | memoryview:
        """Takes the first `size` bytes. If they fill half of the block, gives the block away; else copies them.

        A view of few bytes would keep the whole block in memory.
        """
        block, filled = self._block, self._filled
        if 2 * size >= len(block):
            rest = memoryview(block)[size:filled]
            self._block = bytearray(max(next_block, len(rest)))
            self._block[: len(rest)] = rest
            taken: bytes | memoryview = memoryview(block)[:size]
        else:
            taken = bytes(memoryview(block)[:size])
            block[: filled - size] = block[size:filled]
        self._filled = filled - size
        if self._filled == len(self._block):
            self._pause(True)
        return taken
