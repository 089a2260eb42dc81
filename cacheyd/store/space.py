"""How many bytes have to go, and how many may: the arithmetic of the bounds. Nothing is changed here."""

from cacheyd.settings.live import Live
from cacheyd.store.blobs import BlobDir
from cacheyd.store.catalog import Catalog
from cacheyd.store.partials import Partials
from cacheyd.store.unread import Unread

# What is not verified yet displaces no more than one of so many parts of what the store may hold.
UNVERIFIED = 10

# Room that is never used up by a fetch (bytes): the index and the log want some, too.
RESERVE = 16 << 20

# With fewer files left that could be made, objects make room, however many bytes are free.
FEW_FILES = 64


class Space:
    """What is held, what the disk has left, and what the settings say to that. All sizes are in bytes."""

    def __init__(self, blobs: BlobDir, catalog: Catalog, partials: Partials, unread: Unread, live: Live) -> None:
        self._blobs = blobs
        self._catalog = catalog
        self._partials = partials
        self._unread = unread
        self._live = live

    @property
    def held(self) -> int:
        """The size of all objects and partial files, with what is promised."""
        return self._catalog.bytes + self._partials.held

    @property
    def max_size(self) -> int:
        """The most that may be stored; 0 without a limit."""
        return self._live.settings.max_size.of(self._blobs.total())

    def missing(self, size: int = 0, *, low: float | None = None) -> int:
        """How many bytes have to go, down to the low watermark (or `low`), for `size` more; 0 if they fit."""
        return self._missing(size, self._partials.held, low)

    def missing_for_objects(self) -> int:
        """How many bytes have to go, down to the low watermark, even if there were no partial files."""
        return self._missing(0, 0, None)

    def _missing(self, size: int, unverified: int, low: float | None) -> int:
        """The same, with so many bytes in partial files."""
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
        """What the store may hold: `max_size`, or what it has and what it may still write, if that is less."""
        settings = self._live.settings
        total, free = self._blobs.total(), self._blobs.free()
        max_size = settings.max_size.of(total) or 2**62
        if free is None:
            return max_size
        may_write = free - max(settings.min_free.of(total), RESERVE)
        return max(0, min(max_size, self._catalog.bytes + self._partials.size + may_write))

    def credit(self, delivered: int) -> int:
        """The `credit` for `spare` of a registry that has delivered so many bytes of what is there now."""
        # In a store that is not full, nine tenths are more than what is there: what others delivered is what stays.
        return delivered and delivered + max(0, self.capacity() * (UNVERIFIED - 1) // UNVERIFIED - self._catalog.bytes)

    def spare(self, credit: int = 0) -> int:
        """How many bytes may be evicted for what is not verified yet: it never brings the store below nine tenths, less
        `credit`, which is what the registry that sends it had delivered of what was there.

        So a tenth is what a stranger can displace with bytes that turn out to be worth nothing, however often he tries: the
        room stays, and the next bytes fit in it. A registry that has delivered more could displace as much in any case.
        """
        if not self._unread.loaded:
            return 0
        kept = self.capacity() * (UNVERIFIED - 1) // UNVERIFIED - credit
        return max(0, self._catalog.bytes - max(0, kept))

    def displaceable(self, credit: int = 0) -> int:
        """The same, with the partial files that no fetch has."""
        return self._partials.idle_bytes + self.spare(credit)

    def can_fit(self, size: int) -> bool:
        """Whether an object of this size fits at all, whatever else would have to go."""
        settings = self._live.settings
        total = self._blobs.total()
        max_size, free = settings.max_size.of(total), self._blobs.free()
        if max_size and size > max_size:
            return False
        possible = self._catalog.bytes + self._partials.size
        return free is None or free + possible - size >= max(settings.min_free.of(total), RESERVE)


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
