"""When this cache first saw which digest in which repository, by clocks that nobody can set."""

import time
from collections.abc import Callable
from dataclasses import replace

from cacheyd.cache.age import EARLIEST, believed
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.store.sights import Sight
from cacheyd.store.store import Store

# A first sight that lies so far in the future (seconds) was noted by a wrong clock.
CLOCK_ERROR = 86400.0


class Sightings:
    """What is known of the age of digests; and what time it is."""

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
        # Those whose wait began anew by a clock that may be wrong, too.
        self._anew: set[str] = set()

    def now(self) -> float:
        """The time, but never ahead of what has really passed since the start: a clock that jumps ahead makes nothing older.

        One that was set right since the start (it began before there were images) is believed.
        """
        return min(self._clocks())

    def unseen(self) -> Sight:
        """For an image without a digest: it is seen now, by the clock as it is."""
        return Sight(self._clock())

    def _clocks(self) -> tuple[float, float]:
        """The clock, and what it would be if nobody had set it since the start."""
        wall, passed = self._clock(), self._monotonic()
        if self._wall < EARLIEST:
            self._wall, self._began = wall, passed
        return wall, self._wall + passed - self._began

    def learn(self, ref: Reference, digest: str, created: float | None) -> None:
        """Remembers what the image says of its age (seconds since the epoch); None: it says nothing."""
        sight = self.see(ref, digest)
        self._store.sights.seen.set(key_of(ref, digest), replace(sight, created=believed(created, self.now())))

    def see(self, ref: Reference, digest: str) -> Sight:
        """What is known of a digest, which is seen now if it was not before."""
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
            # New, or seen when the clock was not set yet, or was far ahead: the wait begins now, by the later of the two
            # clocks, whichever of them is wrong.
            sight = Sight(now) if sight is None else replace(sight, first=now)
            self._store.sights.seen.set(key, sight)
        return sight

    def _begin_again(self, now: float) -> None:
        """The clock was behind when these waits began: set right, it would make them older than they are."""
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
    """The name of a tag, as it is kept: what `reference_of` reads."""
    return f"{ref.name}:{ref.reference}"


def key_of(ref: Reference, digest: str) -> str:
    """The name under which it is kept when a digest was first seen in a repository."""
    return f"{ref.name}@{digest}"
