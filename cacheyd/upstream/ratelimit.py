"""Rate limits of upstreams: what Retry-After says, whom a limit is for, and who waits for its end.

Sources: RFC 9110 sections 5.6.7 (the three forms of a date) and 10.2.3 (Retry-After).
"""

import asyncio
import re
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cacheyd.protocol.errors import Failure, RequestError
from cacheyd.protocol.headers import HeaderList, header
from cacheyd.upstream.port import Relay, Relayed

# A limit for longer than this is no limit but a mistake (seconds).
ABSURD = 366 * 86400.0
# However short a limit is: nobody is asked again before (seconds), and nobody waits more often than this.
LEAST, MAX_TRIES = 0.1, 5
# Different things that wait for the same limit are asked for one after the other (seconds), up to so long after its end.
SPACING, SPREAD = 0.025, 1.0
# A client that leaves ends its wait within (seconds).
LOOK_EVERY = 0.25
# containerd gives up after 30 s without a head; with what it waited here, an answer is there before (seconds).
CLIENTS_WAIT = 28.0
# Limits that are remembered.
MAX_REMEMBERED = 4000
# Things that wait for limits to end, of all registries: clients that wait are no more than that by default.
MAX_THINGS = 4096
# What was waited for in vain counts for those who ask again, too: clients repeat what is refused (seconds).
FORGIVEN_AFTER = 30.0
_SECONDS = re.compile(r"[0-9]{1,9}")
_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_IMF = re.compile(rf"[a-z]{{3}}, (?P<day>\d\d) (?P<month>[a-z]{{3}}) (?P<year>\d{{4}}) {_TIME} gmt", re.ASCII | re.IGNORECASE)
_RFC850 = re.compile(
    rf"[a-z]{{6,9}}, (?P<day>\d\d)-(?P<month>[a-z]{{3}})-(?P<year>\d\d) {_TIME} gmt", re.ASCII | re.IGNORECASE
)
_ASCTIME = re.compile(
    rf"[a-z]{{3}} (?P<month>[a-z]{{3}}) (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})", re.ASCII | re.IGNORECASE
)


def http_date(text: str, now: float) -> float | None:
    """The Unix time of an HTTP-date (RFC 9110 section 5.6.7), None for what is none.

    A year of two digits is read as the section says: none that would be more than 50 years after `now`.
    """
    match = _IMF.fullmatch(text) or _RFC850.fullmatch(text) or _ASCTIME.fullmatch(text)
    if match is None:
        return None
    year = int(match["year"])
    if len(match["year"]) == 2:
        this = time.gmtime(now).tm_year
        year += this - this % 100
        year -= 100 if year > this + 50 else 0
    try:
        month = _MONTHS.index(match["month"].lower()) + 1
        # A leap second is taken for the one before.
        clock = int(match["hour"]), int(match["minute"]), 59 if match["second"] == "60" else int(match["second"])
        return datetime(year, month, int(match["day"]), *clock, tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        return None


def stated_wait(retry_after: str | None, date: str | None, now: float) -> float | None:
    """For how many seconds a Retry-After wants to be left alone; None if it says nothing that can be meant.

    A date counts from the answer's own `date`, as its clock may be another one, else from `now` (Unix time). One that has
    passed is 0.
    """
    value = (retry_after or "").strip()
    if _SECONDS.fullmatch(value):
        wait = float(value)
    elif (until := http_date(value, now)) is not None:
        its_now = http_date((date or "").strip(), now)
        wait = max(0.0, until - (now if its_now is None else its_now))
    else:
        return None
    return wait if wait <= ABSURD else None


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
    """Limits that are in force, each for one repository and one login at its registry, and whose turn is when they end."""

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
        """When this is asked for again after a limit that ends at `end`: the same thing at once, others one by one.

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


class Patience:
    """One client's: it waits for limits of at most `most` seconds in all, as it would if it asked upstream itself.

    That is for it, and for all who ask for something of this repository with this login, until something comes.
    """

    def __init__(self, limits: Limits, key: Key, thing: Hashable, began: float, most: float) -> None:
        self._limits = limits
        self._key = key
        self._thing = thing
        self._began = began
        self._most = self._total = most
        self._tries = 0

    def succeeded(self) -> None:
        """It was worth it."""
        if self._tries:
            self._limits.over(self._key)

    @property
    def left(self) -> float:
        """How long the next try may take (seconds)."""
        return self._began + CLIENTS_WAIT - self._limits.clock()

    async def outlast(self, error: Relayed | RequestError, gone: Callable[[], bool]) -> bool:
        """Waits until it is worth asking again; False, at once, if it is not, or if nobody wants the answer any more."""
        end, now = error.again_at, self._limits.clock()
        if end is None or self._tries == MAX_TRIES or end - now > self._most:
            return False
        at = self._limits.turn(self._key, self._thing, end)
        if at is None or at > self._began + CLIENTS_WAIT / 2 or not self._limits.may_wait(self._key, end, self._total):
            return False
        self._tries += 1
        self._most -= max(0.0, end - now)
        while (wait := at - self._limits.clock()) > 0:
            if gone():
                return False
            await asyncio.sleep(min(wait + 0.001, LOOK_EVERY))
        return not gone()


RATE_LIMIT_DEFAULT, RATE_LIMIT_MAX = 1.0, 300.0


def wanted_wait(headers: HeaderList, now: float) -> float | None:
    """How long a Retry-After, in seconds or as a date, wants to be waited (seconds); None where there is none that can be
    meant. `now` is Unix time.
    """
    return stated_wait(header(headers, "retry-after"), header(headers, "date"), now)


def retry_after(headers: HeaderList, now: float | None = None) -> float:
    """Seconds of a Retry-After, bounded; one second where there is none."""
    wait = wanted_wait(headers, time.time() if now is None else now)
    return RATE_LIMIT_DEFAULT if wait is None else min(wait, RATE_LIMIT_MAX)
