"""The bounds of the store: room for what comes, at the price of what was not used for longest."""

import asyncio
import logging
import os
from collections.abc import Callable

from cacheyd.observe.wording import shown_size
from cacheyd.store import partials
from cacheyd.store.shelf import Shelf

log = logging.getLogger(__name__)

EVICT_EVERY = 2.0
# What is not verified yet displaces no more than one of so many parts of what the store may hold.
UNVERIFIED = 10
# So many objects leave the catalogue in one go, before the event loop does something else.
BATCH = 200
# Room that is never used up by a fetch (bytes): the index and the log want some, too.
RESERVE = 16 << 20
# With fewer files left that could be made, objects make room, however many bytes are free.
FEW_FILES = 64
# After there was nothing that could go, it is not tried again for so long (seconds).
FULL_PAUSE = 5.0
# The room of files that went is waited for so often, with such pauses (seconds).
ROOM_LOOKS, ROOM_PAUSE = 20, 0.05
# That there is no room for large objects while there is for small ones is said no more often than this (seconds).
SAY_EVERY = 60.0


class Room:
    """Evicts. What is on its way in, and the images that it is part of, are left alone."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._lock = asyncio.Lock()
        self._full_until = 0.0
        self.full = False
        self._said = False
        self._say_again = float("-inf")
        # While the way down to the low watermark is not done: how many bytes may be held at its end.
        self._aim: int | None = None
        self._aim_by = shelf.settings

    def missing(self, size: int = 0, *, low: float | None = None) -> int:
        """How many bytes have to go, down to the low watermark (or `low`), for `size` more; 0 if they fit."""
        return self._missing(size, self._shelf.partial_bytes + self._shelf.promised, low)

    def _missing(self, size: int, unverified: int, low: float | None) -> int:
        """The same, with so many bytes in partial files."""
        shelf, settings = self._shelf, self._shelf.settings
        total = shelf.blobs.total()
        free = shelf.blobs.free()
        files = shelf.blobs.free_files()
        short_of_files = files is not None and files < FEW_FILES
        low = settings.low_watermark.share if low is None else low
        over = to_free(
            shelf.size + unverified,
            settings.max_size.of(total),
            None if free is None else free + shelf.partial_bytes - unverified,
            max(settings.min_free.of(total), RESERVE),
            low=low,
            size=size,
        )
        return max(over, int(shelf.size * (1 - low)), 1) if short_of_files else over

    def capacity(self) -> int:
        """What the store may hold (bytes): `max_size`, or what it has and what it may still write, if that is less."""
        shelf, settings = self._shelf, self._shelf.settings
        total, free = shelf.blobs.total(), shelf.blobs.free()
        max_size = settings.max_size.of(total) or 2**62
        if free is None:
            return max_size
        return max(0, min(max_size, shelf.size + shelf.partial_bytes + free - max(settings.min_free.of(total), RESERVE)))

    def credit(self, delivered: int) -> int:
        """The `credit` for `spare` of one who has delivered so many bytes of what is there now."""
        # In a store that is not full, nine tenths are more than what is there: what others delivered is what stays.
        return delivered and delivered + max(0, self.capacity() * (UNVERIFIED - 1) // UNVERIFIED - self._shelf.size)

    def spare(self, credit: int = 0) -> int:
        """How many bytes may be evicted for what is not verified yet: it never brings the store below nine tenths, less
        `credit`, which is what the registry that sends it had delivered of what was there.

        So a tenth is what a stranger can displace with bytes that turn out to be worth nothing, however often he tries: the
        room stays, and the next ones fit in it. Who has delivered more could displace as much in any case.
        """
        if not self._shelf.loaded:
            return 0
        kept = self.capacity() * (UNVERIFIED - 1) // UNVERIFIED - credit
        return max(0, self._shelf.size - max(0, kept))

    def can_take(self, size: int, credit: int = 0) -> bool:
        """Whether an object of `size` bytes, none of which is here or verified yet, could be kept. Removes nothing."""
        if not (over := self.missing(size, low=1.0)):
            return True
        if not self._can_fit(size) or (self.full and self._shelf.monotonic() < self._full_until):
            return False
        return over <= self._shelf.idle.total + self.spare(credit)

    def _can_fit(self, size: int) -> bool:
        """Whether an object of this size fits at all, whatever else would have to go."""
        shelf, settings = self._shelf, self._shelf.settings
        total = shelf.blobs.total()
        max_size, free = settings.max_size.of(total), shelf.blobs.free()
        if max_size and size > max_size:
            return False
        possible = shelf.size + shelf.partial_bytes
        return free is None or free + possible - size >= max(settings.min_free.of(total), RESERVE)

    async def make(self, size: int, *, unverified: bool = False, credit: int = 0) -> bool:
        """Room for `size` bytes more, if there can be. For `unverified` ones no more goes than `spare`."""
        if not self.missing(size):
            self._is_full(False)
            return True
        if not self._can_fit(0):
            # Others have filled the disk.
            self._is_full(True)
        if not self._can_fit(size) or (self.full and self._shelf.monotonic() < self._full_until):
            return False
        async with self._lock:
            evicted = await (self._make_from_spare(size, credit) if unverified else self._make(size))
        for _ in range(ROOM_LOOKS if evicted else 0):
            # What somebody has open still comes back when he is done: to the disk, not to max_size.
            max_size = self._shelf.settings.max_size.of(self._shelf.blobs.total())
            if not self.missing(size) or (max_size and self._held() + size > max_size):
                break
            await asyncio.sleep(ROOM_PAUSE)
        # Down to the low watermark is for `keep`: below the high one is enough here.
        fits = not self.missing(size)
        if fits or (self._shelf.loaded and not (unverified and self._shelf.catalog.may_go())):
            # Before that nobody knows what may go.
            self._is_full(not fits)
        return fits

    async def _make(self, size: int) -> bool:
        """Whether something went."""
        evicted = False
        while over := self.missing(size):
            self._aim, self._aim_by = self._held() + size - over, self._shelf.settings
            if not await self._evict("room", over):
                break
            evicted = True
        return evicted

    async def _make_from_spare(self, size: int, credit: int) -> bool:
        """Whether something went. Nothing does if it would not do."""
        evicted = False
        while (over := self.missing(size, low=1.0)) and self.can_take(size, credit):
            # Down to the low watermark, as far as that goes, or it would be done again for each piece.
            spare = self.spare(credit)
            if not await self._evict("room", max(over, min(spare, self.missing(size))), most=spare):
                break
            evicted = True
        return evicted

    def _is_full(self, full: bool) -> None:
        if full:
            self._full_until = self._shelf.monotonic() + FULL_PAUSE
        now = self._shelf.monotonic()
        if full and not self.full and now >= self._say_again:
            self._say_again, self._said = now + SAY_EVERY, True
            free, total = self._shelf.blobs.free() or 0, self._shelf.blobs.total()
            log.warning(
                "%s is full: %s of %s are free, %s are stored, and nothing more may go; serving without keeping",
                self._shelf.root, *map(shown_size, (free, total, self._shelf.size)),
            )  # fmt: skip
        elif not full and self._said:
            self._said = False
            log.info("%s has room again", self._shelf.root)
        self.full = full

    async def keep_bounds(self) -> None:
        """Keeps them for ever."""
        while True:
            await asyncio.sleep(EVICT_EVERY)
            try:
                await self.keep()
            except Exception:
                log.exception("eviction failed")

    async def keep(self) -> int:
        """Evicts what is beyond the bounds or too old; how many objects went."""
        count = 0
        if self._shelf.ousted:
            return 0
        async with self._lock:
            if self._shelf.settings is not self._aim_by:
                # What was aimed at was by other bounds.
                self._aim = None
            if self._shelf.settings.max_age and self._shelf.loaded:
                count += await self._expire()
            if self.full and not self.missing():
                # Others have made room: what was aimed at while there was none is no aim any more.
                self._is_full(False)
                self._aim = None
            while over := self._left():
                if self.full and self._shelf.monotonic() < self._full_until:
                    self._aim = None
                    break
                most = self._most()
                gone = await self._evict("size", over, most=most)
                count += gone
                if not gone:
                    self._aim = None
                    if most is not None:
                        break
                    self._is_full(self.missing() > 0)
        return count

    def _held(self) -> int:
        return self._shelf.size + self._shelf.partial_bytes + self._shelf.promised

    def _most(self) -> int | None:
        """How many bytes of objects may go to keep the bounds: without limit only for what is verified itself."""
        return None if self._aim is not None or self._missing(0, 0, None) else self.spare()

    def _left(self) -> int:
        """How many bytes have to go: down to the low watermark, once a limit was passed by what is verified."""
        if not self._missing(0, 0, None) and self._aim is None:
            over = self.missing(low=1.0)
            return over if over <= self._shelf.idle.total + self.spare() else 0
        if over := self.missing():
            self._aim, self._aim_by = self._held() - over, self._shelf.settings
            return over
        left = 0 if self._aim is None else max(0, self._held() - self._aim)
        if not left:
            self._aim = None
        return left

    async def _expire(self) -> int:
        before = self._shelf.clock() - self._shelf.settings.max_age
        count = 0
        while taken := self._shelf.catalog.take_oldest(2**62, BATCH, self._in_use(), before=before):
            await self._shelf.unlink_all(taken, "age")
            count += len(taken)
        return count

    def _in_use(self) -> Callable[[str], bool]:
        coming = frozenset(self._shelf.in_flight())
        return lambda digest: digest in coming or self._shelf.blobs.is_mapped(digest)

    async def _evict(self, reason: str, size: int, most: int | None = None) -> int:
        """Removes up to `size` bytes, partial files without a fetch first, and `most` of objects; how many files went."""
        if freed := await self._shelf.in_thread(self._drop_idle, size):
            # That may do: objects are not evicted for the low watermark alone.
            self._aim = None
            return freed
        if not self._shelf.loaded:
            return 0
        catalog = self._shelf.catalog
        taken = catalog.take_oldest(size, BATCH, self._in_use(), most=most)
        if not taken:
            # What is being read now can go, too: who reads it is not disturbed, but its room comes back only afterwards.
            coming = frozenset(self._shelf.in_flight())
            taken = catalog.take_oldest(size, BATCH, coming.__contains__, most=most)
        await self._shelf.unlink_all(taken, reason)
        if taken:
            freed = sum(stored.size for stored in taken)
            log.info("evicted %d objects, %s", len(taken), shown_size(freed))
        return len(taken)

    async def drop_idle(self) -> None:
        """Removes all partial files that no fetch has."""
        await self._shelf.in_thread(self._drop_idle, 2**62)

    def _drop_idle(self, size: int) -> int:
        """Blocks."""
        freed = count = 0
        for path in list(self._shelf.idle):
            if freed >= size:
                break
            known = self._shelf.idle.take(path)
            if known is None:
                continue
            if partials.remove(path):
                freed, count = freed + known, count + 1
            elif os.path.exists(path) and all(str(partial.path) != path for partial in list(self._shelf.open_partials)):
                # Somebody still reads what came of it.
                self._shelf.idle[path] = known
        return count


def to_free(stored: int, max_size: int, free: int | None, min_free: int, *, low: float = 0.9, size: int = 0) -> int:
    """How many bytes have to go for `size` more: none below the limits, beyond one of them so many that the low one holds.

    `low` is the low watermark as a share of `max_size`; of `min_free` as much more stays free.
    """
    over = 0
    if max_size and stored + size > max_size:
        low_size = int(max_size * low)
        over = stored + size - (low_size if size <= low_size else max_size)
    if free is not None and free - size < min_free:
        over = max(over, int(min_free * (2 - low)) - (free - size))
    return over
