"""The bytes that a client was sent and has not taken yet: waits for the client, and gives a client up that is too slow.

asyncio reports when a transport's buffer holds bytes and when it is empty again; with a limit of 0 these reports are exact.
So one deadline holds for every body, from mitmproxy or from cacheyd, and for the close after the body: mitmproxy forgets a
connection that it has closed, but asyncio keeps the connection until the client has taken the last byte.
"""

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable

from cacheyd.cache.bodies import BodyBroken
from cacheyd.proxy.inbound.sent_memory import SentMemory, TlsBuffers
from cacheyd.resources.budget import Budget
from cacheyd.settings.settings import Settings

# How many times within `progress_timeout` cacheyd looks whether the client takes bytes.
LOOKS = 4


class Outgoing:
    """The sending side of one connection. `end` closes the connection after the client is given up."""

    def __init__(
        self,
        transport: asyncio.Transport,
        settings: Callable[[], Settings],
        end: Callable[[], None],
        buffers: TlsBuffers | None = None,
    ) -> None:
        self.memory = SentMemory(buffers or TlsBuffers())
        # True while bytes wait for the client.
        self.full = False
        # True if the client has left, or if it took nothing and was given up.
        self.over = False
        # True if the socket is closed.
        self.left = False
        self._transport = transport
        self._settings = settings
        self._end = end
        self._waiting: set[asyncio.Future[None]] = set()
        # `_spell` counts how many times bytes began to wait for the client. `_marked` is the last measurement: the spell, the
        # loop's time (seconds), and the bytes that were not taken. One timer makes the measurements of all spells, because a
        # body of many windows begins a new spell at each window.
        self._spell = 0
        self._marked = (0, 0.0, 0)
        self._timer: asyncio.Handle | None = None

    def filled(self) -> None:
        """Notes that bytes begin to wait for the client."""
        self.full = True
        self._spell += 1
        if self._timer is None:
            self._set_timer()

    def emptied(self) -> None:
        """Notes that the client has taken everything."""
        self.full = False
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def _untaken(self) -> int:
        """The bytes that the client has not acknowledged, in asyncio's buffer and in the kernel's.

        asyncio's buffer alone is not enough: bytes leave it for the kernel in lumps of up to megabytes.
        """
        return self._transport.get_write_buffer_size() + _in_kernel(self._transport)

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._settings().progress_timeout / LOOKS, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self.full:
            return
        self._set_timer()
        settings, now = self._settings(), asyncio.get_running_loop().time()
        spell, since, untaken = self._marked
        if spell != self._spell:
            self._mark()
        elif now - since >= settings.progress_timeout:
            taken = untaken - self._untaken()
            # If an answer was still being written, there are more bytes than before: `taken` is negative.
            if taken < 0 or taken >= max(1, min(untaken, settings.min_rate * settings.progress_timeout)):
                self._mark()
            elif self.over or self._transport.is_closing():
                self._transport.abort()
            else:
                self._give_up()

    def _mark(self) -> None:
        self._marked = self._spell, asyncio.get_running_loop().time(), self._untaken()

    def _give_up(self) -> None:
        """Gives the client up: sends FIN after the buffered bytes, if the client reads them within the same time again.

        If the client does not read them, `_look` aborts the connection.
        """
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
        """Waits until the client has taken everything. Raises BodyBroken if the client left or was slower than `min_rate`."""
        if self.left or self._transport.is_closing():
            raise BodyBroken("the client has left")
        if self.over:
            raise BodyBroken("the client took nothing for too long")
        if not self.full:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    async def turn(self) -> None:
        """Lets other tasks run, and waits until the client has taken everything. Sets `over` if the client is too slow."""
        if not self.full:
            await asyncio.sleep(0)
            return
        try:
            await self.taken()
        except BodyBroken:
            self.over = True

    def hold(self, budget: Budget, size: int) -> None:
        """Counts `size` bytes of memory for this client in the budget, until the next call or the end of the socket."""
        if not self.left:
            self.memory.hold(budget, size)

    def lost(self) -> None:
        """Notes that the socket is closed: frees the memory in the budget, and wakes tasks that wait with BodyBroken."""
        self.memory.release()
        self.left = self.over = True
        self.full = False
        if self._timer is not None:
            self._timer.cancel()
        self._wake(BodyBroken("the client has left"))


def _in_kernel(transport: asyncio.Transport) -> int:
    """The bytes in the kernel that the client has not acknowledged; 0 if the system does not tell."""
    try:
        found = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0
    return int(struct.unpack("i", found)[0])
