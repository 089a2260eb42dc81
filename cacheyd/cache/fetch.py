"""Runs the fetches of blobs, one for each blob no matter how many clients wait, and owns the parts that all fetches need."""

import asyncio
import logging
import time
from collections.abc import Callable

from cacheyd.cache.asking import Asking
from cacheyd.cache.blob_fetch import BlobFetch
from cacheyd.cache.flight import Flight, FlightError, NotKept
from cacheyd.cache.flight_table import FlightTable
from cacheyd.cache.flight_turns import FlightTurns
from cacheyd.cache.incoming import Incoming
from cacheyd.cache.manifests import Manifests
from cacheyd.cache.recent_failures import RecentFailures
from cacheyd.cache.requester import requester_of
from cacheyd.cache.unpacking import Unpacking
from cacheyd.cache.usable import unexpected
from cacheyd.observe.events import Events
from cacheyd.protocol.errors import RequestError, upstream_error
from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.reference import Reference
from cacheyd.resources.budget import Budget
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.store.store import Store
from cacheyd.upstream.port import (
    PERSONAL,
    Relayed,
    Upstream,
)

log = logging.getLogger(__name__)


class Fetcher:
    """Fetches objects. `asking` asks upstream without a flight, `manifests` gets manifests, `failures` has recent failures."""

    def __init__(
        self,
        store: Store,
        upstream: Upstream,
        settings: Settings | Live,
        *,
        budget: Budget | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        events: Events | None = None,
    ) -> None:
        self.store = store
        self.flights = FlightTable()
        self._live = Live.of(settings)
        self._monotonic = monotonic
        self._events = events or Events()
        self.asking = Asking(upstream, self._live, budget=budget, clock=clock, monotonic=monotonic)
        self.budget = self.asking.budget
        self.manifests = Manifests(store, self.asking, self._live, events=self._events, clock=clock)
        self.failures = RecentFailures(self._live, monotonic)
        self._turns = FlightTurns(self.flights, self._live, monotonic)
        self._unpacking = Unpacking(store, self.asking.budget)
        self._tasks: set[asyncio.Task[None]] = set()

    def forget(self) -> None:
        """After a change of settings: earlier failures and rate limits do not count, and no request joins a running one.

        Holders of live settings need not call this method.
        """
        self.asking.forget()
        self.manifests.forget()
        self.failures.forget()

    def flight(self, ref: Reference, headers: HeaderList) -> Flight:
        """The flight of a blob: the flight that is under way, or a new one that starts with these headers."""
        assert ref.digest
        flight = self.flights.get(ref.registry, ref.digest)
        if flight is None:
            flight = Flight(ref.digest, requester_of(ref, headers), self.asking.budget)
            self.flights.add(flight)
            self.store.partials.reservations.expect(flight.digest)
            task = asyncio.create_task(self._run(self._fetch_of(flight, ref, headers)), name=f"flight {ref.digest[:19]}")
            if not task.done():
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return flight

    def _fetch_of(self, flight: Flight, ref: Reference, headers: HeaderList) -> BlobFetch:
        return BlobFetch(
            flight,
            ref,
            headers,
            Incoming(flight, ref, self.store, self.failures, self._events),
            asking=self.asking,
            unpacking=self._unpacking,
            settings=self._live,
            monotonic=self._monotonic,
        )

    async def stop(self) -> None:
        """Ends running flights; their bytes stay in partial files for the next process."""
        tasks = [*self._tasks, *self.manifests.tasks()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, fetch: BlobFetch) -> None:
        flight = fetch.flight
        try:
            await self._turns.take(flight)
            try:
                await fetch.run()
            finally:
                self._turns.leave(flight)
        except (Relayed, RequestError, NotKept) as error:
            if flight.streaming and not isinstance(error, Relayed):
                self.failures.broke(flight, error)
            if flight.demand.contested and isinstance(error, Relayed) and error.relay.status in PERSONAL:
                self.failures.contest(flight)
            self._end(fetch, error)
        except asyncio.CancelledError:
            # The file's descriptor stays open: a thread may still be writing to the file.
            flight.fail(upstream_error(503, "cacheyd is stopping"))
            raise
        except Exception as error:
            self._end(fetch, unexpected(flight.requester.registry, error))
        finally:
            fetch.incoming.claim.drop()
            self._remove(flight)
            flight.end()

    def _remove(self, flight: Flight) -> None:
        if self.flights.remove(flight):
            self.store.partials.reservations.expect_no_more(flight.digest)

    def _end(self, fetch: BlobFetch, error: FlightError) -> None:
        flight = fetch.flight
        self._remove(flight)
        if flight.verified:
            return
        fetch.incoming.give_up(error)
        if flight.streaming and not isinstance(error, NotKept):
            log.warning("fetch of %s ended at byte %d: %s", flight.digest, flight.received, error)
        flight.fail(error)
