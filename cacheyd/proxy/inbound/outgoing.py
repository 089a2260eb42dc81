"""What a client was sent and has not taken yet: who waits for that, how long, and when the client is given up.

asyncio says when something waits in a transport's buffer and when it is empty again; a limit of 0 makes that exact. So one
deadline holds for every body, whoever wrote it, and for the close after it: mitmproxy forgets a connection that it has
closed, but asyncio keeps it until the client has taken the last byte.
"""

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable

from cacheyd.cache.bodies import BodyBroken
from cacheyd.resources.budget import Budget
from cacheyd.settings.settings import Settings

# How often within the deadline on progress it is looked whether the client takes something.
LOOKS = 4


class Outgoing:
    """The sending side of one connection. `end` closes the connection once the client is given up."""

    def __init__(self, transport: asyncio.Transport, settings: Callable[[], Settings], end: Callable[[], None]) -> None:
        # Something waits until the client takes it.
        self.full = False
        # The client is gone, or takes nothing and is let go.
        self.over = False
        # The socket is closed.
        self.left = False
        self._transport = transport
        self._settings = settings
        self._end = end
        # What the budget has of this client: bytes that were written and not taken.
        self._budget: Budget | None = None
        self._held = 0
        self._waiting: set[asyncio.Future[None]] = set()
        # How often something began to wait for the client; at which of these times, and when, what it had not taken was
        # measured (bytes). Looked at by one timer now and then: a body of many windows begins to wait at each.
        self._spell = 0
        self._marked = (0, 0.0, 0)
        self._timer: asyncio.Handle | None = None

    def filled(self) -> None:
        """Something begins to wait for the client."""
        self.full = True
        self._spell += 1
        if self._timer is None:
            self._set_timer()

    def emptied(self) -> None:
        """The client has taken everything."""
        self.full = False
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def _untaken(self) -> int:
        """Bytes that the client's side has not acknowledged: a kernel's buffer is emptied in lumps of up to megabytes."""
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
            # More than before is there if an answer was still being written.
            if taken < 0 or taken >= max(1, min(untaken, settings.min_rate * settings.progress_timeout)):
                self._mark()
            elif self.over or self._transport.is_closing():
                self._transport.abort()
            else:
                self._give_up()

    def _mark(self) -> None:
        self._marked = self._spell, asyncio.get_running_loop().time(), self._untaken()

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
        """Lets others have their turn, and waits until the client has taken what it was sent."""
        if not self.full:
            await asyncio.sleep(0)
            return
        try:
            await self.taken()
        except BodyBroken:
            self.over = True

    def hold(self, budget: Budget, size: int) -> None:
        """So many bytes of memory are this client's, until it has taken them or its socket is closed."""
        if not self.left:
            budget.take(size - self._held)
            self._budget, self._held = budget, size

    def lost(self) -> None:
        """The socket is closed: the client will take nothing more."""
        if self._budget is not None:
            self._budget.give(self._held)
        self.left = self.over = True
        self.full = False
        if self._timer is not None:
            self._timer.cancel()
        self._wake(BodyBroken("the client has left"))


def _in_kernel(transport: asyncio.Transport) -> int:
    """Bytes that were sent and not acknowledged; 0 where the system does not say."""
    try:
        found = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0
    return int(struct.unpack("i", found)[0])
