"""`min_age`, its arithmetic: dates as images have them, and which tags have an age."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheyd.cache.age import EARLIEST, MinAges, believed, parse_created, ripe_at, shown, why
from cacheyd.cache.sightings import reference_of
from cacheyd.protocol.media_types import OCI_INDEX, OCI_MANIFEST
from cacheyd.settings.load import load
from cacheyd.store.sights import Sight

NOW, DAY = 1_700_000_000.0, 86400.0
TAG = reference_of("reg.test/lab/img:1.0")
ASKED = frozenset({OCI_INDEX, OCI_MANIFEST})


def digest(number: int) -> str:
    return "sha256:" + hashlib.sha256(str(number).encode()).hexdigest()


# Dates


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2020-05-06T07:08:09Z", 1588748889.0),
        ("2020-05-06t07:08:09z", 1588748889.0),
        ("2020-05-06T07:08:09.123456789Z", 1588748889.0),
        ("2020-05-06T09:08:09+02:00", 1588748889.0),
        ("2013-01-01T00:00:00Z", EARLIEST),
        ("2012-12-31T23:59:59Z", None),
        ("1980-01-01T00:00:01Z", None),
        ("1970-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", 253402351199.0),
        ("2020-02-30T00:00:00Z", None),
        ("2020-05-06T07:08:09", None),
        ("2020-05-06", None),
        ("2020-05-06T07:08:09+99:99", None),
        ("٢٠٢٠-05-06T07:08:09Z", None),
        ("2020-05-06T07:08:09." + "1" * 100 + "Z", None),
        ("", None),
        (1588748889, None),
        (None, None),
        ({}, None),
    ],
)
def test_a_date(text: object, found: float | None) -> None:
    assert parse_created(text) == found


@given(st.text() | st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})"))
def test_whatever_a_date_is_it_is_no_error(text: str) -> None:
    assert believed(parse_created(text), NOW) <= NOW


@given(st.floats(allow_nan=False, min_value=0, max_value=1e15))
def test_any_time_can_be_shown(at: float) -> None:
    assert shown(at).endswith("Z")


def test_dates_to_come_say_nothing() -> None:
    assert believed(NOW + 1, NOW) == 0
    assert believed(NOW, NOW) == NOW
    assert believed(None, NOW) == 0


@pytest.mark.parametrize(
    ("sight", "evidence", "at"),
    [
        (Sight(NOW), "any", NOW + DAY),
        (Sight(NOW, 0.0), "any", NOW + DAY),
        (Sight(NOW, NOW - DAY), "any", NOW),
        (Sight(NOW, NOW - DAY), "seen", NOW + DAY),
        (Sight(NOW - DAY, NOW), "any", NOW),
        (Sight(NOW, released=True), "seen", 0.0),
    ],
)
def test_when_it_may_be_served(sight: Sight, evidence: str, at: float) -> None:
    assert ripe_at(sight, DAY, evidence) == at


def test_why_it_is_held() -> None:
    assert why(Sight(NOW, NOW - 60), 3 * DAY, "any") == (
        "younger than 3d: created 2023-11-14T22:12:20Z, first seen here 2023-11-14T22:13:20Z"
    )
    assert why(Sight(NOW, NOW - 60), 5400, "seen") == "younger than 90m: first seen here 2023-11-14T22:13:20Z"
    assert why(Sight(NOW), 1.5, "any") == "younger than 1.5s: first seen here 2023-11-14T22:13:20Z"


# Which tags


def test_which_tags_have_an_age() -> None:
    settings = load(environ={}, flags={"min_age": "1d", "min_ages": "reg.test/lab/img:free=0,*/*:latest=7d,ghcr.io=2d"})
    ages = MinAges(settings)
    wanted = {
        "reg.test/lab/img:1.0": DAY,
        "reg.test/lab/img:free": 0,
        "reg.test/lab/img:latest": 7 * DAY,
        "ghcr.io/a/b:1": 2 * DAY,
        "docker.io/nginx:latest": 7 * DAY,
        f"reg.test/lab/img:sha256-{'0' * 64}.sig": 0,
        f"reg.test/lab/img:sha512-{'0' * 128}": 0,
        f"reg.test/lab/img:sha256-{'0' * 65}": DAY,
        f"reg.test/lab/img:sha256-{'0' * 64}-x": DAY,
    }
    assert {name: ages.of(reference_of(name)) for name in wanted} == wanted
    assert ages.of(replace(TAG, reference=digest(1), digest=digest(1))) == 0
    assert not MinAges(load(environ={}, flags={"min_ages": "*/*:latest=0"})).any
