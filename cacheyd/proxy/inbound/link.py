"""A client's connection below mitmproxy: what the client has not taken yet, how far it is read ahead, when it is let go.

asyncio says when something waits in a transport's buffer and when it is empty again; a limit of 0 makes that exact. So one
deadline holds for every body, whoever wrote it, and for the close after it: mitmproxy forgets a connection that it has
closed, but asyncio keeps it until the client has taken the last byte.
"""

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mitmproxy.proxy import commands, server

from cacheyd.cache.bodies import BodyBroken
from cacheyd.proxy.inbound.idle import Idle
from cacheyd.resources.budget import Budget
from cacheyd.settings.settings import Settings

# What is read of a client at once, and what may wait unread in asyncio's reader (bytes).
READ = 16 << 10
# What the heads of all clients may take that wait for their rest (bytes).
HEADS = 16 << 20
# A TLS handshake has to be complete after so long (seconds).
HANDSHAKE_DEADLINE = 30.0
# How often within the deadline on progress it is looked whether the client takes something.
LOOKS = 4


class Reader(Protocol):
    """Who reads what the client sends."""

    @property
    def behind(self) -> bool:
        """Whether so much waits behind a request that no more is to be read."""


class Link(Protocol):
    """What a server needs to know of its client's connection."""

    full: bool
    """Something waits until the client takes it."""
    over: bool
    """The client is gone, or takes nothing and is let go."""

    def hungry(self) -> None:
        """More of what the client sends is wanted."""

    def keep_head(self, size: int) -> bool:
        """So many bytes of a request head wait for its rest; whether there is room for them beside those of all others."""

    async def turn(self) -> None:
        """Lets others have their turn, and waits until the client has taken what it was sent."""


@dataclass
class CacheydTurnHook(commands.StartHook):
    """Stands between the answers of one connection; the addon's `cacheyd_turn` awaits `Link.turn`."""

    link: Link


class ClientLink:
    """Watches one client's transport from the `client_connected` hook until its socket is closed."""

    def __init__(
        self,
        handler: server.ConnectionHandler,
        settings: Callable[[], Settings],
        on_lost: Callable[[], object],
        heads: Budget | None = None,
    ) -> None:
        self.full = False
        self.over = False
        self.reader: Reader | None = None
        # None once the socket is closed, so that nothing keeps anything else.
        self._handler: Any = handler
        self._settings = settings
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._left = False
        # What the budget has of this client: bytes that were written and not taken.
        self._budget: Budget | None = None
        self._held = 0
        self._heads = heads or Budget(HEADS)
        self._head = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self._gate: asyncio.Future[None] | None = None
        # How often something began to wait for the client; at which of these times, and when, what it had not taken was
        # measured (bytes). Looked at by one timer now and then: a body of many windows begins to wait at each.
        self._spell = 0
        self._marked = (0, 0.0, 0)
        self._timer: asyncio.Handle | None = None
        self._handshake: asyncio.Handle | None = None
        io = handler.transports[handler.client]
        # The streams of asyncio.start_server; mitmproxy's types allow for its UDP streams, too.
        reader: Any = io.reader
        transport: Any = io.writer.transport  # type: ignore[union-attr]
        self._transport: asyncio.Transport = transport
        transport.max_size = READ
        reader._limit = READ // 2
        transport.set_write_buffer_limits(high=0)
        self._protocol = transport.get_protocol()
        self._base = self._protocol.pause_writing, self._protocol.resume_writing, self._protocol.connection_lost
        self._protocol.pause_writing, self._protocol.resume_writing = self._on_full, self._on_empty
        self._protocol.connection_lost = self._on_connection_lost
        self._idle = Idle(handler.timeout_watchdog.timeout, self._end)
        self._install(handler)

    def _install(self, handler: Any) -> None:
        handler.timeout_watchdog.callback = _nothing
        handler.timeout_watchdog = self._idle
        handler.drain_writers = self._read_on

    # Deadlines

    def expect_handshake(self) -> None:
        """From now on `established` has to be called in time."""
        self._handshake = self._loop.call_later(HANDSHAKE_DEADLINE, self._end)

    def established(self) -> None:
        """The TLS handshake is complete."""
        if self._handshake is not None:
            self._handshake.cancel()
            self._handshake = None

    def _end(self) -> None:
        """Closes as mitmproxy does after a timeout: what the client was sent it may still take, for a while."""
        io = self._handler.transports.get(self._handler.client)
        if io is not None and io.handler is not None:
            io.handler.cancel("timeout")
        self.close()

    def close(self) -> None:
        """mitmproxy is done with the connection, but may have left it open: it does where it is to close one, and more
        of what the client sends has just been read.
        """
        self._transport.close()

    # What the client takes

    def _untaken(self) -> int:
        """Bytes that the client's side has not acknowledged: a kernel's buffer is emptied in lumps of up to megabytes."""
        return self._transport.get_write_buffer_size() + _in_kernel(self._transport)

    def _on_full(self) -> None:
        self._base[0]()
        self.full = True
        self._spell += 1
        if self._timer is None:
            self._set_timer()

    def _on_empty(self) -> None:
        self._base[1]()
        self.full = False
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self.hungry()

    def _set_timer(self) -> None:
        self._timer = self._loop.call_later(self._settings().progress_timeout / LOOKS, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self.full:
            return
        self._set_timer()
        settings, now = self._settings(), self._loop.time()
        spell, since, untaken = self._marked
        if spell != self._spell:
            self._mark()
        elif now - since >= settings.progress_timeout:
            taken = untaken - self._untaken()
            # More than before is there if an answer was still being written.
            if taken < 0 or taken >= max(1, min(untaken, settings.min_rate * settings.progress_timeout)):
                self._mark()
            elif self.over or self._transport.is_closing():
                self._transport.abort()
            else:
                self._give_up()

    def _mark(self) -> None:
        self._marked = self._spell, self._loop.time(), self._untaken()

    def _give_up(self) -> None:
        """FIN after what is buffered, should the client read on within as long again; else `_look` aborts."""
        self.over = True
        self._mark()
        if self._waiting:
            self._wake(BodyBroken("the client took nothing for too long"))
        else:
            self._end()

    def _wake(self, error: BodyBroken) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_exception(error)

    async def taken(self) -> None:
        """Waits until the client has taken everything. Raises BodyBroken if it does not, or less than the least rate."""
        if self._left or self._transport.is_closing():
            raise BodyBroken("the client has left")
        if self.over:
            raise BodyBroken("the client took nothing for too long")
        if not self.full:
            return
        future = self._loop.create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    def hold(self, budget: Budget, size: int) -> None:
        """So many bytes of memory are this client's, until it has taken them or its socket is closed."""
        if not self._left:
            budget.take(size - self._held)
            self._budget, self._held = budget, size

    async def turn(self) -> None:
        """Lets others have their turn, and waits until the client has taken what it was sent."""
        if not self.full:
            await asyncio.sleep(0)
            return
        try:
            await self.taken()
        except BodyBroken:
            self.over = True

    def _on_connection_lost(self, error: Exception | None) -> None:
        if self._budget is not None:
            self._budget.give(self._held)
        self.keep_head(0)
        self._left = self.over = True
        self.full = False
        for handle in (self._timer, self._handshake):
            if handle is not None:
                handle.cancel()
        self._idle.stop()
        self._wake(BodyBroken("the client has left"))
        self.hungry()
        self._on_lost()
        self._base[2](error)
        del self._protocol.pause_writing, self._protocol.resume_writing, self._protocol.connection_lost
        self._handler = self.reader = None

    # What the client sends

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

    async def _read_on(self) -> None:
        """Stands where mitmproxy drains after each read: nothing more is read while this waits."""
        if len(self._handler.transports) > 1:
            # Flows of other addons to upstreams of their own.
            await server.ConnectionHandler.drain_writers(self._handler)
        while not self._left and (self.full or (self.reader is not None and self.reader.behind)):
            self._gate = self._loop.create_future()
            await self._gate


async def _nothing() -> None:
    """What mitmproxy's own watchdog does in the end."""


def _in_kernel(transport: asyncio.Transport) -> int:
    """Bytes that were sent and not acknowledged; 0 where the system does not say."""
    try:
        found = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0
    return int(struct.unpack("i", found)[0])
