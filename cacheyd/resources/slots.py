"""Turns for fetches: a bounded number at once, at most half of them for one registry, given fairly to waiting registries."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable

# A registry can always have this many turns, also if half of all turns is less.
FEW = 2


class Slots:
    """Gives turns to registries. The waiting registry with the fewest turns is next, with its oldest request."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._most = max(FEW, limit // 2)
        self._taken: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @property
    def full(self) -> bool:
        """Whether all turns are taken."""
        return self._taken.total() >= self._limit

    def taken(self, registry: str) -> int:
        """How many turns a registry has now."""
        return self._taken[registry]

    def _is_free(self, registry: str) -> bool:
        return not self.full and self._taken[registry] < self._most

    def try_enter(self, registry: str) -> bool:
        """Takes a turn if one is free and no request of this registry waits for a turn; `leave` gives the turn back."""
        if registry in self._waiting or not self._is_free(registry):
            return False
        self._taken[registry] += 1
        return True

    async def enter(self, registry: str) -> None:
        """Waits for a turn; `leave` gives the turn back."""
        if self.try_enter(registry):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(registry, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(registry)
            else:
                self._leave_queue(registry, turn)
            raise

    async def enter_looking(self, registry: str, look: Callable[[], None], every: float) -> None:
        """Waits for a turn as `enter` does, and calls `look` each time `every` seconds are over. An exception of `look` ends
        the wait.
        """
        turn = asyncio.ensure_future(self.enter(registry))
        try:
            while not (await asyncio.wait({turn}, timeout=every))[0]:
                look()
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.leave(registry)
            turn.cancel()
            raise

    def leave(self, registry: str) -> None:
        """Gives a turn back; a waiting request gets it."""
        self._taken[registry] -= 1
        if not self._taken[registry]:
            del self._taken[registry]
        self._admit()

    def _admit(self) -> None:
        while not self.full:
            free = [registry for registry in self._waiting if self._taken[registry] < self._most]
            if not free:
                return
            registry = min(free, key=lambda name: self._taken[name])
            turn = self._waiting[registry][0]
            self._leave_queue(registry, turn)
            if not turn.done():
                self._taken[registry] += 1
                turn.set_result(None)

    def _leave_queue(self, registry: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(registry)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[registry]
