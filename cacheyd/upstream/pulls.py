"""How many pulls are left at a registry, by its own answers."""

import re
import time
from collections.abc import Callable

from cacheyd.protocol.headers import HeaderList, header

# How long the number of pulls left holds if the registry does not say (seconds).
WINDOW = 60.0
# The most registries whose number of pulls is remembered.
MAX_REGISTRIES = 10_000
_REMAINING = re.compile(r"(\d{1,9})(?:;w=(\d{1,9}))?")


class PullsLeft:
    """Remembers the last number of pulls left of each registry, as long as the number holds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # The number of pulls left, and the time until which the number holds.
        self._remaining: dict[str, tuple[int, float]] = {}

    def forget(self) -> None:
        """Call after a change of settings: the numbers can belong to another login."""
        self._remaining.clear()

    def note(self, registry: str, headers: HeaderList) -> int | None:
        """Remembers and returns how many pulls are left; None if the registry does not say.

        Docker Hub's `ratelimit-remaining: 93;w=21600` means 93 pulls in a window of 21600 seconds.
        """
        match = _REMAINING.fullmatch((header(headers, "ratelimit-remaining") or "").strip())
        if match is None:
            return None
        remaining = int(match[1])
        if registry in self._remaining or len(self._remaining) < MAX_REGISTRIES:
            self._remaining[registry] = (remaining, self._clock() + float(match[2] or WINDOW))
        return remaining

    def are_below(self, floor: int, registry: str) -> bool:
        """Whether fewer than `floor` pulls are left."""
        remaining, until = self._remaining.get(registry, (floor, 0.0))
        return remaining < floor and self._clock() < until
