"""`min_age`, decided: what shows an age, what is held, and what no clock brings about."""

import asyncio
import hashlib
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheyd.cache.admission import Admission
from cacheyd.cache.cooldown import Cooldown
from cacheyd.cache.held_tags import listed, release
from cacheyd.cache.sightings import Sightings, reference_of
from cacheyd.observe.events import Events
from cacheyd.protocol.images import parse_image
from cacheyd.protocol.media_types import OCI_INDEX, OCI_MANIFEST
from cacheyd.protocol.reference import Reference
from cacheyd.settings.live import Live
from cacheyd.settings.load import load
from cacheyd.settings.settings import Settings
from cacheyd.store.records import TagVariant
from cacheyd.store.store import Store
from tests.support.memory_store import MemoryStore
from tests.support.stores import Clock

NOW, DAY = 1_700_000_000.0, 86400.0
TAG = reference_of("reg.test/lab/img:1.0")
ASKED = frozenset({OCI_INDEX, OCI_MANIFEST})


def digest(number: int) -> str:
    return "sha256:" + hashlib.sha256(str(number).encode()).hexdigest()


# The decisions


class Told(Events):
    """What happened to tags."""

    def __init__(self) -> None:
        self.actions: list[str] = []

    def held(self, registry: str, action: str) -> None:
        self.actions.append(action)


class Bench:
    """A cooldown over a store in memory, with clocks that the test moves together, or the wall clock alone."""

    def __init__(self, created: dict[str, float | None] | None = None, **flags: str) -> None:
        self.clock, self.monotonic = Clock(NOW), Clock(5.0)
        self.store = MemoryStore(clock=self.clock)
        self.events = Told()
        self.created = created or {}
        self.asked = 0
        self.start(**flags)

    def start(self, **flags: str) -> None:
        self.settings: Settings = load(environ={}, flags={"min_age": "1d"} | flags)
        self.live = Live(self.settings)
        store = cast("Store", self.store)
        self.sightings = Sightings(store, clock=self.clock, monotonic=self.monotonic)
        self.cooldown = Cooldown(store, self.sightings, self.live)
        self.admission = Admission(store, self.sightings, self.cooldown, self, self.live, self.events)

    @property
    def told(self) -> list[str]:
        return self.events.actions

    async def look(self, ref: Reference, headers: object, variant: TagVariant, data: bytes) -> None:
        self.asked += 1
        if variant.digest in self.created:
            self.sightings.learn(ref, variant.digest, self.created[variant.digest])

    def sleep(self, seconds: float) -> None:
        self.clock.now += seconds
        self.monotonic.now += seconds

    def upstream(self, number: int, asked: frozenset[str] = ASKED, ref: Reference = TAG) -> str | None:
        """Upstream says that the tag has this digest; what a client gets."""
        variant = TagVariant(asked, digest(number), OCI_INDEX, 10, self.clock.now)
        assert asyncio.run(self.admission.admit(ref, (), variant, b""))
        if self.cooldown.held_until(ref, variant.digest) is None:
            return variant.digest
        previous = self.cooldown.previous(ref, asked)
        return previous.digest if previous else None

    @property
    def tag(self) -> tuple[TagVariant, ...]:
        return tuple(self.store.tags.variants(TAG.registry, TAG.repository, TAG.reference))


def test_it_is_held_for_its_time_and_then_served() -> None:
    bench = Bench()
    assert bench.upstream(1) is None
    bench.sleep(DAY - 1)
    assert bench.upstream(1) is None
    bench.sleep(1)
    assert bench.upstream(1) == digest(1)
    assert bench.upstream(2) == digest(1)
    bench.sleep(DAY / 2)
    assert bench.upstream(3) == digest(1)
    bench.sleep(DAY / 2)
    # It was seen a day ago, and the other one half a day.
    assert bench.upstream(3) == digest(1)
    assert bench.upstream(2) == digest(2)
    assert bench.told == ["refused", "held", "held"]


def test_the_one_before_counts_as_confirmed_when_upstream_was_asked() -> None:
    bench = Bench({digest(1): NOW - 2 * DAY})
    bench.upstream(1)
    bench.sleep(100)
    bench.upstream(2)
    assert [(v.digest, v.checked) for v in bench.tag] == [(digest(1), NOW + 100)]


def test_what_a_tag_has_left_is_held_for_nobody() -> None:
    """Those who asked with other types have not heard of it, and `release` must not let through what is not there."""
    other = frozenset({OCI_MANIFEST, OCI_INDEX, "application/vnd.docker.distribution.manifest.v2+json"})
    bench = Bench({digest(1): NOW - 2 * DAY})
    for asked in (ASKED, other):
        bench.upstream(1, asked)
        bench.upstream(2, asked)
    store = cast("Store", bench.store)
    assert [row.digest for row in listed(store, bench.settings, NOW)] == [digest(2)]
    bench.upstream(3)
    assert [row.digest for row in listed(store, bench.settings, NOW)] == [digest(3)]
    assert release(store, parse_image("reg.test/lab/img:1.0"), NOW) == [digest(3)]
    assert bench.upstream(3, other) == digest(3)


def test_what_is_allowed_is_held_for_nobody() -> None:
    other = frozenset({OCI_MANIFEST, OCI_INDEX, "application/vnd.docker.distribution.manifest.v2+json"})
    bench = Bench()
    for asked in (ASKED, other):
        assert bench.upstream(1, asked) is None
    bench.start(min_age_action="allow")
    assert bench.upstream(1) == digest(1)
    assert list(listed(cast("Store", bench.store), bench.settings, NOW)) == []


def test_audit_says_what_it_lets_through() -> None:
    bench = Bench({digest(1): NOW - 2 * DAY})
    bench.upstream(1)
    bench.upstream(2)
    bench.live.change(load(environ={}, flags={"min_age": "1d", "min_age_action": "audit"}))
    assert bench.told == ["held", "audited"]
    assert bench.cooldown.count() == 0


def test_back_to_the_one_before_ends_the_hold() -> None:
    bench = Bench({digest(1): NOW - 2 * DAY})
    bench.upstream(1)
    bench.upstream(2)
    assert bench.cooldown.count() == 1
    assert bench.upstream(1) == digest(1)
    assert bench.cooldown.count() == 0
    assert bench.cooldown.hold(TAG, ASKED) is None


def test_a_date_is_looked_for_only_where_it_matters() -> None:
    bench = Bench({digest(1): NOW - 2 * DAY, digest(2): None})
    bench.upstream(1)
    bench.upstream(1)
    assert bench.asked == 1
    # One that says nothing is known to; of one that could not be asked nothing is.
    bench.upstream(2)
    bench.upstream(2)
    assert bench.asked == 2
    bench.upstream(3)
    bench.upstream(3)
    assert bench.asked == 4
    seen = Bench({digest(1): NOW - 2 * DAY}, min_age_evidence="seen")
    assert seen.upstream(1) is None
    assert seen.asked == 0


def test_clients_of_other_types_get_what_they_take() -> None:
    bench = Bench({digest(1): NOW - 2 * DAY})
    bench.upstream(1)
    assert bench.upstream(2, ASKED | {"application/x"}) == digest(1)
    assert bench.upstream(2, frozenset({OCI_MANIFEST})) is None
    assert bench.upstream(2, frozenset()) == digest(1)
    assert bench.told == ["held"]


def test_types_that_are_not_remembered_are_held_too() -> None:
    bench = Bench()
    many = frozenset(f"application/x{n}" for n in range(40))
    assert bench.upstream(1, many) is None
    assert bench.store.sights.holds("reg.test/lab/img:1.0") == ()
    bench.sleep(DAY)
    assert bench.upstream(1, many) == digest(1)


def test_an_audit_holds_nothing() -> None:
    bench = Bench(min_age_action="audit")
    assert [bench.upstream(n) for n in (1, 1, 2)] == [digest(1), digest(1), digest(2)]
    assert bench.told == ["audited", "audited"]


def test_allow_serves_what_comes_first() -> None:
    bench = Bench(min_age_action="allow")
    assert [bench.upstream(n) for n in (1, 1, 2)] == [digest(1)] * 3
    assert bench.told == ["allowed", "held"]


def test_what_is_allowed_for_want_of_a_type_is_not_for_others() -> None:
    bench = Bench({digest(1): NOW - 2 * DAY}, min_age_action="allow")
    bench.upstream(1)
    strange = frozenset({"application/strange"})
    for _ in range(2):
        assert bench.upstream(2, strange) is None
        assert bench.cooldown.allows(TAG)
        assert bench.upstream(2) == digest(1)
    assert bench.told == ["allowed"]
    (row,) = listed(cast("Store", bench.store), bench.settings, NOW)
    assert row.served == digest(1)


def test_without_an_age_nothing_is_remembered() -> None:
    bench = Bench(min_age="0s")
    variant = TagVariant(ASKED, digest(1), OCI_INDEX, 10, NOW)
    assert not bench.cooldown.active
    assert not asyncio.run(bench.admission.admit(TAG, (), variant, b""))
    assert len(bench.store.sights.seen) == 0


def test_released_is_released_for_good() -> None:
    bench = Bench()
    bench.upstream(1)
    (row,) = listed(cast("Store", bench.store), bench.settings, bench.clock.now)
    assert (row.image, row.digest, row.served, row.until) == ("reg.test/lab/img:1.0", digest(1), "", NOW + DAY)
    image = parse_image("reg.test/lab/img:1.0")
    assert release(cast("Store", bench.store), image, NOW) == [digest(1)]
    assert release(cast("Store", bench.store), image, NOW) == []
    assert bench.upstream(1) == digest(1)
    bench.upstream(2)
    assert bench.upstream(1) == digest(1)
    assert [row.served for row in listed(cast("Store", bench.store), bench.settings, NOW)] == []


def test_new_settings_let_go_what_they_do_not_hold() -> None:
    bench = Bench({digest(1): NOW - 2 * DAY})
    bench.upstream(1)
    bench.upstream(2)
    bench.live.change(load(environ={}, flags={"min_age": "1h"}))
    assert bench.upstream(2) == digest(1)
    bench.live.change(load(environ={}))
    assert [v.digest for v in bench.tag] == [digest(2)]
    assert not bench.cooldown.active


# Clocks


def test_a_clock_that_jumps_ahead_releases_nothing() -> None:
    bench = Bench()
    bench.upstream(1)
    bench.clock.now += 10 * 365 * DAY
    assert bench.upstream(1) is None
    # Nor does what is seen meanwhile become older when it is set right.
    bench.upstream(2)
    bench.clock.now -= 10 * 365 * DAY
    assert bench.upstream(2) is None
    bench.sleep(DAY)
    assert bench.upstream(1) == digest(1)


def test_a_clock_that_is_set_back_releases_nothing() -> None:
    bench = Bench()
    bench.upstream(1)
    bench.clock.now -= 10 * DAY
    assert bench.upstream(1) is None
    bench.upstream(2)
    bench.clock.now += 10 * DAY
    assert bench.upstream(1) is None
    assert bench.upstream(2) is None
    bench.sleep(DAY)
    assert bench.upstream(2) == digest(2)


def test_a_clock_that_was_not_set_yet_is_no_evidence() -> None:
    """A machine without a battery begins in 1970, and learns the time later."""
    bench = Bench()
    bench.clock.now = 100.0
    bench.start()
    assert bench.upstream(1) is None
    bench.clock.now = NOW
    assert bench.upstream(1) is None
    bench.sleep(DAY)
    assert bench.upstream(1) == digest(1)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_clock_that_was_far_ahead_holds_nothing_for_ever(restarted: bool) -> None:
    bench = Bench()
    bench.clock.now += 70 * 365 * DAY
    if restarted:
        bench.start()
    assert bench.upstream(1) is None
    bench.clock.now -= 70 * 365 * DAY
    bench.sleep(DAY / 2)
    bench.start()
    # The wait begins anew.
    assert bench.upstream(1) is None
    bench.sleep(DAY - 1)
    assert bench.upstream(1) is None
    bench.sleep(1)
    assert bench.upstream(1) == digest(1)


def test_a_clock_that_starts_behind_and_is_set_right_makes_nothing_older() -> None:
    bench = Bench()
    bench.upstream(1)
    bench.upstream(2)
    bench.clock.now -= 100 * DAY
    bench.start()
    assert bench.upstream(1) is None
    bench.clock.now += 100 * DAY
    # Whatever is seen next shows that it was behind.
    assert bench.upstream(2) is None
    bench.start()
    assert bench.upstream(1) is None
    bench.sleep(DAY)
    assert bench.upstream(1) == digest(1)


def test_a_clock_that_is_not_set_yet_begins_no_wait_anew() -> None:
    bench = Bench()
    bench.upstream(1)
    bench.sleep(DAY / 2)
    right, bench.clock.now = bench.clock.now, 100.0
    bench.start()
    assert bench.upstream(1) is None
    bench.clock.now = right
    assert bench.upstream(1) is None
    bench.sleep(DAY / 2)
    assert bench.upstream(1) == digest(1)


def test_a_clock_that_was_a_little_ahead_changes_no_first_sight() -> None:
    bench = Bench()
    bench.upstream(1)
    bench.clock.now -= DAY - 1
    bench.start()
    assert bench.upstream(1) is None
    bench.sleep(DAY)
    assert bench.upstream(1) is None
    bench.sleep(DAY)
    assert bench.upstream(1) == digest(1)


# Any course of things

STEPS = st.lists(
    st.tuples(st.sampled_from(("look", "look", "sleep", "jump", "restart")), st.integers(0, 3), st.integers(1, 100)),
    max_size=40,
)


@given(STEPS, st.sampled_from(("refuse", "allow")), st.dictionaries(st.integers(0, 3), st.integers(0, 200)))
def test_nothing_too_young_is_ever_served(steps: list[tuple[str, int, int]], action: str, ages: dict[int, int]) -> None:
    """Time goes in hours; an image is as old as it is known to be, whatever the clock of the running process says."""
    bench = Bench({digest(n): NOW - hours * 3600 for n, hours in ages.items()}, min_age_action=action)
    first: dict[int, float] = {}
    approved: set[int] = set()
    passed = jumped = 0.0
    for step, number, hours in steps:
        if step == "sleep":
            bench.sleep(hours * 3600)
            passed += hours
        elif step == "jump":
            bench.clock.now += (by := (hours - 50) * 3600)
            jumped += by
        elif step == "restart":
            # The clock is right when it starts.
            bench.clock.now -= jumped
            jumped = 0.0
            bench.start(min_age_action=action)
        else:
            first.setdefault(number, passed)
            known = passed - first[number] >= 24 or ages.get(number, 0) + passed >= 24
            got = bench.upstream(number)
            if got == digest(number):
                assert known or number in approved or (action == "allow" and not approved)
                approved.add(number)
            else:
                assert got is None or any(got == digest(n) for n in approved)
                assert got is not None or not approved


def test_everything_is_served_in_the_end() -> None:
    @given(st.lists(st.integers(0, 3), max_size=10))
    def check(moves: list[int]) -> None:
        bench = Bench()
        for number in moves:
            bench.upstream(number)
            bench.sleep(3600)
        bench.upstream(9)
        bench.sleep(DAY)
        assert bench.upstream(9) == digest(9)

    check()


def test_the_reference_of_a_tag() -> None:
    wanted: dict[str, Any] = {"registry": "reg.test:5000", "repository": "a/b", "reference": "1.0"}
    ref = reference_of("reg.test:5000/a/b:1.0")
    assert {name: getattr(ref, name) for name in wanted} == wanted
