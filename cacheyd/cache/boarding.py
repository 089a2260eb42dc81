"""Brings a client to a blob's flight, a running or a new flight, and only with permission."""

from cacheyd.cache.access import Access
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.flight import Flight, NotKept
from cacheyd.cache.growing import HOLD
from cacheyd.cache.questions import ask_of
from cacheyd.cache.request import Request
from cacheyd.cache.requester import requester_of
from cacheyd.protocol.errors import RequestError, upstream_error
from cacheyd.upstream.port import PERSONAL, Relayed

# How long the head of a small blob waits until the blob is verified (seconds).
SMALL_WAIT = 10.0
# How long a client waits for a blob of unknown length, to learn its length (seconds).
LENGTH_WAIT = 15.0


class Boarding:
    """Finds or starts flights, and asks upstream first if a client needs a permission."""

    def __init__(self, fetcher: Fetcher, access: Access) -> None:
        self._fetcher = fetcher
        self._access = access

    async def board(self, request: Request, *, permitted: bool) -> Flight:
        """The blob's flight after upstream has answered; a refusal of another client's credentials does not count here.

        There can be many made-up logins: if several clients waited for the flight of such a login, each of them asks upstream
        for permission before it starts the next flight. Raises Relayed, RequestError, and NotKept if this does not help
        either.
        """
        ref = request.ref
        mine = requester_of(ref, request.headers)
        refused = False
        while True:
            if not permitted and self._has_to_prove(request):
                await self._prove(request)
                permitted = True
                continue
            flight = self._fetcher.flight(ref, request.headers)
            flight.joined(mine)
            try:
                await self._begun(flight)
            except (Relayed, RequestError) as error:
                if mine.shares(flight.requester, error):
                    raise
                if refused:
                    raise NotKept from error
                refused = True
            else:
                return flight

    def _has_to_prove(self, request: Request) -> bool:
        ref = request.ref
        running = self._fetcher.flights.get(ref.registry, ref.digest or "")
        if running is None:
            return self._fetcher.failures.is_contested(ref.registry, ref.digest or "")
        # The flight is for another repository: an object in one repository need not be in another.
        return running.requester.repository != ref.repository and self._access.verifies(ref)

    async def _begun(self, flight: Flight) -> None:
        """Waits until the answer's head can be sent, or longer. Raises the error of a flight that failed by then."""
        with flight.wanted():
            await flight.opened()
            if flight.size is None:
                await flight.settled(LENGTH_WAIT)
            elif flight.size <= HOLD:
                await flight.settled(SMALL_WAIT)
            elif self._fetcher.failures.recent(*flight.key):
                # A client that gets a head without bytes, again and again, would never ask elsewhere.
                await flight.begun(SMALL_WAIT)

    async def _prove(self, request: Request) -> None:
        """Asks upstream whether this client may have a blob. Raises Relayed with its refusal, RequestError."""
        ref, headers = request.ref, request.headers
        if self._access.verifies(ref):
            if not await self._access.ask(ref, headers):
                raise upstream_error(502, "upstream's answer to a request for a blob is not the blob")
            return
        method, response = await ask_of(self._fetcher, ref, headers)
        if response.status in PERSONAL:
            raise Relayed(await self._fetcher.asking.relay(response, from_head=method == "HEAD"))
        response.close()
