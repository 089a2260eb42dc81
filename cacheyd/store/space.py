"""The arithmetic of the bounds: how many bytes have to be removed, and how many may be. Nothing here changes the store."""

from cacheyd.settings.live import Live
from cacheyd.store.blobs import BlobDir
from cacheyd.store.catalog import Catalog
from cacheyd.store.partials import Partials
from cacheyd.store.unread import Unread

# Unverified bytes displace no more than this part of the store: one of this number of equal parts.
UNVERIFIED = 10

# The room on the disk that no fetch uses (bytes): the index and the log need some, too.
RESERVE = 16 << 20

# The least number of files that can still be made: below it objects make room, even if many bytes are free.
FEW_FILES = 64


class Space:
    """Compares the held bytes and the free room of the disk with the settings. All sizes are in bytes."""

    def __init__(self, blobs: BlobDir, catalog: Catalog, partials: Partials, unread: Unread, live: Live) -> None:
        self._blobs = blobs
        self._catalog = catalog
        self._partials = partials
        self._unread = unread
        self._live = live

    @property
    def held(self) -> int:
        """The size of all objects and partial files, with the promised bytes."""
        return self._catalog.bytes + self._partials.held

    @property
    def max_size(self) -> int:
        """The most bytes that may be stored; 0 without a limit."""
        return self._live.settings.max_size.of(self._blobs.total())

    def missing(self, size: int = 0, *, low: float | None = None) -> int:
        """How many bytes have to be removed, down to the low watermark (or `low`), for `size` more; 0 if they fit."""
        return self._missing(size, self._partials.held, low)

    def missing_for_objects(self) -> int:
        """How many bytes would have to be removed, down to the low watermark, if there were no partial files."""
        return self._missing(0, 0, None)

    def _missing(self, size: int, unverified: int, low: float | None) -> int:
        """The same, with `unverified` bytes in partial files."""
        settings, stored = self._live.settings, self._catalog.bytes
        total = self._blobs.total()
        free = self._blobs.free()
        files = self._blobs.free_files()
        short_of_files = files is not None and files < FEW_FILES
        low = settings.low_watermark.share if low is None else low
        over = to_free(
            stored + unverified,
            settings.max_size.of(total),
            None if free is None else free + self._partials.size - unverified,
            max(settings.min_free.of(total), RESERVE),
            low=low,
            size=size,
        )
        return max(over, int(stored * (1 - low)), 1) if short_of_files else over

    def capacity(self) -> int:
        """The bytes that the store may hold: `max_size`, or its present bytes plus those it may still write, if less."""
        settings = self._live.settings
        total, free = self._blobs.total(), self._blobs.free()
        max_size = settings.max_size.of(total) or 2**62
        if free is None:
            return max_size
        may_write = free - max(settings.min_free.of(total), RESERVE)
        return max(0, min(max_size, self._catalog.bytes + self._partials.size + may_write))

    def credit(self, delivered: int) -> int:
        """The `credit` for `spare` of a registry that has delivered `delivered` of the bytes in the store now."""
        # In a store that is not full, nine tenths are more than the present bytes: the bytes of all other registries stay.
        return delivered and delivered + max(0, self.capacity() * (UNVERIFIED - 1) // UNVERIFIED - self._catalog.bytes)

    def spare(self, credit: int = 0) -> int:
        """How many bytes may be evicted for unverified bytes: the store never falls below nine tenths, less `credit`.

        `credit` are the bytes in the store that the sending registry had delivered. So an unknown registry can displace at
        most a tenth of the store with worthless bytes, even with many tries: the room stays, and the next bytes fit in it. A
        registry that has delivered more could displace as many bytes in any case.
        """
        if not self._unread.loaded:
            return 0
        kept = self.capacity() * (UNVERIFIED - 1) // UNVERIFIED - credit
        return max(0, self._catalog.bytes - max(0, kept))

    def displaceable(self, credit: int = 0) -> int:
        """The same, with the bytes of partial files that no fetch has open."""
        return self._partials.idle_bytes + self.spare(credit)

    def can_fit(self, size: int) -> bool:
        """Whether an object of this size could fit if all else were removed."""
        settings = self._live.settings
        total = self._blobs.total()
        max_size, free = settings.max_size.of(total), self._blobs.free()
        if max_size and size > max_size:
            return False
        possible = self._catalog.bytes + self._partials.size
        return free is None or free + possible - size >= max(settings.min_free.of(total), RESERVE)


def to_free(stored: int, max_size: int, free: int | None, min_free: int, *, low: float = 0.9, size: int = 0) -> int:
    """How many bytes have to be removed for `size` more: 0 within the limits, else enough to reach the low watermark.

    `low` is the low watermark as a share of `max_size`; the room that stays free is `min_free` and `1 - low` of it more.
    """
    over = 0
    if max_size and stored + size > max_size:
        low_size = int(max_size * low)
        over = stored + size - (low_size if size <= low_size else max_size)
    if free is not None and free - size < min_free:
        over = max(over, int(min_free * (2 - low)) - (free - size))
    return over
