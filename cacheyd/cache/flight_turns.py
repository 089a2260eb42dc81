"""Turns for flights: a flight waits for a turn, and can make another flight end early for it."""

import asyncio
import time
from collections.abc import Callable

from cacheyd.cache.flight import Flight
from cacheyd.cache.flight_table import FlightTable
from cacheyd.protocol.errors import upstream_error
from cacheyd.resources.slots import Slots
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings

# How often a waiting flight looks for a flight that has to make way (seconds); the least time between two flights that make
# way (seconds); the rate below which the slowest flight makes way for others (bytes a second); the time from its turn on in
# which no flight makes way (seconds).
LOOK_FOR_WAY, WAY_EVERY, SLOW, YOUNG = 1.0, 0.1, 64 << 10, 5.0


class FlightTurns:
    """Gives `max_flights` turns at once, and no registry more than half of them. A change of the setting needs a restart."""

    def __init__(
        self, flights: FlightTable, settings: Settings | Live, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._flights = flights
        self._live = Live.of(settings)
        self._monotonic = monotonic
        self._slots = Slots(self._live.settings.max_flights)
        self._made_way = float("-inf")

    async def take(self, flight: Flight) -> None:
        """Waits for a turn; `leave` gives the turn back. Raises RequestError if no turn is free within `head_timeout`."""
        registry = flight.requester.registry
        if not self._slots.try_enter(registry):
            await self._wait(flight, registry)
        flight.speed.begin(self._monotonic())

    def leave(self, flight: Flight) -> None:
        """Gives the turn back."""
        self._slots.leave(flight.requester.registry)

    async def _wait(self, flight: Flight, registry: str) -> None:
        def look() -> None:
            if not flight.demand.audience:
                raise upstream_error(503, "no client waits for this object any more")
            self._make_way(registry)

        try:
            async with asyncio.timeout(self._live.settings.head_timeout):
                await self._slots.enter_looking(registry, look, LOOK_FOR_WAY)
        except TimeoutError:
            raise upstream_error(503, "too many objects are being fetched") from None

    def _make_way(self, registry: str) -> None:
        """Ends one flight for the waiting flights: one without clients, else the slowest of the registries with more turns."""
        now = self._monotonic()
        if now - self._made_way < WAY_EVERY:
            return
        self._made_way = now
        mine = self._slots.taken(registry)
        old = [flight for flight in self._flights if flight.cut.error is None and 0 < flight.speed.began <= now - YOUNG]
        if not self._slots.full:
            old = [flight for flight in old if flight.requester.registry == registry]
        chosen = [flight for flight in old if not flight.demand.audience] or [
            flight for flight in old if _rate(flight, now) < SLOW and self._slots.taken(flight.requester.registry) > mine
        ]
        if chosen:
            slowest = min(chosen, key=lambda flight: _rate(flight, now))
            slowest.cut.off(upstream_error(503, "the fetch made way for others: it was slow, or no client waited for it"))


def _rate(flight: Flight, now: float) -> float:
    return flight.speed.rate(flight.body.received, now)
