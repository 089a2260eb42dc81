"""Allows one process for each cache directory: two processes would not see each other's objects, nor count their bytes."""

import fcntl
import os
from pathlib import Path


class DirectoryInUse(Exception):
    """Another process has the directory."""

    def __init__(self, directory: Path, pid: str) -> None:
        super().__init__(f"{directory} is in use by another cacheyd{f' (process {pid})' if pid else ''}")
        self.pid = pid


class DirectoryLock:
    """The lock on a cache directory. The lock ends with the process, also after a crash; the file stays."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "lock"
        self._fd = -1

    def acquire(self) -> None:
        """Takes the lock; raises DirectoryInUse, and OSError if no file can be made."""
        for _ in range(3):
            self._acquire()
            if self.is_held():
                return

    def _acquire(self) -> None:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        except BlockingIOError:
            pid = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise DirectoryInUse(self._directory, pid) from None
        except OSError:
            # A full disk has no room for the process number, and a network file system may have no locks.
            if not self._is_ours(fd):
                os.close(fd)
                raise
        self.release()
        self._fd = fd

    @staticmethod
    def _is_ours(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def is_held(self) -> bool:
        """Whether this process holds the lock, and its file is still in the directory, which can be wiped at any time."""
        if self._fd < 0:
            return False
        try:
            there, mine = os.stat(self._path), os.fstat(self._fd)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    def release(self) -> None:
        """Gives the lock back."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
