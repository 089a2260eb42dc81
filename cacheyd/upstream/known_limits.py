"""Rate limits in force, and the order of the requests after a limit ends."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from cacheyd.protocol.errors import Failure, RequestError
from cacheyd.upstream.port import Relay, Relayed

# The shortest time until a request asks again, also if a limit is shorter (seconds).
LEAST = 0.1
# The time between the requests for different things that wait for the same limit, and the latest time for such a request
# after the end of the limit (seconds).
SPACING, SPREAD = 0.025, 1.0
# The most limits that are remembered.
MAX_REMEMBERED = 4000
# The most things of all registries that wait for limits to end: by default, at most this many clients wait at all.
MAX_THINGS = 4096
# How long waits without an answer count for later requests, too (seconds): clients repeat requests that were refused.
FORGIVEN_AFTER = 30.0

type Key = tuple[str, str, bytes]


@dataclass(slots=True)
class _Limit:
    until: float
    said: Relay | Failure
    again_at: float | None


@dataclass(slots=True)
class _Waits:
    """How long clients waited for a limit in all (seconds), and the end of the last wait."""

    seconds: float = 0.0
    until: float = 0.0


class Limits:
    """The limits in force, each for one repository and one login at a registry; gives turns to requests after their end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._known: dict[Key, _Limit] = {}
        # The last turn of each limit, and the turn of each thing (by its hash, because queries can be long).
        self._turns: dict[Key, float] = {}
        self._things: dict[tuple[Key, int], float] = {}
        self._waits: dict[Key, _Waits] = {}

    def check(self, key: Key) -> None:
        """Raises the remembered answer if the limit of this key is still in force."""
        known = self._known.get(key)
        if known is None:
            return
        if self.clock() < known.until:
            raise _error(known.said, known.again_at)
        del self._known[key]

    def note(self, key: Key, until: float, said: Relay | Failure, again_at: float | None) -> None:
        """Remembers a limit that is in force until `until`. Forgets the oldest limits if there are too many."""
        _make_room(self._known)
        self._known[key] = _Limit(until, said, again_at)

    def forget(self) -> None:
        """Forgets all limits."""
        self._known.clear()
        self._turns.clear()
        self._things.clear()
        self._waits.clear()

    def may_wait(self, key: Key, end: float, most: float) -> bool:
        """Whether to wait until `end`: all waits for this limit together can take at most `most` seconds. Counts the wait.

        A wait at the same time as another wait costs no further seconds.
        """
        now = self.clock()
        waits = self._waits.get(key)
        if waits is None or now > waits.until + FORGIVEN_AFTER:
            self._waits.pop(key, None)
            _make_room(self._waits)
            waits = self._waits[key] = _Waits()
        seconds = waits.seconds + max(0.0, end - max(now, waits.until))
        if seconds > most:
            return False
        waits.seconds, waits.until = seconds, max(end, waits.until)
        return True

    def over(self, key: Key) -> None:
        """Ends the waits for this limit: an answer came."""
        self._waits.pop(key, None)

    def turn(self, key: Key, thing: Hashable, end: float) -> float | None:
        """When to ask for `thing` after a limit that ends at `end`. All requests for a thing share one turn; the turns of
        different things follow one by one.

        None if too many other things wait.
        """
        now, place = self.clock(), (key, hash(thing))
        last = self._turns.get(key, 0.0)
        if last < now:
            last = end - SPACING
        elif (mine := self._things.get(place, 0.0)) >= end:
            return mine
        mine = max(end, last + SPACING)
        if mine > end + SPREAD:
            return None
        if place not in self._things and len(self._things) >= MAX_THINGS:
            self._things = {old: at for old, at in self._things.items() if at >= now}
            self._turns = {old: at for old, at in self._turns.items() if at >= now}
            if len(self._things) >= MAX_THINGS:
                return None
        self._things[place] = self._turns[key] = mine
        return mine


def _make_room(known: dict[Key, Any]) -> None:
    """Forgets the oldest half if too much is remembered."""
    if len(known) >= MAX_REMEMBERED:
        for old in list(known)[: MAX_REMEMBERED // 2]:
            del known[old]


def _error(said: Relay | Failure, again_at: float | None) -> Relayed | RequestError:
    if isinstance(said, Relay):
        return Relayed(said)
    return RequestError(said, again_at)
