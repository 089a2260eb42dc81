"""The names and the owners of the files in CACHE_DIR/partial: only this module makes, locks and removes these files.

The protocol, for all threads and processes: the owner of a file holds its lock (flock(2)) *and* has seen, with the lock held,
that the name still leads to the file. Between opening and locking, another process can remove the file or put another file
in its place. A fetch has its file alone (exclusive lock). An import shares its file (shared lock): the cache that takes the
file over locks it while the importer still holds its own lock, so that the file always has an owner. Only its owner removes
or renames a file. The lock ends with the process: a file left behind has no owner, and a sweep removes it.
"""

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

# How often a name is tried that another process checks or has just removed; the pause before the next try (seconds).
OPEN_TRIES, OPEN_PAUSE = 3, 0.001
# How often a new name is tried: only a sweep can hold a name that no other process knows.
NEW_TRIES = 100
IMPORT = re.compile(r"import\.[0-9]+-[0-9]+-[0-9a-f]{8}")
_FETCH = re.compile(r"(sha256|sha512)-([0-9a-f]{64}|[0-9a-f]{128})(-[0-9a-f]{16})?")


def name_for(digest: str, origin: str = "") -> str:
    """The name of the file for the object's bytes from this registry."""
    suffix = f"-{hashlib.sha256(origin.encode()).hexdigest()[:16]}" if origin else ""
    return f"{digest.replace(':', '-')}{suffix}"


def digest_in(name: str) -> str | None:
    """The digest of the object whose fetch would continue a file of this name; None if no fetch would."""
    found = _FETCH.fullmatch(name)
    return f"{found[1]}:{found[2]}" if found else None


def is_linked(path: str | Path, fd: int) -> bool:
    """Whether the name still leads to the open file."""
    try:
        there, mine = os.stat(path, follow_symlinks=False), os.fstat(fd)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def open_for_fetch(path: Path) -> tuple[Path, int]:
    """Opens the file at `path`, made if missing, or a new name if that file has an owner; gives path and descriptor.

    Blocks; raises OSError, FileNotFoundError if there is no directory.
    """
    for _ in range(OPEN_TRIES):
        try:
            fd = _take(path, os.O_CREAT, fcntl.LOCK_EX)
        except BlockingIOError:
            # A sweep holds the lock for a moment.
            time.sleep(OPEN_PAUSE)
            continue
        if fd is not None and os.fstat(fd).st_size and os.fstat(fd).st_mtime < _boot():
            # The file is from before the machine's start, and was not synced while it grew: a power cut may have left holes in
            # it, and clients would get its bytes unverified.
            os.unlink(path)
            os.close(fd)
            continue
        if fd is not None:
            return path, fd
    return _make(lambda: path.with_name(f"{path.name}.{os.getpid()}-{time.monotonic_ns()}"), fcntl.LOCK_EX)


def make_for_import(directory: Path, number: int) -> tuple[Path, int]:
    """Makes a new file for an object of an import; gives path and descriptor. Blocks; raises OSError."""
    return _make(lambda: directory / f"import.{os.getpid()}-{number}-{os.urandom(4).hex()}", fcntl.LOCK_SH)


def make_probe(directory: Path) -> tuple[Path, int]:
    """Makes a new file only to test whether this works; gives path and descriptor. Blocks; raises OSError."""
    return _make(lambda: directory / f"probe.{os.getpid()}-{os.urandom(4).hex()}", fcntl.LOCK_EX)


def open_of_import(path: Path) -> int:
    """Opens a file that an import has made; gives its descriptor. Blocks; raises OSError, FileNotFoundError after a sweep."""
    for _ in range(NEW_TRIES):
        try:
            fd = _take(path, 0, fcntl.LOCK_SH)
        except BlockingIOError:
            time.sleep(OPEN_PAUSE)
            continue
        if fd is not None:
            return fd
    raise BlockingIOError(11, "another process has the file", str(path))


def _make(name: Callable[[], Path], lock: int) -> tuple[Path, int]:
    for _ in range(NEW_TRIES):
        path = name()
        try:
            fd = _take(path, os.O_CREAT | os.O_EXCL, lock)
        except (BlockingIOError, FileExistsError):
            continue  # A sweep holds the lock, and is about to remove the file.
        if fd is not None:
            return path, fd
    raise BlockingIOError(11, "a sweep removes each new file at once", str(path))


def _take(path: Path, flags: int, lock: int) -> int | None:
    """Opens and locks a file; None if the name led to another file by then. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o644)
    try:
        fcntl.flock(fd, lock | fcntl.LOCK_NB)
        if is_linked(path, fd):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def discard(path: Path, fd: int) -> None:
    """Removes a file that the caller owns, if the name still leads to it. Raises OSError."""
    if is_linked(path, fd):
        path.unlink(missing_ok=True)


def remove(path: str | Path, is_due: Callable[[os.stat_result], bool] = lambda status: True) -> bool | None:
    """Removes a file without an owner if it `is_due`; gives whether it did. None if the file has an owner. Blocks."""
    try:
        fd = _take(Path(path), 0, fcntl.LOCK_EX)
    except OSError:
        return None
    if fd is None:
        return None
    try:
        if not is_due(os.fstat(fd)):
            return False
        os.unlink(path)
    except OSError:
        return None
    finally:
        os.close(fd)
    return True


def sweep(directory: Path, older_than: float, is_wanted: Callable[[str], bool]) -> tuple[int, dict[str, int]]:
    """Removes files not written to for `older_than` seconds and files whose name is not wanted, but none that has an owner.

    Gives how many files it removed, and path and size of the files that stay and wait for a fetch. Blocks.
    """
    removed, idle = 0, dict[str, int]()
    try:
        names = os.listdir(directory)
    except OSError:
        return 0, {}
    for name in names:
        path, sizes = f"{directory}/{name}", list[int]()

        def is_due(status: os.stat_result, name: str = name, sizes: list[int] = sizes) -> bool:
            sizes.append(status.st_size)
            return time.time() - status.st_mtime > older_than or not status.st_size or not is_wanted(name)

        gone = remove(path, is_due)
        if gone:
            removed += 1
        elif gone is False:
            idle[path] = sizes[0]
    return removed, idle


def _boot() -> float:
    """When this machine started, in seconds since the epoch: the times of files use this clock."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
