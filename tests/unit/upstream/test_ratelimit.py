"""Rate limits: the three forms of a date, what can be meant, and whose turn it is."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheyd.protocol.errors import Blame, Code, Failure, RequestError
from cacheyd.upstream.known_limits import MAX_REMEMBERED, MAX_THINGS, SPACING, SPREAD, Limits
from cacheyd.upstream.patience import CLIENTS_WAIT, MAX_TRIES, Patience
from cacheyd.upstream.port import Relay, Relayed
from cacheyd.upstream.retry_after import ABSURD, http_date, stated_wait
from tests.support.stores import Clock

# RFC 9110 section 5.6.7.
EXAMPLE = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC).timestamp()
NOW = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC).timestamp()
KEY = ("reg.test", "app", b"alice")
RELAY = Relay(429, (), b"")


@pytest.mark.parametrize(
    "text",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "sun, 06 nov 1994 08:49:37 gmt",
    ],
)
def test_the_forms_of_a_date(text: str) -> None:
    assert http_date(text, NOW) == EXAMPLE


@pytest.mark.parametrize(
    ("text", "year"),
    [("26", 2026), ("76", 2076), ("77", 1977), ("99", 1999), ("00", 2000)],
)
def test_years_of_two_digits(text: str, year: int) -> None:
    found = http_date(f"Sunday, 06-Nov-{text} 08:49:37 GMT", NOW)
    assert found == datetime(year, 11, 6, 8, 49, 37, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "Sun, 06 Nov 1994 08:49:37", "Sun, 06 Nov 1994 08:49:37 UTC", "Sun, 6 Nov 1994 08:49:37 GMT",
        "Sun, 31 Feb 1994 08:49:37 GMT", "Sun, 06 Foo 1994 08:49:37 GMT", "Sun, 06 Nov 1994 24:49:37 GMT",
        "Sun, 06 Nov 1994 08:60:37 GMT", "Sun, 06 Nov 1994 08:49:61 GMT", "Sun, 06 Nov 0000 08:49:37 GMT",
        "Sun, 00 Nov 1994 08:49:37 GMT", "1994-11-06T08:49:37Z", "Sun, 06 Nov 1994 08:49:37 +0000",
        "Sun Nov 06  08:49:37 1994",
        "Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT", "Sun, \u0660\u0666 Nov 1994 08:49:37 GMT",
    ],
)  # fmt: skip
def test_what_is_no_date(text: str) -> None:
    assert http_date(text, NOW) is None


def test_a_leap_second() -> None:
    assert http_date("Sat, 31 Dec 2016 23:59:60 GMT", NOW) == datetime(2016, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()


@given(st.text())
def test_whatever_stands_there_is_a_time_or_nothing(text: str) -> None:
    wait = stated_wait(text, text, NOW)
    assert wait is None or 0 <= wait <= ABSURD


def date(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


@pytest.mark.parametrize(
    ("retry_after", "its_date", "wait"),
    [
        (None, None, None), ("", None, None), ("0", None, 0.0), ("7", None, 7.0), (" 7 ", None, 7.0), ("-1", None, None),
        ("1.5", None, None), ("99999999", None, None), ("9" * 30, None, None), ("7", date(NOW - 3600), 7.0),
        (date(NOW + 7), None, 7.0), (date(NOW - 7), None, 0.0), (date(NOW + 7), date(NOW), 7.0),
        (date(NOW + 3607), date(NOW + 3600), 7.0), (date(NOW - 3593), date(NOW - 3600), 7.0),
        (date(NOW - 3593), date(NOW), 0.0), (date(NOW + 7), "never", 7.0), (date(NOW + 7), "", 7.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None, None), ("Fri, 31 Dec 9999 23:59:59 GMT", date(NOW), None),
    ],
)  # fmt: skip
def test_how_long_to_wait(retry_after: str | None, its_date: str | None, wait: float | None) -> None:
    assert stated_wait(retry_after, its_date, NOW) == wait


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


async def test_patience_is_for_all_limits_together(monotonic: Clock) -> None:
    limits = Limits(monotonic)
    patience = Patience(limits, KEY, "x", monotonic.now, 0.3)
    stays = lambda: False  # noqa: E731
    assert not await patience.outlast(Relayed(RELAY), stays)
    assert not await patience.outlast(Relayed(Relay(429, (), b"", again_at=monotonic.now + 0.4)), stays)
    # This clock stands still where nobody moves it: what has passed is over at once.
    for _ in range(MAX_TRIES):
        assert await patience.outlast(Relayed(Relay(429, (), b"", again_at=monotonic.now)), stays)
    assert not await patience.outlast(Relayed(Relay(429, (), b"", again_at=monotonic.now)), stays)


async def test_who_has_left_waits_for_nothing(monotonic: Clock) -> None:
    patience = Patience(Limits(monotonic), KEY, "x", monotonic.now, 5.0)
    assert not await patience.outlast(Relayed(Relay(429, (), b"", again_at=monotonic.now + 4)), lambda: True)


async def test_clients_that_have_waited_long_already_are_told(monotonic: Clock) -> None:
    patience = Patience(Limits(monotonic), KEY, "x", monotonic.now, 5.0)
    monotonic.now += CLIENTS_WAIT / 2
    assert not await patience.outlast(Relayed(Relay(429, (), b"", again_at=monotonic.now + 1)), lambda: False)
    assert patience.left == CLIENTS_WAIT / 2


async def test_what_was_waited_for_in_vain_is_not_waited_for_again(monotonic: Clock) -> None:
    """containerd repeats a HEAD six times, and would be kept waiting each time."""
    limits = Limits(monotonic)

    async def request(end: float) -> bool:
        patience = Patience(limits, KEY, "x", monotonic.now, 5.0)
        waited = await patience.outlast(Relayed(Relay(429, (), b"", again_at=end)), lambda: False)
        monotonic.now = max(monotonic.now, end) if waited else monotonic.now
        return waited

    began = monotonic.now
    assert limits.may_wait(KEY, began + 4, 5.0)
    # Others wait for the same end: that takes no longer.
    assert limits.may_wait(KEY, began + 4, 5.0)
    monotonic.now = began + 4
    assert not await request(began + 8)
    assert limits.may_wait(("reg.test", "other", b"alice"), began + 8, 5.0)
    # Until something comes, or much time has passed.
    limits.over(KEY)
    assert limits.may_wait(KEY, began + 8, 5.0)
    monotonic.now = began + 8
    assert not limits.may_wait(KEY, began + 12, 5.0)
    monotonic.now = began + 40
    assert limits.may_wait(KEY, began + 44, 5.0)
