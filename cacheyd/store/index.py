"""Rows in diskcache, with a bounded mirror in memory and write-behind in batches.

Reads on the event loop come from the mirror, and once in a while from SQLite (about 30 µs); writes never happen there.
"""

import json
import logging
import shutil
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diskcache

log = logging.getLogger(__name__)

type Row = dict[str, Any]

MIRROR_ROWS = 50_000
# Rows that wait for a disk that cannot be written.
PENDING_ROWS = 100_000
_ERRORS = (sqlite3.Error, OSError, diskcache.Timeout, ValueError)


class JsonDisk(diskcache.Disk):  # type: ignore[misc]
    """Stores JSON text and refuses pickles: diskcache's own JSONDisk would still load a crafted one (CVE-2025-69872)."""

    def store(self, value: Any, read: bool, key: Any = diskcache.UNKNOWN) -> Any:
        """Encodes a row as JSON text."""
        return super().store(json.dumps(value, separators=(",", ":")), False, key=key)

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        """Decodes a row; anything but inline text is refused with ValueError."""
        if filename is not None or not isinstance(value, str):
            raise ValueError("not a row of this cache")
        return json.loads(value)

    def get(self, key: Any, raw: bool) -> Any:
        """Keys are text; whatever else is there, a pickle for one, is never loaded and becomes the empty key."""
        return key if raw and isinstance(key, str) else ""


class Index:
    """A persistent map from text keys to JSON rows. Losing it costs misses, so no error leaves this class."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mirror: OrderedDict[str, Row] = OrderedDict()
        self._pending: dict[str, Row | None] = {}
        self._writing: dict[str, Row | None] = {}
        self._failing = False
        self._lock = threading.Lock()
        self._complete = False
        self._cache: Any = None

    def open(self) -> None:
        """Opens the index, anew if it is broken; in memory only if even that fails. Blocks."""
        for attempt in range(2):
            try:
                # 32 MiB: rows are texts below it, so diskcache never makes a file of its own.
                self._cache = diskcache.Cache(
                    str(self._directory), timeout=5, disk=JsonDisk, disk_min_file_size=32 << 20, eviction_policy="none",
                    cull_limit=0, size_limit=2**40, statistics=0, tag_index=0,
                )  # fmt: skip
                return
            except _ERRORS as error:
                log.warning("the index cannot be opened (%s): %s", error, "made anew" if attempt == 0 else "kept in memory")
                self._cache = None
                shutil.rmtree(self._directory, ignore_errors=True)

    def load(self) -> None:
        """Fills the mirror. Blocks; safe beside reads and writes on the event loop."""
        for rows, (key, row) in enumerate(self._stored()):
            if rows >= MIRROR_ROWS:
                return
            with self._lock:
                if not self._is_changing(key) and key not in self._mirror:
                    self._mirror[key] = row
        with self._lock:
            self._complete = len(self._mirror) < MIRROR_ROWS

    def _stored(self) -> Iterator[tuple[str, Row]]:
        if self._cache is None:
            return
        try:
            for key in iter(self._cache):
                row = self._read(key) if key else None
                if row is not None:
                    yield key, row
        except _ERRORS as error:
            log.warning("the index cannot be read: %s", error)

    def _read(self, key: str) -> Row | None:
        try:
            row = self._cache.get(key)
        except _ERRORS:
            return None
        return row if isinstance(row, dict) else None

    def get(self, key: str) -> Row | None:
        """The row, None if there is none. The caller must not change it."""
        row = self._mirror.get(key)
        if row is not None or self._complete or self._cache is None:
            return row
        with self._lock:
            if self._is_changing(key):
                return self._pending.get(key, self._writing.get(key))
        row = self._read(key)
        if row is not None:
            self._remember(key, row)
        return row

    def _is_changing(self, key: str) -> bool:
        """Whether what is on disk for this key is out of date."""
        return key in self._pending or key in self._writing

    def put(self, key: str, row: Row) -> None:
        """Sets the row; on disk with the next `flush`."""
        with self._lock:
            self._pending[key] = row
        self._remember(key, row)

    def _remember(self, key: str, row: Row) -> None:
        with self._lock:
            self._mirror[key] = row
            self._mirror.move_to_end(key)
            while len(self._mirror) > MIRROR_ROWS:
                self._mirror.popitem(last=False)
                self._complete = False

    def delete(self, key: str) -> None:
        """Forgets the row; on disk with the next `flush`."""
        with self._lock:
            self._mirror.pop(key, None)
            self._pending[key] = None

    def rows(self, prefix: str) -> list[tuple[str, Row]]:
        """Each row whose key starts so, from disk and memory. Blocks."""
        found = dict(self._stored())
        with self._lock:
            found |= self._mirror
            for key, row in (self._writing | self._pending).items():
                if row is None:
                    found.pop(key, None)
                else:
                    found[key] = row
        return [(key, row) for key, row in found.items() if key.startswith(prefix)]

    def flush(self) -> None:
        """Writes what is pending, in one transaction. Blocks; a wiped or broken index is opened anew."""
        with self._lock:
            self._writing, self._pending = self._pending, {}
        if self._cache is not None and not (self._directory / "cache.db").exists():
            log.warning("the index at %s is gone; starting a new one", self._directory)
            self._reopen()
        try:
            if self._writing and self._cache is not None:
                self._write(self._writing)
            self._failing = False
            self._writing = {}
        except _ERRORS as error:
            self._put_back()
            if not self._failing:
                log.warning("the index cannot be written: %s", error)
            self._failing = True
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                self._reopen()

    def _put_back(self) -> None:
        """What could not be written is written later, unless there is so much of it that memory is dearer."""
        with self._lock:
            self._pending = {**self._writing, **self._pending}
            self._writing = {}
            while len(self._pending) > PENDING_ROWS:
                del self._pending[next(iter(self._pending))]

    def _write(self, pending: dict[str, Row | None]) -> None:
        with self._cache.transact(retry=False):
            for key, row in pending.items():
                if row is None:
                    self._cache.delete(key)
                else:
                    self._cache.set(key, row)

    def _reopen(self) -> None:
        with self._lock:
            self._mirror.clear()
            kept = self._writing | self._pending
            self._mirror.update({key: row for key, row in kept.items() if row is not None})
            self._complete = False
        self._close_quietly()
        shutil.rmtree(self._directory, ignore_errors=True)
        self.open()

    def _close_quietly(self) -> None:
        try:
            if self._cache is not None:
                self._cache.close()
        except _ERRORS:
            pass
        self._cache = None

    def close(self) -> None:
        """Flushes and closes. Blocks."""
        self.flush()
        self._close_quietly()
