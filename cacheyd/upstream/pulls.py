"""How many pulls are left at a registry, as it says itself."""

import re
import time
from collections.abc import Callable

from cacheyd.protocol.headers import HeaderList, header

# How long the number of pulls left is believed where the registry does not say (seconds).
WINDOW = 60.0
# Registries whose number is remembered.
MAX_REGISTRIES = 10_000
_REMAINING = re.compile(r"(\d{1,9})(?:;w=(\d{1,9}))?")


class PullsLeft:
    """Remembers what registries said last, for as long as it holds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # How many, and until when that holds.
        self._remaining: dict[str, tuple[int, float]] = {}

    def forget(self) -> None:
        """After a change of settings: what was said may have been to another login."""
        self._remaining.clear()

    def note(self, registry: str, headers: HeaderList) -> int | None:
        """How many pulls are left, None where the registry does not say.

        Docker Hub's `ratelimit-remaining: 93;w=21600`: so many pulls, in a window of so many seconds.
        """
        match = _REMAINING.fullmatch((header(headers, "ratelimit-remaining") or "").strip())
        if match is None:
            return None
        remaining = int(match[1])
        if registry in self._remaining or len(self._remaining) < MAX_REGISTRIES:
            self._remaining[registry] = (remaining, self._clock() + float(match[2] or WINDOW))
        return remaining

    def are_below(self, floor: int, registry: str) -> bool:
        """Whether fewer than `floor` are left."""
        remaining, until = self._remaining.get(registry, (floor, 0.0))
        return remaining < floor and self._clock() < until
