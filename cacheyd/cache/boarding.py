"""How a client gets to a blob's flight: the one that is under way or a new one, and only with permission."""

from cacheyd.cache.access import Access
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.flight import Flight, NotKept
from cacheyd.cache.growing import HOLD
from cacheyd.cache.questions import ask_of
from cacheyd.cache.request import Request
from cacheyd.cache.requester import requester_of
from cacheyd.protocol.errors import RequestError, upstream_error
from cacheyd.upstream.port import PERSONAL, Relayed

# A small blob is verified before its head goes out, if that takes no longer than this (seconds).
SMALL_WAIT = 10.0
# A blob of unknown length is waited for so long, so that clients learn its length (seconds).
LENGTH_WAIT = 15.0


class Boarding:
    """Finds or starts flights, and asks upstream first where a client has to be let through."""

    def __init__(self, fetcher: Fetcher, access: Access) -> None:
        self._fetcher = fetcher
        self._access = access

    async def board(self, request: Request, *, permitted: bool) -> Flight:
        """The blob's flight once upstream has answered; a refusal of somebody else's credentials is not this client's.

        Made-up logins are many: where several waited for one of them, they ask upstream whether they may have the blob
        before they start the next flight. Raises Relayed, RequestError, and NotKept where that did not help either.
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
        # The flight began after this client was let through: what is in one repository may not be in another.
        return running.requester.repository != ref.repository and self._access.verifies(ref)

    async def _begun(self, flight: Flight) -> None:
        """Waits until there can be a head, or more. Raises what the flight failed with by then."""
        with flight.wanted():
            await flight.opened()
            if flight.size is None:
                await flight.settled(LENGTH_WAIT)
            elif flight.size <= HOLD:
                await flight.settled(SMALL_WAIT)
            elif self._fetcher.failures.recent(*flight.key):
                # A client that gets a head and no byte, again and again, never asks elsewhere.
                await flight.begun(SMALL_WAIT)

    async def _prove(self, request: Request) -> None:
        """Asks upstream whether this client may have a blob. Raises Relayed with its refusal, RequestError."""
        ref, headers = request.ref, request.headers
        if self._access.verifies(ref):
            if not await self._access.ask(ref, headers):
                raise upstream_error(502, "upstream answered with something else where a blob was asked for")
            return
        method, response = await ask_of(self._fetcher, ref, headers)
        if response.status in PERSONAL:
            raise Relayed(await self._fetcher.asking.relay(response, from_head=method == "HEAD"))
        response.close()
