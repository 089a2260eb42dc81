"""The wait of one client for rate limits that end soon."""

import asyncio
from collections.abc import Callable, Hashable

from cacheyd.protocol.errors import RequestError
from cacheyd.upstream.known_limits import Key, Limits
from cacheyd.upstream.port import Relayed

# The most waits for limits of one client.
MAX_TRIES = 5
# How often a wait checks whether the client has left (seconds).
LOOK_EVERY = 0.25
# The longest time from a client's request to its answer, waits included (seconds): containerd gives up after 30 s without a
# head.
CLIENTS_WAIT = 28.0


class Patience:
    """Waits for limits of at most `most` seconds in all for one client, as the client would if it asked upstream itself.

    All clients with this login in this repository share these seconds, until one of them gets an answer.
    """

    def __init__(self, limits: Limits, key: Key, thing: Hashable, began: float, most: float) -> None:
        self._limits = limits
        self._key = key
        self._thing = thing
        self._began = began
        self._most = self._total = most
        self._tries = 0

    def succeeded(self) -> None:
        """Ends the waits: an answer came, so the limit of this key is over."""
        if self._tries:
            self._limits.over(self._key)

    @property
    def left(self) -> float:
        """How long the next try can take (seconds)."""
        return self._began + CLIENTS_WAIT - self._limits.clock()

    async def outlast(self, error: Relayed | RequestError, gone: Callable[[], bool]) -> bool:
        """Waits until it is time to ask again, and returns True. Returns False, without a wait, if the client should not wait;
        also returns False if nobody wants the answer any more (`gone`).
        """
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
