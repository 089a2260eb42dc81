"""One client's wait for rate limits that end in a moment."""

import asyncio
from collections.abc import Callable, Hashable

from cacheyd.protocol.errors import RequestError
from cacheyd.upstream.known_limits import Key, Limits
from cacheyd.upstream.port import Relayed

# Nobody waits for limits more often than this.
MAX_TRIES = 5
# A client that leaves ends its wait within (seconds).
LOOK_EVERY = 0.25
# containerd gives up after 30 s without a head; with what it waited here, an answer is there before (seconds).
CLIENTS_WAIT = 28.0


class Patience:
    """One client's patience: it waits for limits of at most `most` seconds in all, as it would if it asked upstream itself.

    Those seconds are for all clients that ask for something of this repository with this login, until something comes.
    """

    def __init__(self, limits: Limits, key: Key, thing: Hashable, began: float, most: float) -> None:
        self._limits = limits
        self._key = key
        self._thing = thing
        self._began = began
        self._most = self._total = most
        self._tries = 0

    def succeeded(self) -> None:
        """It was worth it."""
        if self._tries:
            self._limits.over(self._key)

    @property
    def left(self) -> float:
        """How long the next try may take (seconds)."""
        return self._began + CLIENTS_WAIT - self._limits.clock()

    async def outlast(self, error: Relayed | RequestError, gone: Callable[[], bool]) -> bool:
        """Waits until it is worth asking again; False, at once, if it is not, or if nobody wants the answer any more."""
        end, now = error.again_at, self._limits.clock()
        if end is None or self._tries == MAX_TRIES or end - now > self._most:
            return False
        at = self._limits.turn(self._key, self._thing, end)
        if at is None or at > self._began + CLIENTS_WAIT / 2 or not self._limits.may_wait(self._key, end, self._total):
            return False
        self._tries += 1
        self._most -= max(0.0, end - now)
        while (wait := at - self._limits.clock()) > 0:
            if gone():
                return False
            await asyncio.sleep(min(wait + 0.001, LOOK_EVERY))
        return not gone()
