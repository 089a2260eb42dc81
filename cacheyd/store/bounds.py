"""The bounds of the store: room for what comes, at the price of what was not used for longest."""

import asyncio
import logging
from collections.abc import Callable

from cacheyd.settings.live import Live
from cacheyd.store.catalog import Catalog
from cacheyd.store.eviction import Eviction
from cacheyd.store.fullness import Fullness
from cacheyd.store.health import Health
from cacheyd.store.partials import Partials
from cacheyd.store.space import Space
from cacheyd.store.unread import Unread

log = logging.getLogger(__name__)

EVICT_EVERY = 2.0
# After an eviction the disk is looked at so often for the room, with such pauses (seconds).
ROOM_LOOKS, ROOM_PAUSE = 20, 0.05


class Bounds:
    """Decides when something has to go, and how much."""

    def __init__(
        self,
        space: Space,
        eviction: Eviction,
        fullness: Fullness,
        catalog: Catalog,
        partials: Partials,
        unread: Unread,
        health: Health,
        *,
        live: Live,
        clock: Callable[[], float],
    ) -> None:
        self.space = space
        self._eviction = eviction
        self._fullness = fullness
        self._catalog = catalog
        self._partials = partials
        self._unread = unread
        self._health = health
        self._live = live
        self._clock = clock
        self._lock = asyncio.Lock()
        # While the way down to the low watermark is not done: how many bytes may be held at its end.
        self._aim: int | None = None
        self._aim_by = live.settings

    @property
    def full(self) -> bool:
        """Whether there is no room, and nothing more may go."""
        return self._fullness.full

    def credit(self, registry: str) -> int:
        """What a registry's unverified bytes may displace beyond a tenth of the store: as much as it has delivered of it."""
        return self.space.credit(self._catalog.delivered(registry))

    def can_take(self, size: int, credit: int = 0) -> bool:
        """Whether an object of `size` bytes that is only promised so far could be kept. Removes nothing.

        For the head of a response: with `make(more, unverified=True)` for each piece as it comes, all of it will find
        room, unless others take it first.
        """
        if not (over := self.space.missing(size, low=1.0)):
            return True
        if not self.space.can_fit(size) or self._fullness.pauses:
            return False
        return over <= self.space.displaceable(credit)

    async def make(self, size: int, *, unverified: bool = False, credit: int = 0) -> bool:
        """Removes what is needed for `size` bytes more; whether they fit then.

        `unverified` bytes, those on their way in, displace no more than a tenth of the store, and the `credit` of their
        registry when they began to come; verified ones whatever was not used for longest.
        """
        space = self.space
        if not space.missing(size):
            self._fullness.note(full=False)
            return True
        if not space.can_fit(0):
            # Other programs have filled the disk.
            self._fullness.note(full=True)
        if not space.can_fit(size) or self._fullness.pauses:
            return False
        async with self._lock:
            evicted = await (self._make_from_spare(size, credit) if unverified else self._make(size))
        for _ in range(ROOM_LOOKS if evicted else 0):
            # The room of a file that is still open comes back when its reader is done: to the disk, not to max_size.
            max_size = space.max_size
            if not space.missing(size) or (max_size and space.held + size > max_size):
                break
            await asyncio.sleep(ROOM_PAUSE)
        # `keep` goes down to the low watermark; here it is enough to be below the limit.
        fits = not space.missing(size)
        if fits or (self._unread.loaded and not (unverified and self._catalog.may_go())):
            # Before all is loaded, nobody knows what may go.
            self._fullness.note(full=not fits)
        return fits

    async def _make(self, size: int) -> bool:
        """Whether something went."""
        evicted = False
        while over := self.space.missing(size):
            self._aim_at(self.space.held + size - over)
            if not await self._evict("room", over):
                break
            evicted = True
        return evicted

    async def _make_from_spare(self, size: int, credit: int) -> bool:
        """Whether something went. Nothing goes if it could not make enough room."""
        evicted = False
        while (over := self.space.missing(size, low=1.0)) and self.can_take(size, credit):
            # Down to the low watermark, as far as `spare` allows: else each piece would evict again.
            spare = self.space.spare(credit)
            if not await self._evict("room", max(over, min(spare, self.space.missing(size))), most=spare):
                break
            evicted = True
        return evicted

    async def keep_bounds(self) -> None:
        """Keeps the bounds as long as the store runs."""
        while True:
            await asyncio.sleep(EVICT_EVERY)
            try:
                await self.keep()
            except Exception:
                log.exception("eviction failed")

    async def keep(self) -> int:
        """Evicts what is beyond the bounds or too old; how many objects went."""
        count = 0
        if self._health.lost_directory:
            return 0
        async with self._lock:
            settings = self._live.settings
            if settings is not self._aim_by:
                # The aim was for other bounds.
                self._aim = None
            if settings.max_age:
                count += await self._eviction.expire(self._clock() - settings.max_age)
            if self.full and not self.space.missing():
                # Other programs have made room: an aim from when there was none does not count any more.
                self._fullness.note(full=False)
                self._aim = None
            while over := self._left():
                if self._fullness.pauses:
                    self._aim = None
                    break
                most = self._most()
                gone = await self._evict("size", over, most=most)
                count += gone
                if not gone:
                    self._aim = None
                    if most is not None:
                        break
                    self._fullness.note(full=self.space.missing() > 0)
        return count

    def _aim_at(self, held: int) -> None:
        self._aim, self._aim_by = held, self._live.settings

    def _most(self) -> int | None:
        """How many bytes of objects may go to keep the bounds: without limit only for what is verified itself."""
        return None if self._aim is not None or self.space.missing_for_objects() else self.space.spare()

    def _left(self) -> int:
        """How many bytes have to go: down to the low watermark, once a limit was passed by what is verified."""
        space = self.space
        if not space.missing_for_objects() and self._aim is None:
            over = space.missing(low=1.0)
            return over if over <= space.displaceable() else 0
        if over := space.missing():
            self._aim_at(space.held - over)
            return over
        left = 0 if self._aim is None else max(0, space.held - self._aim)
        if not left:
            self._aim = None
        return left

    async def _evict(self, reason: str, size: int, most: int | None = None) -> int:
        """Removes up to `size` bytes, partial files without a fetch first, and `most` of objects; how many files went."""
        if freed := await self._partials.drop_idle(size):
            # That may be enough: objects are not evicted for the low watermark alone.
            self._aim = None
            return freed
        return await self._eviction.evict(reason, size, most)
