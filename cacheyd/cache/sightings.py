"""Records when this cache first saw each digest in each repository, by a clock that a wrong system time cannot fool."""

import time
from collections.abc import Callable
from dataclasses import replace

from cacheyd.cache.age import EARLIEST, believed
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.store.sights import Sight
from cacheyd.store.store import Store

# How far in the future a first sight must be to show that a wrong clock noted it (seconds).
CLOCK_ERROR = 86400.0


class Sightings:
    """Knows the ages of digests, and the time."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._clock, self._monotonic = clock, monotonic
        self._wall, self._began = clock(), monotonic()
        # The digests whose wait began again by a clock that may be wrong, too.
        self._anew: set[str] = set()

    def now(self) -> float:
        """The time, but never later than the start plus the time that has really passed: a clock that jumps ahead makes no
        image older.

        A clock that began before there were images, and was set right since the start, is believed.
        """
        return min(self._clocks())

    def unseen(self) -> Sight:
        """The sight of an image without a digest: seen now, by the clock as it is."""
        return Sight(self._clock())

    def _clocks(self) -> tuple[float, float]:
        """The clock's time, and the time that it would show if it had not been set since the start."""
        wall, passed = self._clock(), self._monotonic()
        if self._wall < EARLIEST:
            self._wall, self._began = wall, passed
        return wall, self._wall + passed - self._began

    def learn(self, ref: Reference, digest: str, created: float | None) -> None:
        """Remembers the image's own date (seconds since the epoch); None if the image has no date."""
        sight = self.see(ref, digest)
        self._store.sights.seen.set(key_of(ref, digest), replace(sight, created=believed(created, self.now())))

    def see(self, ref: Reference, digest: str) -> Sight:
        """The sight of a digest; if the cache never saw the digest before, it sees it now."""
        key = key_of(ref, digest)
        sight = self._store.sights.sight(key)
        wall, passed = self._clocks()
        now, set_ahead = max(wall, passed), wall > passed + CLOCK_ERROR
        if set_ahead and self._anew:
            self._begin_again(now)
            sight = self._store.sights.sight(key)
        in_future = sight is not None and sight.first > now + CLOCK_ERROR and wall >= EARLIEST
        if in_future and not set_ahead:
            self._anew.add(key)
        if sight is None or sight.first < EARLIEST <= wall or in_future:
            # The digest is new, or was seen when the clock was not set yet or was far ahead. The wait begins now, by the later
            # of the two clocks, as either of them can be wrong.
            sight = Sight(now) if sight is None else replace(sight, first=now)
            self._store.sights.seen.set(key, sight)
        return sight

    def _begin_again(self, now: float) -> None:
        """Begins these waits again: the clock was behind when they began, so a right clock would make the images too old."""
        for key in self._anew:
            if (sight := self._store.sights.sight(key)) is not None:
                self._store.sights.seen.set(key, replace(sight, first=now))
        self._anew.clear()


def reference_of(name: str) -> Reference:
    """The reference of a tag (`registry/repository:tag`)."""
    rest, _, tag = name.rpartition(":")
    registry, _, repository = rest.partition("/")
    return Reference(registry, repository, Kind.MANIFEST, tag, None, "")


def name_of(ref: Reference) -> str:
    """The name under which a tag is kept; `reference_of` reads it."""
    return f"{ref.name}:{ref.reference}"


def key_of(ref: Reference, digest: str) -> str:
    """The name under which the first sight of a digest in a repository is kept."""
    return f"{ref.name}@{digest}"
