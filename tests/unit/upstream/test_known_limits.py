"""Rate limits that are in force, and whose turn it is when one ends."""

import pytest

from cacheyd.protocol.errors import Blame, Code, Failure, RequestError
from cacheyd.upstream.known_limits import MAX_REMEMBERED, MAX_THINGS, SPACING, SPREAD, Limits
from cacheyd.upstream.port import Relay, Relayed
from tests.support.stores import Clock

KEY = ("reg.test", "app", b"alice")
RELAY = Relay(429, (), b"")


# What is remembered


def test_a_limit_holds_until_its_end(monotonic: Clock) -> None:
    limits = Limits(monotonic)
    limits.check(KEY)
    limits.note(KEY, monotonic.now + 5, RELAY, None)
    monotonic.now += 4.9
    with pytest.raises(Relayed) as caught:
        limits.check(KEY)
    assert caught.value.relay is RELAY
    for other in (("reg.test", "app", b"bob"), ("reg.test", "other", b"alice"), ("two.test", "app", b"alice")):
        limits.check(other)
    monotonic.now += 0.1
    limits.check(KEY)


def test_a_token_services_limit_is_an_error_of_its_own(monotonic: Clock) -> None:
    limits = Limits(monotonic)
    limits.note(KEY, monotonic.now + 1, Failure(503, Code.UNKNOWN, "busy", Blame.UPSTREAM), monotonic.now + 1)
    with pytest.raises(RequestError) as caught:
        limits.check(KEY)
    assert caught.value.again_at == monotonic.now + 1


def test_limits_are_forgotten(monotonic: Clock) -> None:
    limits = Limits(monotonic)
    for number in range(3 * MAX_REMEMBERED):
        limits.note(("reg.test", f"app{number}", b""), monotonic.now + 60, RELAY, None)
        assert len(limits._known) <= MAX_REMEMBERED
    limits.forget()
    limits.check(("reg.test", f"app{3 * MAX_REMEMBERED - 1}", b""))


# Whose turn it is


def test_the_same_thing_has_one_turn_and_others_one_by_one(monotonic: Clock) -> None:
    limits, end = Limits(monotonic), monotonic.now + 1
    assert [limits.turn(KEY, thing, end) for thing in "aabac"] == pytest.approx(
        [end, end, end + SPACING, end, end + 2 * SPACING]
    )
    assert limits.turn(("reg.test", "app", b"bob"), "x", end) == end


def test_too_many_are_told_at_once_and_cost_nobody_else_a_turn(monotonic: Clock) -> None:
    limits, end = Limits(monotonic), monotonic.now + 1
    turns = [limits.turn(KEY, number, end) for number in range(1000)]
    given = [turn for turn in turns if turn is not None]
    assert len(given) == pytest.approx(SPREAD / SPACING, abs=2)
    assert max(given) <= end + SPREAD
    monotonic.now = end + 2 * SPREAD
    assert limits.turn(KEY, "later", monotonic.now + 1) == monotonic.now + 1
    assert len(limits._turns) == 1


def test_what_had_its_turn_is_forgotten(monotonic: Clock) -> None:
    """A limit that is renewed each second for an hour, for more and more things of some repositories."""
    limits = Limits(monotonic)
    for second in range(400):
        monotonic.now += 1
        for number in range(30):
            turns = [limits.turn(("r", str(number), b""), (second, thing), monotonic.now + 1) for thing in range(40)]
            assert None not in turns
        assert len(limits._things) <= MAX_THINGS
        assert len(limits._turns) <= 30


def test_only_so_many_wait_whoever_they_are(monotonic: Clock) -> None:
    limits, end = Limits(monotonic), monotonic.now + 1
    turns = [limits.turn(("r", str(number), b""), "x" * 2000, end) for number in range(MAX_THINGS + 100)]
    assert turns == [end] * MAX_THINGS + [None] * 100
    # Who has a turn keeps it.
    assert limits.turn(("r", "0", b""), "x" * 2000, end) == end
    monotonic.now += 2
    assert limits.turn(("r", "new", b""), "x", monotonic.now + 1) == monotonic.now + 1
    assert (len(limits._things), len(limits._turns)) == (1, 1)


def test_those_who_waited_first_are_forgotten_first(monotonic: Clock) -> None:
    limits = Limits(monotonic)
    for number in range(2 * MAX_REMEMBERED):
        assert limits.may_wait(("r", str(number), b""), monotonic.now + 5, 5)
        assert len(limits._waits) <= MAX_REMEMBERED
    assert not limits.may_wait(("r", str(2 * MAX_REMEMBERED - MAX_REMEMBERED // 2), b""), monotonic.now + 6, 5)
