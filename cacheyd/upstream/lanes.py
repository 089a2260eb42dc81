"""Gives turns at a registry to requests, in lanes: small requests never wait behind layers."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from cacheyd.protocol.reference import Kind
from cacheyd.resources.slots import Slots
from cacheyd.settings.settings import Settings
from cacheyd.upstream.port import UpstreamBroken, UpstreamRequest

# The most responses of all registries at once in each lane, as a multiple of `max_flights`.
LANE_WIDTH = 2
# How long a piece waits for a turn (seconds). After this time, its client waits for the fetch of the whole blob.
PIECE_PATIENCE = 1.0


class Lane(StrEnum):
    """The requests to one registry that wait behind each other. Small requests never wait behind layers or long lists."""

    BLOBS = "blobs"
    PIECES = "pieces"
    LISTS = "lists"
    SMALL = "small"


def lane_of(request: UpstreamRequest) -> Lane:
    """The lane in which a request waits for its turn."""
    if request.ref.kind in (Kind.TAGS, Kind.REFERRERS):
        return Lane.LISTS
    if request.piece:
        return Lane.PIECES
    return Lane.BLOBS if request.ref.kind is Kind.BLOB and request.method == "GET" else Lane.SMALL


@dataclass(slots=True)
class _Turns:
    """The turns of one lane at one registry; exists as long as a request has or wants a turn."""

    limit: int
    semaphore: asyncio.Semaphore
    users: int = 0


class Limiter:
    """Bounds the responses in each lane of one registry at once; further requests wait in their order of arrival."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, Lane], _Turns] = {}

    async def enter(self, registry: str, lane: Lane, limit: int, patience: float) -> Callable[[], None]:
        """Waits for a turn, at most `patience` seconds; returns the function that gives it back. Raises TimeoutError."""
        key = registry, lane
        turns = self._lanes.get(key)
        if turns is None or turns.limit != limit:
            turns = self._lanes[key] = _Turns(limit, asyncio.Semaphore(limit))
        turns.users += 1
        try:
            async with asyncio.timeout(patience):
                await turns.semaphore.acquire()
        except BaseException:
            self._leave(key, turns)
            raise

        def leave() -> None:
            turns.semaphore.release()
            self._leave(key, turns)

        return leave

    def _leave(self, key: tuple[str, Lane], turns: _Turns) -> None:
        turns.users -= 1
        if not turns.users and self._lanes.get(key) is turns:
            del self._lanes[key]


class Lanes:
    """The turns of all requests, bounded in each lane of one registry, and in each lane of all registries together."""

    def __init__(self, max_flights: int) -> None:
        self._of_registry = Limiter()
        # A second bound over all registries: an attacker can have a thousand names.
        self._of_all = {lane: Slots(LANE_WIDTH * max_flights) for lane in Lane}

    async def enter(self, request: UpstreamRequest, settings: Settings) -> Callable[[], None]:
        """Waits for a turn of a request; returns the function that gives it back. Raises UpstreamBroken if no turn comes in
        time.
        """
        registry, lane = request.ref.registry, lane_of(request)
        limit = settings.registry(registry).max_fetches
        patience = PIECE_PATIENCE if lane is Lane.PIECES else settings.head_timeout
        try:
            leave_lane = await self._of_registry.enter(registry, lane, limit, patience)
        except TimeoutError:
            raise UpstreamBroken(f"{limit} requests to {registry} are under way already", refused=True) from None
        turns = self._of_all[lane]
        try:
            if not turns.try_enter(registry):
                async with asyncio.timeout(patience):
                    await turns.enter(registry)
        except BaseException as error:
            leave_lane()
            if isinstance(error, TimeoutError):
                raise UpstreamBroken("too many requests to upstreams are under way already", refused=True) from None
            raise

        def leave() -> None:
            turns.leave(registry)
            leave_lane()

        return leave
