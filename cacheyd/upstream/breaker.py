"""Remembers which origins and token services are dead, so that cacheyd does not ask them for a while."""

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass

# The pause of a dead origin, and the longest pause (seconds). Each further failure doubles the pause.
PAUSE, PAUSE_MAX = 5.0, 60.0
# How many failures make an origin dead. One timeout is enough, because each client pays its whole length; other failures are
# quick and can be chance.
FAILURES = 3
# The most names that are remembered, and how many of them are forgotten at once if there are more.
MAX_TRACKED, FORGOTTEN = 10_000, 1_000


@dataclass(slots=True)
class _Health:
    failures: int = 0
    pause: float = PAUSE
    dead_until: float = 0.0
    probing: bool = False
    answered: float = 0.0


class Breaker:
    """Remembers which origins are dead, so that a dead origin costs one timeout, and not one for each request."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._health: dict[str, _Health] = {}
        self._since = float("-inf")

    def forget(self) -> None:
        """Forgets all origins, after a change of settings. Requests that began before no longer count."""
        self._health.clear()
        self._since = self._clock()

    def __len__(self) -> int:
        return len(self._health)

    def _of(self, origin: str) -> _Health:
        health = self._health.pop(origin, None) or _Health()
        if len(self._health) >= MAX_TRACKED:
            # An attacker can invent names. Forgets living origins first, the least recently used of them before others, and
            # dead origins by the end of their pause, the latest end last.
            for name in heapq.nsmallest(FORGOTTEN, self._health, key=lambda name: self._health[name].dead_until):
                del self._health[name]
        self._health[origin] = health
        return health

    def admit(self, origin: str) -> bool:
        """Whether to ask the origin now. After its pause, one request at a time checks whether it lives."""
        health = self._health.get(origin)
        if health is None or not health.dead_until:
            return True
        if self._clock() < health.dead_until or health.probing:
            return False
        health.probing = True
        return True

    def answered(self, origin: str) -> None:
        """Notes that the origin lives, with any answer."""
        health = self._of(origin)
        health.failures, health.dead_until, health.probing = 0, 0.0, False
        health.answered = self._clock()

    def abandoned(self, origin: str) -> None:
        """Notes that nobody waited for the answer, so another request can check the origin."""
        if health := self._health.get(origin):
            health.probing = False

    def failed(self, origin: str, *, timeout: bool, since: float, slow: bool = False) -> None:
        """Notes that the origin was unreachable, or did not answer a request that began at `since` (this breaker's clock).

        If the origin has answered another request since then, only this object is slow, and the origin is not dead. `slow`:
        the answer can take long. Timeouts of slow requests alone never make an origin dead, and never keep it dead.
        """
        if since < self._since:
            return
        health = self._of(origin)
        health.probing = False
        if health.answered > since:
            return
        if timeout and slow:
            health.failures = max(health.failures, min(health.failures + 1, FAILURES - 1))
            return
        health.failures += 1
        if timeout or health.failures >= FAILURES or health.dead_until:
            health.pause = min(PAUSE_MAX, health.pause * 2) if health.dead_until else PAUSE
            health.dead_until = self._clock() + health.pause

    def dead(self) -> list[str]:
        """The origins that cacheyd does not ask now."""
        now = self._clock()
        return [origin for origin, health in self._health.items() if health.dead_until > now]
