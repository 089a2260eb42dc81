"""The files below `partial/`: whatever happens between an opening and a locking, nobody works on a file without a name."""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cacheyd.store import partial_files

DAY = 86400.0


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def before_lock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Has something done once, between the next opening and its locking."""
    waiting: list[Callable[[], object]] = []
    lock = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        if waiting:
            waiting.pop()()
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    return waiting.append


def sweep(directory: Path) -> int:
    return partial_files.sweep(directory, DAY, lambda name: partial_files.digest_in(name) is not None)[0]


NAME = partial_files.name_for("sha256:" + "a" * 64, "docker.io")


def test_a_new_file_of_an_import_that_is_swept_at_once_is_made_again(
    directory: Path, before_lock: Callable[[Callable[[], object]], None]
) -> None:
    before_lock(lambda: sweep(directory))

    path, fd = partial_files.make_for_import(directory, 0)

    os.write(fd, b"data")
    assert path.read_bytes() == b"data"
    assert sweep(directory) == 0
    os.close(fd)
    assert sweep(directory) == 1


@pytest.mark.parametrize("content", [b"", b"begun"])
def test_a_file_of_a_fetch_that_is_removed_before_it_is_locked_is_made_again(
    directory: Path, before_lock: Callable[[Callable[[], object]], None], content: bytes
) -> None:
    (directory / NAME).write_bytes(content)
    before_lock(lambda: partial_files.remove(directory / NAME))

    path, fd = partial_files.open_for_fetch(directory / NAME)

    assert path == directory / NAME
    assert partial_files.is_linked(path, fd)
    assert os.fstat(fd).st_size == 0
    os.close(fd)


def test_a_file_of_a_fetch_that_is_looked_at_now_is_waited_for(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / NAME).write_bytes(b"begun")
    sweeper = os.open(directory / NAME, os.O_RDWR)
    fcntl.flock(sweeper, fcntl.LOCK_EX)
    monkeypatch.setattr(time, "sleep", lambda seconds: fcntl.flock(sweeper, fcntl.LOCK_UN))

    path, fd = partial_files.open_for_fetch(directory / NAME)

    assert path == directory / NAME
    os.close(fd)
    os.close(sweeper)


def test_a_file_that_a_fetch_has_is_nobody_elses(directory: Path) -> None:
    path, fd = partial_files.open_for_fetch(directory / NAME)
    other, second = partial_files.open_for_fetch(directory / NAME)

    assert path != other
    assert partial_files.remove(path) is None
    assert sweep(directory) == 0
    assert path.exists()
    assert other.exists()
    os.close(fd)
    os.close(second)


def test_a_file_of_its_own_name_that_is_swept_at_once_is_made_again(
    directory: Path, before_lock: Callable[[Callable[[], object]], None]
) -> None:
    """The second fetch of an object: no fetch would go on with its file, so a sweep takes it first."""
    _, fd = partial_files.open_for_fetch(directory / NAME)
    calls = iter(range(100))

    def when_new() -> None:
        if next(calls) < partial_files.OPEN_TRIES:
            before_lock(when_new)
        else:
            assert sweep(directory) == 1

    before_lock(when_new)

    other, second = partial_files.open_for_fetch(directory / NAME)

    assert partial_files.is_linked(other, second)
    os.close(fd)
    os.close(second)


def test_a_sweep_does_not_take_the_file_that_came_after_the_one_it_looked_at(
    directory: Path, before_lock: Callable[[Callable[[], object]], None]
) -> None:
    """Opened by the sweep, discarded by its fetch, made anew by the next one: the lock is on a file without a name."""
    (directory / NAME).write_bytes(b"")
    taken: list[tuple[Path, int]] = []

    def replace() -> None:
        (directory / NAME).unlink()
        taken.append(partial_files.open_for_fetch(directory / NAME))

    before_lock(replace)

    assert sweep(directory) == 0
    ((path, fd),) = taken
    assert partial_files.is_linked(path, fd)
    os.close(fd)


def test_who_takes_over_an_import_locks_it_while_the_importer_has_it(directory: Path) -> None:
    path, held = partial_files.make_for_import(directory, 7)
    os.write(held, b"data")

    fd = partial_files.open_of_import(path)
    os.close(held)

    assert sweep(directory) == 0, "there is no moment in which nobody has it"
    assert path.exists()
    os.close(fd)
    assert sweep(directory) == 1


def test_a_file_of_an_import_that_is_gone_is_not_made_again(
    directory: Path, before_lock: Callable[[Callable[[], object]], None]
) -> None:
    path, held = partial_files.make_for_import(directory, 0)
    os.close(held)
    before_lock(lambda: partial_files.remove(path))

    with pytest.raises(FileNotFoundError):
        partial_files.open_of_import(path)

    assert not path.exists()


def test_what_was_written_before_the_machine_started_is_no_start(directory: Path) -> None:
    (directory / NAME).write_bytes(b"holes")
    old = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) - DAY
    os.utime(directory / NAME, (old, old))

    path, fd = partial_files.open_for_fetch(directory / NAME)

    assert (path, os.fstat(fd).st_size) == (directory / NAME, 0)
    os.close(fd)


def test_ones_own_file_is_discarded_and_not_another_of_its_name(directory: Path) -> None:
    path, fd = partial_files.open_for_fetch(directory / NAME)
    path.unlink()
    path.write_bytes(b"another")

    partial_files.discard(path, fd)

    assert path.read_bytes() == b"another"
    os.close(fd)


def test_a_sweep_says_what_waits_for_a_fetch(directory: Path) -> None:
    (directory / NAME).write_bytes(b"begun")
    (directory / "rubbish").write_bytes(b"x")
    (directory / "folder").mkdir()
    (directory / "link").symlink_to("/etc/passwd")

    found = partial_files.sweep(directory, DAY, lambda name: partial_files.digest_in(name) is not None)

    assert found == (1, {str(directory / NAME): 5})


def test_a_directory_where_each_new_file_is_swept_at_once_is_an_error_and_no_endless_loop(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_files, "is_linked", lambda path, fd: False)
    with pytest.raises(BlockingIOError):
        partial_files.make_for_import(directory, 0)
