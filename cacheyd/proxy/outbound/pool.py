"""The connections to upstreams that are kept for the next request."""

import asyncio
import time
from collections.abc import Callable
from weakref import WeakSet

from cacheyd.proxy.outbound.connection import FetchConnection
from cacheyd.proxy.outbound.exchange import Exchange
from cacheyd.proxy.outbound.trust import Origin

# How long an idle connection is kept (seconds), and the most idle connections to one origin.
IDLE, MAX_IDLE = 30.0, 8
# The most idle connections to all origins together: each takes about 40 KiB and a descriptor.
MAX_IDLE_IN_ALL = 256


class Pool:
    """Fetch connections by origin. `connect` makes a new connection, which dials when it gets its first request."""

    def __init__(self, connect: Callable[[Origin], FetchConnection]) -> None:
        self._connect = connect
        self._idle: dict[Origin, list[FetchConnection]] = {}
        # The connections that were made with the settings in force, idle or in use.
        self._current: WeakSet[FetchConnection] = WeakSet()
        self._reaper: asyncio.Task[None] | None = None

    def take(self, origin: Origin, *, fresh: bool) -> FetchConnection:
        """A connection for one request: an idle one, if there is one and it need not be `fresh`. `release` takes it back."""
        idle = self._idle.get(origin, [])
        while idle and not fresh:
            conn = idle.pop()
            if conn.alive:
                return conn
            conn.close()
        conn = self._connect(origin)
        self._current.add(conn)
        return conn

    def release(self, conn: FetchConnection, exchange: Exchange) -> None:
        """Takes a connection back after its response."""
        exchange.over()
        idle = self._idle.get(conn.origin, [])
        if not (exchange.complete and conn.alive and len(idle) < MAX_IDLE and conn in self._current):
            conn.close()
            return
        conn.rest(time.monotonic())
        idle.append(conn)
        self._idle[conn.origin] = idle
        if sum(map(len, self._idle.values())) > MAX_IDLE_IN_ALL:
            self._drop_oldest()
        if self._reaper is None or self._reaper.done():
            self._reaper = asyncio.create_task(self._reap(), name="idle upstream connections")

    def _drop_oldest(self) -> None:
        origin = min(self._idle, key=lambda origin: self._idle[origin][0].idle_since if self._idle[origin] else 0.0)
        idle = self._idle[origin]
        if idle:
            idle.pop(0).close()
        if not idle:
            del self._idle[origin]

    async def _reap(self) -> None:
        while self._idle:
            await asyncio.sleep(IDLE / 4)
            oldest = time.monotonic() - IDLE
            for origin, idle in list(self._idle.items()):
                for conn in [conn for conn in idle if conn.idle_since < oldest or not conn.alive]:
                    idle.remove(conn)
                    conn.close()
                if not idle:
                    del self._idle[origin]

    def renew(self) -> None:
        """After a change of settings, makes sure that no connection from before is used for another request."""
        self._current = WeakSet()
        self.close()

    def close(self) -> None:
        """Closes all idle connections. A connection in use is closed after its response."""
        for conn in [conn for idle in self._idle.values() for conn in idle]:
            conn.close()
        self._idle.clear()
