"""The memory that the bytes of clients take after cacheyd has written them."""

import gc
import time
import weakref
from collections.abc import Callable

from OpenSSL import SSL

from cacheyd.resources.budget import Budget

# What OpenSSL's buffers for encrypted bytes can keep, for all clients together (bytes).
TLS_BUFFERS = 64 << 20
# If so much of it belongs to connections that have ended, Python's collector of cycles runs (bytes), but not more often than
# this (seconds).
DEAD_BUFFERS, COLLECT_EVERY = 16 << 20, 1.0


class TlsBuffers:
    """Counts the buffers in which OpenSSL keeps the encrypted bytes of clients.

    A buffer grows for the largest piece that its connection was given, by a third more than the piece needs, and does not
    shrink again. So a client that takes its bytes at once, because its kernel does, still costs the buffer. mitmproxy's layers
    of a connection refer to each other: a connection that has ended keeps its buffer until the collector of cycles runs.
    """

    def __init__(self, limit: int = TLS_BUFFERS, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._budget = Budget(limit)
        # The buffers of connections that have ended and are still in memory (bytes).
        self._dead = 0
        self._collected = float("-inf")
        self._monotonic = monotonic

    @property
    def held(self) -> int:
        """The size of all buffers (bytes)."""
        return self._budget.held

    def share(self, most: int) -> int:
        """How large the buffer of one connection can be now (bytes), at most `most`."""
        if self._dead > DEAD_BUFFERS and self._monotonic() - self._collected >= COLLECT_EVERY:
            # What was there at the start is frozen, so this looks at little: connections, flights, answers.
            gc.collect()
            self._collected = self._monotonic()
        return self._budget.share(most)

    def grow(self, size: int) -> None:
        """A buffer grows by `size` bytes."""
        self._budget.take(size)

    def end(self, size: int, connection: SSL.Connection | None) -> None:
        """A connection has ended whose buffer has `size` bytes: they count until `connection` is out of memory."""
        if connection is None or not size:
            self._budget.give(size)
            return
        self._dead += size
        weakref.finalize(connection, self._freed, size).atexit = False  # Its one way to say so.

    def _freed(self, size: int) -> None:
        self._dead -= size
        self._budget.give(size)


class SentMemory:
    """Counts the memory of one client: the bytes that wait for it, and the buffer that TLS keeps."""

    def __init__(self, buffers: TlsBuffers) -> None:
        self._buffers = buffers
        # The size of this client's buffer (bytes), and the connection that has it.
        self._buffer = 0
        self._connection: SSL.Connection | None = None
        # The budget that counts the bytes that wait, and how many it counts.
        self._budget: Budget | None = None
        self._held = 0

    def hold(self, budget: Budget, size: int) -> None:
        """Counts `size` bytes that wait for the client in `budget`, until the next call or `release`."""
        budget.take(size - self._held)
        self._budget, self._held = budget, size

    def encrypts_with(self, connection: SSL.Connection) -> None:
        """The client's bytes go through this TLS connection."""
        self._connection = connection

    def window(self, most: int) -> int:
        """The size of the next piece for TLS (bytes): what fits into the buffer, and more while all buffers are small."""
        return min(most, max(self._buffer // 4 * 3, self._buffers.share(most)))

    def encrypt(self, size: int) -> None:
        """Counts the buffer that TLS needs for a piece of `size` bytes."""
        needed = size + size // 3
        if needed > self._buffer:
            self._buffers.grow(needed - self._buffer)
            self._buffer = needed

    def release(self) -> None:
        """The socket is closed: no byte waits any more, and the buffer goes with its connection."""
        if self._budget is not None:
            self._budget.give(self._held)
        self._buffers.end(self._buffer, self._connection)
        self._budget, self._held, self._buffer, self._connection = None, 0, 0, None
