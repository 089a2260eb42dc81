"""The table that keeps flights single: at most one for each registry and digest."""

from collections.abc import Iterator

from cacheyd.cache.flight import Flight


class FlightTable:
    """At most one flight per registry and digest. No await stands between a look at the table and a change of it.

    By registry, too: anybody may name a registry that sends wrong bytes, or none for ever, and must harm nobody else.
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
        """Frees its place; whether it still had one."""
        if self._flights.get(flight.key) is not flight:
            return False
        del self._flights[flight.key]
        return True
