"""The table keeps flights single."""

import pytest

from cacheyd.cache.flight import Flight
from cacheyd.cache.flight_table import FlightTable
from tests.support.flights import ASKER, DIGEST


def test_the_table_keeps_flights_single() -> None:
    table = FlightTable()
    flight = Flight(DIGEST, ASKER)
    assert table.get(ASKER.registry, DIGEST) is None

    table.add(flight)
    assert table.get(ASKER.registry, DIGEST) is flight
    assert len(table) == 1
    with pytest.raises(AssertionError):
        table.add(Flight(DIGEST, ASKER))

    table.remove(flight)
    table.remove(flight)
    assert (table.get(ASKER.registry, DIGEST), len(table)) == (None, 0)


def test_removing_an_old_flight_leaves_its_successor_alone() -> None:
    table = FlightTable()
    old, new = Flight(DIGEST, ASKER), Flight(DIGEST, ASKER)
    table.add(old)
    table.remove(old)
    table.add(new)

    table.remove(old)
    assert table.get(ASKER.registry, DIGEST) is new
