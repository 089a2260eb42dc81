"""Whether the disk takes writes, and whether the directory is this process' own."""

import errno
import logging
from collections.abc import Callable
from pathlib import Path

from cacheyd.store.blobs import SHORTAGE, BlobDir
from cacheyd.store.threads import DiskThreads

log = logging.getLogger(__name__)

# After the disk refused a write, requests bypass the store for so long before it is tried again (seconds).
BROKEN_PAUSE = 10.0
# So long before the end of that pause the disk is probed (seconds).
PROBE_BEFORE = 5.0


class Health:
    """What the disk said last. Everybody who writes reports here."""

    def __init__(self, blobs: BlobDir, threads: DiskThreads, monotonic: Callable[[], float]) -> None:
        self._blobs = blobs
        self._threads = threads
        self._monotonic = monotonic
        self._broken_until = 0.0
        self.write_errors = 0
        # What the disk said when it refused a write, and none has succeeded since; empty if all is well.
        self.refusal = ""
        # Another process took the directory, after it was wiped.
        self.lost_directory = False

    @property
    def root(self) -> Path:
        """The directory that this is about."""
        return self._blobs.root

    @property
    def writable(self) -> bool:
        """Whether to try: not for a while after the disk refused a write, nor while another process has the directory."""
        return not self.lost_directory and self._monotonic() >= self._broken_until

    @property
    def takes_writes(self) -> bool:
        """Whether the last write succeeded, and the directory is this process' own."""
        return not self.lost_directory and not self.refusal

    @property
    def is_probe_due(self) -> bool:
        """Whether the disk, which has refused a write, was left alone for long enough: a fetch is not to be the first."""
        return bool(self.refusal) and self._monotonic() >= self._broken_until - PROBE_BEFORE

    @property
    def trouble(self) -> str:
        """Why nothing can be written now, for people; empty if all is well."""
        if self.lost_directory:
            return "another cacheyd has taken the directory"
        return f"the disk refuses writes ({self.refusal})" if self.refusal else ""

    def report_write_error(self, error: OSError) -> None:
        """Remembers that the disk refuses writes: requests go on without being kept. One log line per pause."""
        self.write_errors += 1
        self._refuse(error)

    def _refuse(self, error: OSError) -> None:
        said, self.refusal = bool(self.refusal), f"{errno.errorcode.get(error.errno or 0, '?')}: {error.strerror}"
        if self.writable and not said:
            log.error("%s cannot be written (%s); serving without keeping", self.root, self.refusal)
        self._broken_until = self._monotonic() + BROKEN_PAUSE

    def report_write(self) -> None:
        """A write has succeeded."""
        if self.refusal:
            log.info("%s can be written again", self.root)
            self.refusal, self._broken_until = "", 0.0

    async def probe(self) -> None:
        """Tries whether the disk takes writes; without traffic nobody else would find out."""
        try:
            await self._threads.run(self._blobs.probe)
        except OSError as error:
            if error.errno not in SHORTAGE:
                self._refuse(error)
        else:
            self.report_write()

    def lose_directory(self, why: Exception) -> None:
        """Another process has the directory now: nothing is written any more. One log line."""
        if not self.lost_directory:
            log.error("%s; serving without keeping", why)
        self.lost_directory = True

    def regain_directory(self) -> None:
        """The directory is this process' own again."""
        self.lost_directory = False
