"""Remembers flights that failed just now: decides which clients may resume here, and which have to ask upstream first."""

import time
from collections.abc import Callable
from typing import NamedTuple

from cacheyd.cache.flight import Flight, NotKept
from cacheyd.protocol.errors import Code, Failure, RequestError, upstream_error
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings

# How long resumes of a broken flight's blob get 502, so that clients resume at the upstream and not here (seconds); the same
# after wrong bytes.
FAILURE_PAUSE = 15.0
MISMATCH_PAUSE = 60.0
# How long after a contested failure a client needs upstream's permission before it starts the object's next flight (seconds).
# Contested: several other logins waited for a flight that upstream refused to the login that had started it.
CONTESTED = 5.0
# How many flights in a row with wrong bytes show that the upstream itself has them: once can be a fault on the way.
PERSISTENT = 2


class _Broken(NamedTuple):
    """Until when an object's flight counts as broken, why, how many bytes of it clients may have, and how many flights in a
    row had wrong bytes.
    """

    until: float
    failure: Failure
    received: int
    mismatches: int


class RecentFailures:
    """Remembers failures for seconds, by registry and digest. A change of settings drops them."""

    def __init__(self, settings: Settings | Live, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._broken: dict[tuple[str, str], _Broken] = {}
        # Until when a client needs upstream's permission before it starts an object's flight.
        self._contested: dict[tuple[str, str], float] = {}
        Live.of(settings).listen(lambda settings: self.forget())

    def forget(self) -> None:
        """After a change of settings: drops the earlier failures."""
        self._broken.clear()
        self._contested.clear()

    def broke(self, flight: Flight, error: RequestError | NotKept) -> None:
        """Notes a broken flight. Clients have bytes of it that are not verified, so they must not resume here for a while."""
        failure = (
            upstream_error(502, "there was no room for the rest").failure if isinstance(error, NotKept) else error.failure
        )
        before = self._find(*flight.key)
        wrong = failure.code is Code.DIGEST_INVALID
        mismatches = int(wrong) + (before.mismatches if before else 0)
        _bound(self._broken)
        until = self._monotonic() + (MISMATCH_PAUSE if wrong else FAILURE_PAUSE)
        self._broken[flight.key] = _Broken(until, failure, flight.body.received, mismatches)

    def landed(self, flight: Flight) -> None:
        """Notes that the flight's bytes were right this time."""
        if (broken := self._broken.get(flight.key)) is not None:
            self._broken[flight.key] = broken._replace(mismatches=0)

    def contest(self, flight: Flight) -> None:
        """Notes that several other logins waited for a flight that upstream refused to the login that started it."""
        _bound(self._contested)
        self._contested[flight.key] = self._monotonic() + CONTESTED

    def recent(self, registry: str, digest: str) -> RequestError | None:
        """The error of an object's fetch that failed just now; None if there is none."""
        if (known := self._find(registry, digest)) is None:
            return None
        return RequestError(known.failure)

    def resume_refused(self, registry: str, digest: str, start: int) -> RequestError | None:
        """The error for a client that must not begin at byte `start`: its bytes may come from a flight that broke. Else None.

        A client may begin again from the first byte, unless the last flights in a row brought wrong bytes: then it can get
        the right bytes only elsewhere.
        """
        if not self._broken or (known := self._find(registry, digest)) is None:
            return None
        refused = 0 < start <= known.received or known.mismatches >= PERSISTENT
        return RequestError(known.failure) if refused else None

    def _find(self, registry: str, digest: str) -> _Broken | None:
        known = self._broken.get((registry, digest))
        if known and self._monotonic() < known.until:
            return known
        self._broken.pop((registry, digest), None)
        return None

    def is_contested(self, registry: str, digest: str) -> bool:
        """Whether several logins waited just now for a flight of this object that upstream refused to another login."""
        until = self._contested.get((registry, digest)) if self._contested else None
        if until is None:
            return False
        if self._monotonic() < until:
            return True
        del self._contested[registry, digest]
        return False


def _bound[K, V](table: dict[K, V], limit: int = 10_000) -> None:
    """Makes room in a table of recent events by forgetting the oldest half."""
    if len(table) >= limit:
        for key in list(table)[: limit // 2]:
            del table[key]
