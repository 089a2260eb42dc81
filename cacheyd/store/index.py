"""The index: rows in diskcache about all that is stored, written in batches and read at the start.

The store keeps the present state in memory; the index is for the next process. If the index is lost, this costs time but no
object: the store hashes files without a row and takes them up again.
"""

import json
import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diskcache

log = logging.getLogger(__name__)

type Row = dict[str, Any]

# The version of the rows' meaning: each change of the meaning counts it up. The store rebuilds an index with another version,
# or none, from the files.
SCHEMA = 2
_SCHEMA_KEY = "m:schema"
# How long a write waits for another process's lock, and how long a read on the event loop does (seconds).
WRITE_WAIT, READ_WAIT = 5.0, 0.05
_ERRORS = (sqlite3.Error, OSError, diskcache.Timeout, ValueError)
# The mode under which diskcache keeps short texts as they are; rows with another mode are not cacheyd's.
_MODE_RAW = 1


class JsonDisk(diskcache.Disk):  # type: ignore[misc]
    """Stores JSON text and refuses pickles: diskcache's own JSONDisk would still load a crafted one (CVE-2025-69872)."""

    def store(self, value: Any, read: bool, key: Any = diskcache.UNKNOWN) -> Any:
        """Encodes a row as JSON text."""
        return super().store(json.dumps(value, separators=(",", ":")), False, key=key)

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        """Decodes a row; raises ValueError for anything but inline text."""
        if filename is not None or not isinstance(value, str):
            raise ValueError("not a row of this cache")
        return json.loads(value)

    def get(self, key: Any, raw: bool) -> Any:
        """Gives a key that is text; any other key, for example a pickle, is never loaded and becomes the empty key."""
        return key if raw and isinstance(key, str) else ""


class _OneConnection(diskcache.Cache):  # type: ignore[misc]
    """A diskcache with one connection for all threads, in place of one for each thread.

    diskcache closes only the connection of the calling thread: the other connections would keep a wiped file open until the
    garbage collector runs. Callers hold `lock`.
    """

    def __init__(self, directory: str, **settings: Any) -> None:
        super().__init__(directory, **settings)
        self.lock = threading.RLock()
        super().close()
        connection = sqlite3.connect(
            Path(directory) / "cache.db", timeout=settings["timeout"], isolation_level=None, check_same_thread=False
        )
        self._local = SimpleNamespace(pid=os.getpid(), con=connection)
        for key, value in settings.items():
            if key.startswith("sqlite_"):
                self.reset(key, value, update=False)


class Index:
    """A persistent map from text keys to JSON rows. No error leaves this class."""

    def __init__(self, directory: Path, *, sync: bool = False) -> None:
        self.directory = directory
        self._sync = sync
        self._cache: Any = None
        self._reader: Any = None
        self._failing = False
        self._damaged = False
        self._file: tuple[int, int] | None = None

    def open(self) -> bool:
        """Opens the index, or makes a new one if it is damaged or of another version; gives whether that worked. Blocks.

        An index that another process locks, or that cannot be written, stays as it is: the journal tries again later.
        """
        self.close()
        for _ in range(2):
            if self._damaged:
                shutil.rmtree(self.directory, ignore_errors=True)
                self._damaged = False
            try:
                self._wait_for_others()
                self._cache = self._connect(WRITE_WAIT)
                self._reader = self._connect(READ_WAIT)
                if self._is_current():
                    self._file = self._identify()
                    return True
                log.warning("the index is of another version; rebuilding it from the stored files")
                self._damaged = True
            except _ERRORS as error:
                self._fail("opened", error)
            self.close()
            if not self._damaged:
                return False
        return False

    def _wait_for_others(self) -> None:
        """Raises if the index is locked for longer than `WRITE_WAIT`: diskcache would wait for a minute when it opens."""
        if self._identify():
            database = self.directory / "cache.db"
            with closing(sqlite3.connect(database, timeout=WRITE_WAIT, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")

    def _connect(self, wait: float) -> Any:
        # Rows are texts below 32 MiB, so diskcache never makes a file of its own for a row.
        return _OneConnection(
            str(self.directory), timeout=wait, disk=JsonDisk, disk_min_file_size=32 << 20, eviction_policy="none",
            cull_limit=0, size_limit=2**40, statistics=0, tag_index=0, sqlite_cache_size=256, sqlite_mmap_size=0,
            sqlite_synchronous=2 if self._sync else 1,
        )  # fmt: skip

    def _is_current(self) -> bool:
        found = self._cache.get(_SCHEMA_KEY)
        if found == {"schema": SCHEMA}:
            return True
        if found is None and not len(self._cache):
            return bool(self._cache.set(_SCHEMA_KEY, {"schema": SCHEMA}))
        return False

    def _fail(self, what: str, error: Exception) -> None:
        """Logs a failure, once until a write succeeds, and remembers whether the database itself is damaged."""
        if _is_damage(error):
            log.warning("the index is damaged (%s); rebuilding it from the stored files", error)
            self._damaged = True
        elif not self._failing:
            log.warning("the index cannot be %s: %s", what, error)
            self._failing = True

    @property
    def usable(self) -> bool:
        """Whether the index is open and not known to be damaged."""
        return self._cache is not None and not self._damaged

    def get(self, key: str) -> Row | None:
        """A row; None if there is none or it cannot be read. Takes about 30 µs; used before all rows are in memory."""
        if (reader := self._reader) is None:
            return None
        try:
            with reader.lock:
                row = reader.get(key)
        except _ERRORS:
            return None
        return row if isinstance(row, dict) else None

    def pages(self, size: int) -> Iterator[list[tuple[str, Row]]]:
        """All rows, `size` at a time. Blocks; different threads may continue it.

        It reads the table with a connection of its own: diskcache's iteration with a `get` for each key takes ten times as
        long.
        """
        if self._cache is None:
            return
        try:
            connection = sqlite3.connect(f"file:{self._path()}?mode=ro", uri=True, timeout=WRITE_WAIT, check_same_thread=False)
        except _ERRORS as error:
            self._fail("read", error)
            return
        try:
            last = -1
            while True:
                query = "SELECT rowid, key, raw, mode, filename, value FROM Cache WHERE rowid > ? ORDER BY rowid LIMIT ?"
                found = connection.execute(query, (last, size)).fetchall()
                if not found:
                    return
                last = found[-1][0]
                yield [pair for pair in map(_pair, found) if pair is not None]
        except _ERRORS as error:
            self._fail("read", error)
        finally:
            connection.close()

    def _path(self) -> str:
        # Escapes the characters that have a meaning in a URI (RFC 3986).
        path = str(self.directory / "cache.db")
        return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")

    def write(self, rows: Sequence[tuple[str, Row | None]]) -> bool:
        """Sets rows, and deletes rows that are None, in one transaction; gives whether that worked. Blocks."""
        if (cache := self._cache) is None:
            return False
        try:
            with cache.lock, cache.transact(retry=False):
                for key, row in rows:
                    if row is None:
                        cache.delete(key)
                    else:
                        cache.set(key, row)
        except _ERRORS as error:
            self._fail("written", error)
            if self._damaged:
                self.close()
            return False
        self._failing = False
        return True

    def is_there(self) -> bool:
        """Whether the index's file is still in place: the cache directory can be wiped, and a new file made, at any time."""
        return self._file is not None and self._identify() == self._file

    def _identify(self) -> tuple[int, int] | None:
        try:
            status = (self.directory / "cache.db").stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def size(self) -> int:
        """The size of the index on disk (bytes)."""
        total = 0
        for name in ("cache.db", "cache.db-wal", "cache.db-shm"):
            try:
                total += (self.directory / name).stat().st_size
            except OSError:
                continue
        return total

    def compact(self) -> None:
        """Gives the disk back the space of deleted rows and of the write-ahead log. Blocks."""
        if self._cache is None:
            return
        try:
            connection = sqlite3.connect(self.directory / "cache.db", timeout=WRITE_WAIT)
            try:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                connection.close()
        except _ERRORS as error:
            self._fail("compacted", error)

    def close(self) -> None:
        """Closes the index's file. Blocks."""
        for cache in (self._cache, self._reader):
            try:
                if cache is not None:
                    with cache.lock:
                        cache.close()
            except _ERRORS:
                pass
        self._cache = self._reader = None


def _is_damage(error: Exception) -> bool:
    """Whether the error means that the database itself is damaged, and not a lock or the disk."""
    if isinstance(error, sqlite3.OperationalError):
        return "no such" in str(error)
    return isinstance(error, sqlite3.Error | ValueError)


def _pair(found: tuple[Any, ...]) -> tuple[str, Row] | None:
    _, key, raw, mode, filename, value = found
    if not raw or mode != _MODE_RAW or filename is not None or not isinstance(key, str) or not isinstance(value, str):
        return None
    try:
        row = json.loads(value)
    except ValueError:
        return None
    return (key, row) if isinstance(row, dict) else None
