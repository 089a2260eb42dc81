"""Flights that failed just now, until the settings change."""

from cacheyd.cache.flight import Flight
from cacheyd.cache.recent_failures import RecentFailures
from cacheyd.protocol.errors import upstream_error
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from tests.support.flights import ASKER, DIGEST
from tests.support.stores import Clock


def test_a_change_of_settings_ends_what_is_remembered(monotonic: Clock) -> None:
    live = Live(Settings())
    failures = RecentFailures(live, monotonic)
    flight = Flight(DIGEST, ASKER)
    flight.body.grew(10, ())
    failures.broke(flight, upstream_error(502, "broken"))
    failures.contest(flight)
    assert failures.recent(*flight.key)
    assert failures.resume_refused(*flight.key, 10)
    assert failures.is_contested(*flight.key)

    live.change(Settings())

    assert failures.recent(*flight.key) is None
    assert failures.resume_refused(*flight.key, 10) is None
    assert not failures.is_contested(*flight.key)
