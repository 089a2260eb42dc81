"""Whether there is no room, and nothing more may go: remembered for a while, and said in the log."""

import logging
from collections.abc import Callable

from cacheyd.observe.wording import shown_size
from cacheyd.store.blobs import BlobDir
from cacheyd.store.catalog import Catalog

log = logging.getLogger(__name__)

# When nothing could be evicted, the next try is not before so many seconds have passed.
FULL_PAUSE = 5.0
# No more often than this (seconds) a log line says that there is no room: small objects may find some while large ones do not.
SAY_EVERY = 60.0


class Fullness:
    """What eviction found out last."""

    def __init__(self, blobs: BlobDir, catalog: Catalog, monotonic: Callable[[], float]) -> None:
        self._blobs = blobs
        self._catalog = catalog
        self._monotonic = monotonic
        self._pause_until = 0.0
        self._said = False
        self._say_again = float("-inf")
        self.full = False

    @property
    def pauses(self) -> bool:
        """Whether nothing could be evicted a moment ago, so that there is no next try yet."""
        return self.full and self._monotonic() < self._pause_until

    def note(self, *, full: bool) -> None:
        """Remembers whether there is no room, and says so if that is new."""
        now = self._monotonic()
        if full:
            self._pause_until = now + FULL_PAUSE
        if full and not self.full and now >= self._say_again:
            self._say_again, self._said = now + SAY_EVERY, True
            free, total = self._blobs.free() or 0, self._blobs.total()
            log.warning(
                "%s is full: %s of %s are free, %s are stored, and nothing more may go; serving without keeping",
                self._blobs.root, *map(shown_size, (free, total, self._catalog.bytes)),
            )  # fmt: skip
        elif not full and self._said:
            self._said = False
            log.info("%s has room again", self._blobs.root)
        self.full = full
