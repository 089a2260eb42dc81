"""Which origins and token services are dead, so that they are left alone for a while."""

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass

# A dead origin is left alone for so long, doubled with each failure (seconds).
PAUSE, PAUSE_MAX = 5.0, 60.0
# A timeout costs every client its length, so one is enough; other failures are quick and may be chance.
FAILURES = 3
# How many names are remembered, and how many are forgotten at once where there are more.
MAX_TRACKED, FORGOTTEN = 10_000, 1_000


@dataclass(slots=True)
class _Health:
    failures: int = 0
    pause: float = PAUSE
    dead_until: float = 0.0
    probing: bool = False
    answered: float = 0.0


class Breaker:
    """Remembers which origins are dead, so that they cost one timeout and not one per request."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._health: dict[str, _Health] = {}
        self._since = float("-inf")

    def forget(self) -> None:
        """After a change of settings: nothing is dead, and requests that began before do not count any more."""
        self._health.clear()
        self._since = self._clock()

    def __len__(self) -> int:
        return len(self._health)

    def _of(self, origin: str) -> _Health:
        health = self._health.pop(origin, None) or _Health()
        if len(self._health) >= MAX_TRACKED:
            # Anybody may make up names. Living origins go first, those that were heard of long ago before others; the
            # one that is dead for longest goes last.
            for name in heapq.nsmallest(FORGOTTEN, self._health, key=lambda name: self._health[name].dead_until):
                del self._health[name]
        self._health[origin] = health
        return health

    def admit(self, origin: str) -> bool:
        """Whether to ask the origin now; after its pause, one request at a time finds out."""
        health = self._health.get(origin)
        if health is None or not health.dead_until:
            return True
        if self._clock() < health.dead_until or health.probing:
            return False
        health.probing = True
        return True

    def answered(self, origin: str) -> None:
        """The origin lives, whatever it said."""
        health = self._of(origin)
        health.failures, health.dead_until, health.probing = 0, 0.0, False
        health.answered = self._clock()

    def abandoned(self, origin: str) -> None:
        """Nobody waited for the answer."""
        if health := self._health.get(origin):
            health.probing = False

    def failed(self, origin: str, *, timeout: bool, since: float, slow: bool = False) -> None:
        """The origin could not be reached, or did not answer a request of `since` (on this breaker's clock).

        If it answered another request meanwhile, only that object is slow, and the origin is not dead. `slow` says that an
        answer may take long: timeouts of such requests alone never make an origin a dead one, nor keep it dead.
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
        """The origins that are left alone now."""
        now = self._clock()
        return [origin for origin, health in self._health.items() if health.dead_until > now]
