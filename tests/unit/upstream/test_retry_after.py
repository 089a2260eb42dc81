"""How long an upstream wants to be left alone: the three forms of a date, and what can be meant."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheyd.upstream.retry_after import (
    ABSURD,
    RATE_LIMIT_DEFAULT,
    RATE_LIMIT_MAX,
    http_date,
    retry_after,
    stated_wait,
)

# RFC 9110 section 5.6.7.
EXAMPLE = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC).timestamp()
NOW = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC).timestamp()


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


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, RATE_LIMIT_DEFAULT),
        ("0", 0.0),
        ("30", 30.0),
        (" 30 ", 30.0),
        ("86400", RATE_LIMIT_MAX),
        ("-1", RATE_LIMIT_DEFAULT),
        ("1.5", RATE_LIMIT_DEFAULT),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("9" * 30, RATE_LIMIT_DEFAULT),
    ],
)
def test_how_long_a_rate_limit_lasts(value: str | None, seconds: float) -> None:
    assert retry_after(() if value is None else (("Retry-After", value),)) == seconds
