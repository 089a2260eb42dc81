"""The bounds of the store: room for what comes, at the price of what was not used for longest."""

import asyncio
import logging
import os
from collections.abc import Callable

from cacheyd import parse, policy
from cacheyd.store import partials
from cacheyd.store.shelf import Shelf

log = logging.getLogger(__name__)

EVICT_EVERY = 2.0
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

    def missing(self, size: int = 0) -> int:
        """How many bytes have to go, down to the low watermark, for `size` more; 0 if they fit."""
        shelf, settings = self._shelf, self._shelf.settings
        total = shelf.blobs.total()
        coming = shelf.incoming()
        free = shelf.blobs.free()
        files = shelf.blobs.free_files()
        short_of_files = files is not None and files < FEW_FILES
        over = policy.to_free(
            self._held(),
            settings.max_size.of(total),
            None if free is None else free - coming,
            max(settings.min_free.of(total), RESERVE),
            low=settings.low_watermark.share,
            size=size,
        )
        return max(over, shelf.size // 10, 1) if short_of_files else over

    def _can_fit(self, size: int) -> bool:
        """Whether an object of this size fits at all, whatever else would have to go."""
        shelf, settings = self._shelf, self._shelf.settings
        total = shelf.blobs.total()
        max_size, free = settings.max_size.of(total), shelf.blobs.free()
        if max_size and size > max_size:
            return False
        possible = shelf.size + shelf.partial_bytes
        return free is None or free + possible - size >= max(settings.min_free.of(total), RESERVE)

    async def make(self, size: int) -> bool:
        """Room for an object of `size` bytes, if there can be."""
        if not self.missing(size):
            self._is_full(False)
            return True
        if not self._can_fit(0):
            # Others have filled the disk.
            self._is_full(True)
        if not self._can_fit(size) or (self.full and self._shelf.monotonic() < self._full_until):
            return False
        evicted = False
        async with self._lock:
            while over := self.missing(size):
                self._aim = self._held() + size - over
                if not await self._evict("room", over):
                    break
                evicted = True
        for _ in range(ROOM_LOOKS if evicted else 0):
            # What somebody has open still comes back when he is done: to the disk, not to max_size.
            max_size = self._shelf.settings.max_size.of(self._shelf.blobs.total())
            if not self.missing(size) or (max_size and self._held() + size > max_size):
                break
            await asyncio.sleep(ROOM_PAUSE)
        # Down to the low watermark is for `keep`: below the high one is enough here.
        fits = not self.missing(size)
        if fits or self._shelf.loaded:
            # Before that nobody knows what may go.
            self._is_full(not fits)
        return fits

    def _is_full(self, full: bool) -> None:
        if full:
            self._full_until = self._shelf.monotonic() + FULL_PAUSE
        now = self._shelf.monotonic()
        if full and not self.full and now >= self._say_again:
            self._say_again, self._said = now + SAY_EVERY, True
            free, total = self._shelf.blobs.free() or 0, self._shelf.blobs.total()
            log.warning(
                "%s is full: %s of %s are free, %s are stored, and nothing more may go; serving without keeping",
                self._shelf.root, *map(parse.shown_size, (free, total, self._shelf.size)),
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
            if self._shelf.settings.max_age and self._shelf.loaded:
                count += await self._expire()
            if self.full and not self.missing():
                self._is_full(False)
            while over := self._left():
                if self.full and self._shelf.monotonic() < self._full_until:
                    break
                gone = await self._evict("size", over)
                count += gone
                if not gone:
                    self._aim = None
                    self._is_full(self.missing() > 0)
        return count

    def _held(self) -> int:
        return self._shelf.size + self._shelf.partial_bytes + self._shelf.incoming()

    def _left(self) -> int:
        """How many bytes have to go down to the low watermark, once a limit was passed."""
        if over := self.missing():
            self._aim = self._held() - over
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

    async def _evict(self, reason: str, size: int) -> int:
        """Removes up to `size` bytes, partial files without a fetch first; how many files went."""
        if freed := await self._shelf.in_thread(self._drop_idle, size):
            # That may do: objects are not evicted for the low watermark alone.
            self._aim = None
            return freed
        if not self._shelf.loaded:
            return 0
        catalog = self._shelf.catalog
        taken = catalog.take_oldest(size, BATCH, self._in_use())
        if not taken:
            # What is being read now can go, too: who reads it is not disturbed, but its room comes back only afterwards.
            coming = frozenset(self._shelf.in_flight())
            taken = catalog.take_oldest(size, BATCH, coming.__contains__)
        await self._shelf.unlink_all(taken, reason)
        if taken:
            freed = sum(stored.size for stored in taken)
            log.info("evicted %d objects, %s", len(taken), parse.shown_size(freed))
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
            known = self._shelf.idle.pop(path, None)
            if known is None:
                continue
            if partials.remove(path):
                freed, count = freed + known, count + 1
            elif os.path.exists(path) and all(str(partial.path) != path for partial in list(self._shelf.open_partials)):
                # Somebody still reads what came of it.
                self._shelf.idle[path] = known
        return count
