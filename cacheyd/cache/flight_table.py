"""The table of flights: it has at most one flight for each registry and digest."""

from collections.abc import Iterator

from cacheyd.cache.flight import Flight


class FlightTable:
    """At most one flight for each registry and digest. No await stands between a look at the table and a change of it.

    The key has the registry, too: a client can name a registry that sends wrong bytes, or never sends any, and this must not
    harm other clients.
    """

    def __init__(self) -> None:
        self._flights: dict[tuple[str, str], Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Flight]:
        return iter(list(self._flights.values()))

    def get(self, registry: str, digest: str) -> Flight | None:
        """The flight that is under way, if there is one."""
        return self._flights.get((registry, digest))

    def add(self, flight: Flight) -> None:
        """Registers a new flight; its place must be free."""
        assert flight.key not in self._flights
        self._flights[flight.key] = flight

    def remove(self, flight: Flight) -> bool:
        """Removes a flight; gives whether it was still in the table."""
        if self._flights.get(flight.key) is not flight:
            return False
        del self._flights[flight.key]
        return True
