"""Remembers for a while that there is no room and that no more object may be removed, and writes this to the log."""

import logging
from collections.abc import Callable

from cacheyd.observe.wording import shown_size
from cacheyd.store.blobs import BlobDir
from cacheyd.store.catalog import Catalog

log = logging.getLogger(__name__)

# How long after an eviction that removed nothing the next one may begin (seconds).
FULL_PAUSE = 5.0
# The least time between two log lines that there is no room (seconds): small objects can find room when large ones do not.
SAY_EVERY = 60.0


class Fullness:
    """The result of the last eviction: whether the store is full."""

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
        """Whether the last eviction removed nothing a moment ago, so that the next one must wait."""
        return self.full and self._monotonic() < self._pause_until

    def note(self, *, full: bool) -> None:
        """Remembers whether there is no room, and logs a change."""
        now = self._monotonic()
        if full:
            self._pause_until = now + FULL_PAUSE
        if full and not self.full and now >= self._say_again:
            self._say_again, self._said = now + SAY_EVERY, True
            free, total = self._blobs.free() or 0, self._blobs.total()
            log.warning(
                "%s is full: %s of %s are free, %s are stored, and no more objects can be evicted; serving without keeping",
                self._blobs.root, *map(shown_size, (free, total, self._catalog.bytes)),
            )  # fmt: skip
        elif not full and self._said:
            self._said = False
            log.info("%s has room again", self._blobs.root)
        self.full = full
