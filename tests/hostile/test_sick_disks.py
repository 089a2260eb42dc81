"""A disk that refuses writes: it is said wherever somebody looks, and requests pass through all the same."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.daemon import Daemon
from tests.faults.disks import ext4, fill, tmpfs
from tests.faults.scene import blob_target, eventually, registry_table
from tests.hostile.peers import MIB
from tests.policy.conftest import Starter
from tests.support.images import random_bytes
from tests.support.origin import Origin

NS = "up.test"


@pytest.fixture
def where(own: Starter) -> Path:
    """Where the daemon's CACHE_DIR is to be."""
    return own.directory / "daemon0" / "cache"


@pytest.fixture
def disk(where: Path) -> Iterator[Path]:
    with tmpfs(where, "size=40m"):
        yield where


def remount(where: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", where], check=True)


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Nobody, not even root, makes files there."""
    if subprocess.run(["chattr", "+i", path], capture_output=True, check=False).returncode:
        pytest.skip("no chattr")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


def start(own: Starter) -> tuple[Daemon, str]:
    """A daemon, and something that it can be asked for."""
    origin = own.origin(Origin())
    blob = random_bytes(100_000, 77)
    digest = origin.add_blob("app", blob)
    return own.daemon(registry_table(NS, origin.url)), blob_target("app", digest, NS)


def start_line(daemon: Daemon) -> str:
    return [line for line in daemon.lines() if "is listening on" in line][-1]


def assert_says(daemon: Daemon, *words: str) -> None:
    ready = daemon.get("/readyz")
    assert (ready.status, ready.body[:7]) == (200, b"ready; "), "misses pass through: a replica less would help nobody"
    page = daemon.get("/", {"Accept": "text/html"}).body.decode()
    for word in (*words, "nothing is kept"):
        assert word in ready.body.decode()
        assert word in (ready.header("Warning") or "")
        assert word in page.partition("<table>")[0]
    assert daemon.metric("cacheyd_store_writable") == 0


def assert_is_well(daemon: Daemon) -> None:
    ready = daemon.get("/readyz")
    assert (ready.status, ready.body, ready.header("Warning")) == (200, b"ready\n", None)
    assert "alert" not in daemon.get("/", {"Accept": "text/html"}).body.decode()
    assert daemon.metric("cacheyd_store_writable") == 1


def check(directory: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "cacheyd", "config", "check", "--cache-dir", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.stderr.count("\n") == (done.returncode != 0), done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_disk_that_is_read_only_at_the_start(own: Starter, disk: Path) -> None:
    remount(disk, "ro")
    daemon, target = start(own)
    daemon.expect("cannot be written")
    assert "not writable: the disk refuses writes (EROFS: Read-only file system): nothing is kept" in start_line(daemon)
    assert_says(daemon, "EROFS")
    assert daemon.get(target).status == 200
    assert_says(daemon, "EROFS")
    code, said = check(disk)
    assert (code, "Read-only file system" in said, str(disk) in said) == (1, True, True)


def test_a_disk_that_begins_to_refuse_and_ends(own: Starter, where: Path) -> None:
    """By an attribute: a mount does not turn read-only while an index is open in it."""
    with ext4(where, 64 * MIB):
        daemon, target = start(own)
        assert_is_well(daemon)
        assert "free)" in start_line(daemon)
        daemon.expect("cannot be written")
        with immutable(where / "partial"):
            assert daemon.get(target).status == 200
            assert_says(daemon, "EPERM")
        eventually(lambda: daemon.get("/readyz").body, b"ready\n", 15)
        assert_is_well(daemon)
        assert daemon.get(target).status == 200
        eventually(lambda: daemon.get(target).cache, "HIT")
        daemon.stop()


def test_a_disk_that_is_full_to_the_last_byte(own: Starter, where: Path) -> None:
    with ext4(where, 24 * MIB):
        fill(where)
        daemon, target = start(own)
        daemon.expect("cannot be written")
        assert daemon.get(target).status == 200
        assert_says(daemon)
        assert check(where)[0] == 1
        daemon.stop()


def test_a_file_in_place_of_the_directory(own: Starter, where: Path) -> None:
    where.parent.mkdir(parents=True)
    where.write_text("a file")
    daemon, target = start(own)
    daemon.expect("cannot be written")
    assert "not writable" in start_line(daemon)
    assert daemon.get(target).status == 200
    assert_says(daemon, "the disk refuses writes")
    assert check(where)[0] == 1


# config check


def test_a_directory_that_can_be_used_or_made(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "not" / "there"):
        assert check(directory) == (0, "the settings can be used\n")
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_directory_that_a_running_cache_has(own: Starter) -> None:
    daemon, _ = start(own)
    before = sorted(daemon.cache_dir.rglob("*"))
    assert check(daemon.cache_dir)[0] == 0
    assert sorted(path for path in daemon.cache_dir.rglob("*") if "cache.db" not in path.name) == [
        path for path in before if "cache.db" not in path.name
    ]
    assert_is_well(daemon)


@pytest.mark.parametrize("name", ["", "blobs", "blobs/sha256", "partial", "index"])
def test_a_directory_in_which_nothing_can_be_made(tmp_path: Path, name: str) -> None:
    """It may be root who asks: this attribute holds for him, too."""
    with ext4(tmp_path / "disk", 4 * MIB):
        directory = tmp_path / "disk" / "cache"
        for other in ("blobs/sha256", "partial", "index"):
            (directory / other).mkdir(parents=True)
        with immutable(directory / name):
            code, said = check(directory)
        assert (code, f"{directory / name}: Operation not permitted" in said) == (1, True), said
