"""Checks that stored files still have their digests: slowly in the background, and all files at once on demand."""

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable
from typing import Any

from cacheyd.settings.live import Live
from cacheyd.store.blobs import SHORTAGE, BlobDir, hash_file
from cacheyd.store.catalog import Catalog
from cacheyd.store.index import Index
from cacheyd.store.objects import Objects
from cacheyd.store.records import Stored
from cacheyd.store.threads import DiskThreads
from cacheyd.store.unread import Unread

log = logging.getLogger(__name__)

SCRUB_PIECE = 1 << 20
SCRUB_IDLE = 60.0
# The time between two saves of the scrub's position (seconds).
SAVE_EVERY = 60.0
_SCRUB_KEY = "m:scrub"


class Scrub:
    """Hashes objects, and drops objects that do not have their digest any more."""

    def __init__(
        self,
        catalog: Catalog,
        objects: Objects,
        unread: Unread,
        blobs: BlobDir,
        index: Index,
        threads: DiskThreads,
        *,
        live: Live,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._catalog = catalog
        self._objects = objects
        self._unread = unread
        self._blobs = blobs
        self._index = index
        self._threads = threads
        self._live = live
        self._clock, self._monotonic = clock, monotonic
        # The bytes that the scrub has read, and the number of objects that did not have their digest.
        self.scrubbed = 0
        self.dropped = 0

    async def verify(self, progress: Callable[[int, int, int], None] = lambda done, total, size: None) -> dict[str, Any]:
        """Hashes all objects and drops those that do not match. `progress` gets objects done, all objects, and bytes read."""
        digests = sorted(self._catalog.objects)
        read, dropped = 0, []
        for done, digest in enumerate(digests, 1):
            stored = self._catalog.objects.get(digest)
            if stored is not None:
                if not await self.check(stored):
                    dropped.append(digest)
                read += stored.size
            progress(done, len(digests), read)
        return {"checked": len(digests), "bytes": read, "dropped": dropped}

    async def check(self, stored: Stored, rate: int = 0) -> bool:
        """Hashes an object's file, at most `rate` bytes a second, and drops it if it is wrong; gives whether it was right."""
        digest = stored.digest
        before = (stored.size, stored.stamp)
        try:
            if rate:
                found = await self._hash_slowly(digest, rate)
            else:
                found = await self._threads.run(hash_file, self._blobs.path(digest), digest.partition(":")[0])
        except OSError:
            return True  # The file cannot be checked now.
        if found == digest:
            return True
        there = self._catalog.objects.get(digest)
        now = await self._threads.run(self._blobs.stat, digest)
        if there is not stored:
            return True  # The object was removed or stored again during the check.
        if now is None:
            self._objects.lost(stored)
            return True  # The file was wiped: its bytes were not wrong.
        log.error("%s does not hold what its name says; dropped", self._blobs.path(digest))
        self.dropped += 1
        self._objects.forget(stored)
        if now == before or found is None:
            await self._objects.unlink(digest, now)
        return False

    async def _hash_slowly(self, digest: str, rate: int) -> str | None:
        algorithm = digest.partition(":")[0]
        running = hashlib.new(algorithm)
        try:
            fd = os.open(self._blobs.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in SHORTAGE:
                raise
            return None
        try:
            at = 0
            while piece := await self._threads.run(os.pread, fd, SCRUB_PIECE, at):
                await self._threads.run(running.update, piece)
                at += len(piece)
                self.scrubbed += len(piece)
                await asyncio.sleep(len(piece) / rate)
        except OSError:
            return None
        finally:
            os.close(fd)
        return f"{algorithm}:{running.hexdigest()}"

    async def run(self) -> None:
        """Checks objects as long as the store runs."""
        while True:
            await asyncio.sleep(SCRUB_IDLE)
            try:
                await self.scrub()
            except Exception:
                log.exception("checking the stored objects failed")

    async def scrub(self) -> None:
        """Checks all objects once in each `scrub_every`; the next process goes on from the saved position."""
        row = await self._threads.run(self._index.get, _SCRUB_KEY) or {}
        now = self._clock()
        began, cursor = row.get("began"), row.get("cursor")
        if not isinstance(began, int | float) or began > now:
            began, cursor = now, None
            await self._save_scrub(began, "")
        settings = self._live.settings
        if not settings.scrub_every or not settings.scrub_rate or not self._unread.loaded:
            return
        if not cursor:
            if now - began < settings.scrub_every:
                return
            began, cursor = now, "-"
        saved = self._monotonic()
        for digest in sorted(digest for digest in self._catalog.objects if digest > cursor):
            stored = self._catalog.objects.get(digest)
            settings = self._live.settings
            if stored is None or self._clock() - stored.created < settings.scrub_every:
                continue
            if not settings.scrub_every or not settings.scrub_rate:
                return
            await self.check(stored, settings.scrub_rate)
            if self._monotonic() - saved >= SAVE_EVERY:
                await self._save_scrub(began, digest)
                saved = self._monotonic()
        await self._save_scrub(began, "")

    async def _save_scrub(self, began: float, cursor: str) -> None:
        await self._threads.run(self._index.write, [(_SCRUB_KEY, {"began": began, "cursor": cursor})])
