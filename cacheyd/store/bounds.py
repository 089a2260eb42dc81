"""The bounds of the store: makes room for new bytes, and removes the objects that were not used for the longest time."""

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
# How often `make` looks for free room on the disk after an eviction; the pause before the next look (seconds).
ROOM_LOOKS, ROOM_PAUSE = 20, 0.05


class Bounds:
    """Decides when objects have to be removed, and how many bytes of them."""

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
        # How many bytes the store may hold at the low watermark, until it has removed enough to get there; else None.
        self._aim: int | None = None
        self._aim_by = live.settings

    @property
    def full(self) -> bool:
        """Whether there is no room, and no more object may be removed."""
        return self._fullness.full

    def credit(self, registry: str) -> int:
        """The bytes that a registry's unverified bytes may displace beyond a tenth of the store: as many as it delivered."""
        return self.space.credit(self._catalog.delivered(registry))

    def can_take(self, size: int, credit: int = 0) -> bool:
        """Whether the store could keep an object of `size` bytes that is only promised so far. Removes nothing.

        Use this for the head of a response. If `make(more, unverified=True)` follows for each piece as it comes, the whole
        object will find room, unless other fetches take the room first.
        """
        if not (over := self.space.missing(size, low=1.0)):
            return True
        if not self.space.can_fit(size) or self._fullness.pauses:
            return False
        return over <= self.space.displaceable(credit)

    async def make(self, size: int, *, unverified: bool = False, credit: int = 0) -> bool:
        """Removes objects until `size` bytes more have room; gives whether they fit then.

        `unverified` bytes, those on their way in, displace no more than a tenth of the store, plus the `credit` that their
        registry had when they began to come. Verified bytes displace any objects, those first that were not used for the
        longest time.
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
            # The disk gets the room of an open file only when its reader is done. The bound max_size does not depend on this.
            max_size = space.max_size
            if not space.missing(size) or (max_size and space.held + size > max_size):
                break
            await asyncio.sleep(ROOM_PAUSE)
        # `keep` goes down to the low watermark; for `make` it is enough to be below the limit.
        fits = not space.missing(size)
        if fits or (self._unread.loaded and not (unverified and self._catalog.may_go())):
            # Before the index is loaded, the store does not know which objects it may remove.
            self._fullness.note(full=not fits)
        return fits

    async def _make(self, size: int) -> bool:
        """Removes files for `size` verified bytes; gives whether it removed any."""
        evicted = False
        while over := self.space.missing(size):
            self._aim_at(self.space.held + size - over)
            if not await self._evict("room", over):
                break
            evicted = True
        return evicted

    async def _make_from_spare(self, size: int, credit: int) -> bool:
        """Removes files for `size` unverified bytes; gives whether it removed any. Removes none if that is not enough."""
        evicted = False
        while (over := self.space.missing(size, low=1.0)) and self.can_take(size, credit):
            # This goes down to the low watermark, as far as `spare` allows: else each piece would evict again.
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
        """Evicts objects that are beyond the bounds or too old; gives how many files it removed."""
        count = 0
        if self._health.lost_directory:
            return 0
        async with self._lock:
            settings = self._live.settings
            if settings is not self._aim_by:
                # The aim is from earlier settings.
                self._aim = None
            if settings.max_age:
                count += await self._eviction.expire(self._clock() - settings.max_age)
            if self.full and not self.space.missing():
                # Other programs have made room: an aim from the time without room does not count any more.
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
        """The most bytes of objects that may be removed to keep the bounds; None (no limit) only if objects exceed them."""
        return None if self._aim is not None or self.space.missing_for_objects() else self.space.spare()

    def _left(self) -> int:
        """How many bytes have to be removed: down to the low watermark, if objects alone have passed a limit."""
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
        """Removes `size` bytes: partial files without a fetch, else objects up to `most`. Gives how many files it removed."""
        if freed := await self._partials.drop_idle(size):
            # This can be enough: objects are not evicted for the low watermark alone.
            self._aim = None
            return freed
        return await self._eviction.evict(reason, size, most)
