"""Knows whether the disk takes writes, and whether this process has the directory."""

import errno
import logging
from collections.abc import Callable
from pathlib import Path

from cacheyd.store.blobs import SHORTAGE, BlobDir
from cacheyd.store.threads import DiskThreads

log = logging.getLogger(__name__)

# How long requests bypass the store after the disk refused a write (seconds).
BROKEN_PAUSE = 10.0
# How long before the end of this pause the disk is probed (seconds).
PROBE_BEFORE = 5.0


class Health:
    """The last results of writes to the disk. All parts of the store that write report here."""

    def __init__(self, blobs: BlobDir, threads: DiskThreads, monotonic: Callable[[], float]) -> None:
        self._blobs = blobs
        self._threads = threads
        self._monotonic = monotonic
        self._broken_until = 0.0
        self.write_errors = 0
        # The error of the last refused write, if no write has succeeded since; empty if all is well.
        self.refusal = ""
        # Another process took the directory, after it was wiped.
        self.lost_directory = False

    @property
    def root(self) -> Path:
        """The cache directory."""
        return self._blobs.root

    @property
    def writable(self) -> bool:
        """Whether to try a write: not for a while after the disk refused one, nor while another process has the directory."""
        return not self.lost_directory and self._monotonic() >= self._broken_until

    @property
    def takes_writes(self) -> bool:
        """Whether the last write succeeded, and this process has the directory."""
        return not self.lost_directory and not self.refusal

    @property
    def is_probe_due(self) -> bool:
        """Whether it is time to probe a disk that refused a write: a fetch must not be the first to write again."""
        return bool(self.refusal) and self._monotonic() >= self._broken_until - PROBE_BEFORE

    @property
    def trouble(self) -> str:
        """Why the store cannot write now, for people; empty if all is well."""
        if self.lost_directory:
            return "another cacheyd has taken the directory"
        return f"the disk refuses writes ({self.refusal})" if self.refusal else ""

    def report_write_error(self, error: OSError) -> None:
        """Notes that the disk refuses writes: requests bypass the store for a while. One log line for each pause."""
        self.write_errors += 1
        self._refuse(error)

    def _refuse(self, error: OSError) -> None:
        said, self.refusal = bool(self.refusal), f"{errno.errorcode.get(error.errno or 0, '?')}: {error.strerror}"
        if self.writable and not said:
            log.error("%s cannot be written (%s); serving without keeping", self.root, self.refusal)
        self._broken_until = self._monotonic() + BROKEN_PAUSE

    def report_write(self) -> None:
        """Notes that a write has succeeded."""
        if self.refusal:
            log.info("%s can be written again", self.root)
            self.refusal, self._broken_until = "", 0.0

    async def probe(self) -> None:
        """Tests whether the disk takes writes; without requests, nothing else would notice a change."""
        try:
            await self._threads.run(self._blobs.probe)
        except OSError as error:
            if error.errno not in SHORTAGE:
                self._refuse(error)
        else:
            self.report_write()

    def lose_directory(self, why: Exception) -> None:
        """Notes that another process has the directory now: the store writes nothing any more. One log line."""
        if not self.lost_directory:
            log.error("%s; serving without keeping", why)
        self.lost_directory = True

    def regain_directory(self) -> None:
        """Notes that this process has the directory again."""
        self.lost_directory = False
