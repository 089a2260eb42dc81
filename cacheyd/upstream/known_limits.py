"""Rate limits that are in force, and whose turn is next when one ends."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from cacheyd.protocol.errors import Failure, RequestError
from cacheyd.upstream.port import Relay, Relayed

# However short a limit is: nobody asks again earlier than this (seconds).
LEAST = 0.1
# Different things that wait for the same limit are asked for one after the other (seconds), up to so long after its end.
SPACING, SPREAD = 0.025, 1.0
# Limits that are remembered.
MAX_REMEMBERED = 4000
# Things that wait for limits to end, of all registries: clients that wait are no more than that by default.
MAX_THINGS = 4096
# Waits in vain count for those who ask again, too, for so long (seconds): clients repeat what is refused.
FORGIVEN_AFTER = 30.0

type Key = tuple[str, str, bytes]


@dataclass(slots=True)
class _Limit:
    until: float
    said: Relay | Failure
    again_at: float | None


@dataclass(slots=True)
class _Waits:
    """How long was waited for a limit in all, and up to when."""

    seconds: float = 0.0
    until: float = 0.0


class Limits:
    """Limits that are in force, each for one repository and one login at a registry; and who is next when they end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._known: dict[Key, _Limit] = {}
        # The last turn that was given for each limit, and those of each thing, by its hash: queries may be long.
        self._turns: dict[Key, float] = {}
        self._things: dict[tuple[Key, int], float] = {}
        self._waits: dict[Key, _Waits] = {}

    def check(self, key: Key) -> None:
        """Raises what was said of a limit that is still in force."""
        known = self._known.get(key)
        if known is None:
            return
        if self.clock() < known.until:
            raise _error(known.said, known.again_at)
        del self._known[key]

    def note(self, key: Key, until: float, said: Relay | Failure, again_at: float | None) -> None:
        """A limit is in force until then. The oldest ones are forgotten where there are too many."""
        _make_room(self._known)
        self._known[key] = _Limit(until, said, again_at)

    def forget(self) -> None:
        """No limit of before counts any more."""
        self._known.clear()
        self._turns.clear()
        self._things.clear()
        self._waits.clear()

    def may_wait(self, key: Key, end: float, most: float) -> bool:
        """Whether to wait until `end`, so that no more than `most` seconds are waited for this limit in all.

        Who waits at the same time as others costs nothing more.
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
        """What was waited for came."""
        self._waits.pop(key, None)

    def turn(self, key: Key, thing: Hashable, end: float) -> float | None:
        """When to ask for `thing` after a limit that ends at `end`. The same thing has one turn; others follow one by one.

        None if too many others wait.
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
    """Forgets the oldest half of what is remembered where that is too much."""
    if len(known) >= MAX_REMEMBERED:
        for old in list(known)[: MAX_REMEMBERED // 2]:
            del known[old]


def _error(said: Relay | Failure, again_at: float | None) -> Relayed | RequestError:
    if isinstance(said, Relay):
        return Relayed(said)
    return RequestError(said, again_at)
