"""Whether a cache could live in a directory, for `cacheyd config check`: it is tried, and nothing is left behind."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from cacheyd.store.blobs import PROBE

# What may be there already, and has to be writable then.
_DIRECTORIES = ("", "blobs", "blobs/sha256", "blobs/sha512", "partial", "index")
_FILES = ("lock", "index/cache.db", "index/cache.db-wal", "index/cache.db-shm")


def check_directory(directory: Path) -> None:
    """Raises OSError, with the file's name, for what stands in the way of this user."""
    if not os.path.lexists(directory):
        _check_missing(directory)
        return
    for name in _DIRECTORIES:
        path = directory / name
        if name == "" or os.path.lexists(path):
            _check_writable(path)
    for name in _FILES:
        with suppress(FileNotFoundError):
            os.close(os.open(directory / name, os.O_RDWR | os.O_CLOEXEC))


def _check_missing(directory: Path) -> None:
    """Makes the first directory of the path that is not there, and removes it again."""
    first = directory
    while not os.path.lexists(first.parent):
        first = first.parent
    first.mkdir()
    try:
        _check_writable(first)
    finally:
        first.rmdir()


def _check_writable(directory: Path) -> None:
    path = directory / f".cacheyd-check.{os.getpid()}-{os.urandom(4).hex()}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        # The directory is what people know.
        raise OSError(error.errno, error.strerror, str(directory)) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.pwrite(fd, bytes(PROBE), 0)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(directory)) from None
    finally:
        os.close(fd)
        path.unlink()
