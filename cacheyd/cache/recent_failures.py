"""Flights that failed just now: which clients may resume here, and which have to ask upstream first."""

import time
from collections.abc import Callable
from typing import NamedTuple

from cacheyd.cache.flight import Flight, NotKept
from cacheyd.protocol.errors import Code, Failure, RequestError, upstream_error
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings

# A broken flight is answered 502 for so long, so that clients resume at the upstream and not here (seconds).
FAILURE_PAUSE = 15.0
MISMATCH_PAUSE = 60.0
# Several other logins waited for a flight, and upstream refused it to the login that had started it. For so long after that
# (seconds), a client starts the next flight only when upstream has said that it may have the object.
CONTESTED = 5.0
# Wrong bytes once may be chance on the way; so often in a row, they are what the upstream has.
PERSISTENT = 2


class _Broken(NamedTuple):
    """Until when an object's flight counts as broken, why, how much of it clients may have, and how many flights in a row
    had wrong bytes.
    """

    until: float
    failure: Failure
    received: int
    mismatches: int


class RecentFailures:
    """Remembers for seconds, by registry and digest. A change of settings ends that."""

    def __init__(self, settings: Settings | Live, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._broken: dict[tuple[str, str], _Broken] = {}
        # Until when a client that starts an object's flight has to be let through by upstream first.
        self._contested: dict[tuple[str, str], float] = {}
        Live.of(settings).listen(lambda settings: self.forget())

    def forget(self) -> None:
        """After a change of settings: failures of before count no more."""
        self._broken.clear()
        self._contested.clear()

    def broke(self, flight: Flight, error: RequestError | NotKept) -> None:
        """The flight broke, and clients have bytes of it that are not verified: they are not to resume here for a while."""
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
        """Its bytes were right this time."""
        if (broken := self._broken.get(flight.key)) is not None:
            self._broken[flight.key] = broken._replace(mismatches=0)

    def contest(self, flight: Flight) -> None:
        """Several other logins waited for a flight that upstream refused to the one who started it."""
        _bound(self._contested)
        self._contested[flight.key] = self._monotonic() + CONTESTED

    def recent(self, registry: str, digest: str) -> RequestError | None:
        """Why an object could not be fetched just now."""
        if (known := self._find(registry, digest)) is None:
            return None
        return RequestError(known.failure)

    def resume_refused(self, registry: str, digest: str, start: int) -> RequestError | None:
        """Why a client may not begin at byte `start` here: the bytes that it has may come from a flight that broke.

        A client may begin anew, from the first byte, unless the last flights brought wrong bytes in a row: then it gets
        right ones elsewhere only.
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
        """Whether strangers' logins kept others waiting for this object just now."""
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
