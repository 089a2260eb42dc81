"""Checks for `cacheyd config check` whether a directory can hold a cache: writes to it, and leaves no files behind."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from cacheyd.store.blobs import PROBE

# Directories and files that must be writable if they are there already.
_DIRECTORIES = ("", "blobs", "blobs/sha256", "blobs/sha512", "partial", "index")
_FILES = ("lock", "index/cache.db", "index/cache.db-wal", "index/cache.db-shm")


def check_directory(directory: Path) -> None:
    """Raises OSError, with the file's name, if this user could not run a cache in the directory."""
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
    """Makes the first missing directory of the path, and removes it again. Raises OSError."""
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
        # The error names the directory, as people do not know the file.
        raise OSError(error.errno, error.strerror, str(directory)) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.pwrite(fd, bytes(PROBE), 0)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(directory)) from None
    finally:
        os.close(fd)
        path.unlink()
