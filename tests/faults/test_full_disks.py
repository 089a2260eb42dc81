"""Disks that fill up and get their room back: pulls work, one line says so, and what can be kept is kept again."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import MakeDaemon
from tests.faults.daemon import Daemon
from tests.faults.disks import MEBI, ext4, fill, free, resize, tmpfs, use_up_inodes
from tests.faults.scene import HOLD, assert_whole, blob_target, eventually, manifest_target, registry_table
from tests.real.procs import wait_until
from tests.support.images import Blob, make_image, random_bytes
from tests.support.origin import Origin

NS = "up.test"
CUT = 300_000
# A disk that refused a write is left alone for ten seconds.
PAUSE = 20.0
EXT4 = 64 * MEBI


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """Where the daemon's CACHE_DIR is to be."""
    return tmp_path / "daemon" / "cache"


@pytest.fixture
def disk(where: Path) -> Iterator[Path]:
    """A real file system there."""
    with ext4(where, EXT4):
        yield where


def add_blobs(origin: Origin, *sizes: int) -> list[Blob]:
    blobs = [Blob(random_bytes(size, 400 + number)) for number, size in enumerate(sizes)]
    for blob in blobs:
        origin.add_blob("app", blob.data)
    return blobs


def serves(daemon: Daemon, *blobs: Blob) -> None:
    """Each blob, byte for byte."""
    for blob in blobs:
        assert_whole(daemon.get(blob_target("app", blob.digest, NS)), blob)


def serves_images(daemon: Daemon, origin: Origin, tag: str) -> None:
    """A new image, by tag and by digest."""
    image = make_image(seed=hash(tag))
    origin.push("app", tag, image)
    for reference in (tag, image.digest):
        assert daemon.get(manifest_target("app", reference, NS)).body == image.manifest
    serves(daemon, *image.blobs)


def keeps_again(daemon: Daemon, *blobs: Blob) -> None:
    """Once it tries the disk again; then they are hits, also after a restart."""
    deadline = time.monotonic() + PAUSE
    while not all(daemon.has(blob.digest) for blob in blobs):
        assert time.monotonic() < deadline
        serves(daemon, *blobs)
        time.sleep(0.2)
    assert daemon.stored() >= {blob.digest for blob in blobs}
    wait_until(lambda: daemon.metric("cacheyd_store_writable") == 1, "the disk takes writes")
    daemon.restart()
    for blob in blobs:
        eventually(lambda blob=blob: daemon.get(blob_target("app", blob.digest, NS)).cache, "HIT")  # type: ignore[misc]
        serves(daemon, blob)


def said(daemon: Daemon, text: str = "serving without keeping") -> int:
    """How many lines of the log say so."""
    return sum(text in line for line in daemon.lines())


def nothing_half_stored(daemon: Daemon, whole: set[str]) -> None:
    """Objects are what their names say, and no partial file is left."""
    assert daemon.stored() >= whole
    eventually(lambda: os.listdir(daemon.cache_dir / "partial"), [])


def test_filled_up_by_somebody_else_and_given_back(
    disk: Path, make_daemon: MakeDaemon, origin: Origin, release: threading.Event
) -> None:
    """In the middle of a body: it breaks off, its resume is for the upstream, everybody else is served past the disk."""
    large, other = add_blobs(origin, 8 * MEBI, 200_000)
    daemon = make_daemon(registry_table(NS, origin.url), {"progress_timeout": "20s", "min_free": "0"})
    daemon.expect("cannot be written")
    target = blob_target("app", large.digest, NS)
    origin.fault("blobs", times=1, hold=release, hold_at=CUT)
    with daemon.connect() as client:
        client.ask(target)
        wait_until(lambda: daemon.partial(large.digest) == CUT, "the first part is on disk")
        filler = fill(disk)
        release.set()
        reply = client.read_reply()
    assert len(reply.body) <= len(large.data) - HOLD
    # Nobody verified what it has.
    assert daemon.get(target, {"Range": f"bytes={len(reply.body)}-"}).status == 502
    serves(daemon, large, other)
    serves_images(daemon, origin, "1.0")
    assert daemon.stored() == set()
    assert said(daemon) == 1
    filler.unlink()
    keeps_again(daemon, large, other)
    nothing_half_stored(daemon, {large.digest, other.digest})


def test_given_back_before_it_is_missed(disk: Path, make_daemon: MakeDaemon, origin: Origin, release: threading.Event) -> None:
    """Full while upstream pauses: nothing is wrong when the rest comes."""
    (large,) = add_blobs(origin, 8 * MEBI)
    daemon = make_daemon(registry_table(NS, origin.url), {"progress_timeout": "20s", "min_free": "0"})
    origin.fault("blobs", times=1, hold=release, hold_at=CUT)
    with daemon.connect() as client:
        client.ask(blob_target("app", large.digest, NS))
        wait_until(lambda: daemon.partial(large.digest) == CUT, "the first part is on disk")
        fill(disk).unlink()
        release.set()
        assert_whole(client.read_reply(), large)
    daemon.keeps({large.digest})
    nothing_half_stored(daemon, {large.digest})


def test_full_to_the_last_byte_before_the_start(disk: Path, make_daemon: MakeDaemon, origin: Origin) -> None:
    """Not even directories and an index can be made."""
    blobs = add_blobs(origin, 5000, 2 * MEBI)
    filler = fill(disk)
    daemon = make_daemon(registry_table(NS, origin.url), {"min_free": "0"})
    daemon.expect("cannot be written")
    serves(daemon, *blobs, *blobs)
    serves_images(daemon, origin, "1.0")
    assert said(daemon) == 1
    filler.unlink()
    keeps_again(daemon, *blobs)
    nothing_half_stored(daemon, {blob.digest for blob in blobs})


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_no_inodes_are_left(where: Path, make_daemon: MakeDaemon, origin: Origin, kind: str) -> None:
    """There is room, but not for another file."""
    kept, *blobs = add_blobs(origin, 100_000, 5000, 2 * MEBI)
    with ext4(where, EXT4, "-N", "512") if kind == "ext4" else tmpfs(where, "size=64m,nr_inodes=512"):
        daemon = make_daemon(registry_table(NS, origin.url), {"min_free": "0"})
        daemon.expect("cannot be written")
        serves(daemon, kept)
        daemon.keeps({kept.digest})
        others = use_up_inodes(where)
        serves(daemon, kept, *blobs, *blobs)
        serves_images(daemon, origin, "1.0")
        assert daemon.stored() <= {kept.digest}
        assert said(daemon) == 1
        shutil.rmtree(others)
        keeps_again(daemon, kept, *blobs)
        nothing_half_stored(daemon, {kept.digest, *(blob.digest for blob in blobs)})
        assert daemon.stop() == 0


def test_the_index_cannot_grow(where: Path, make_daemon: MakeDaemon, origin: Origin) -> None:
    """Objects are kept and served all the same; their rows are written when there is room."""
    blobs = add_blobs(origin, *range(2000, 2300))
    with tmpfs(where / "index", "size=8m") as index:
        daemon = make_daemon(registry_table(NS, origin.url), {"min_free": "0"})
        resize(index, 8 * MEBI - free(index))
        serves(daemon, *blobs)
        wait_until(lambda: said(daemon, "the index cannot be") > 0, "the index is full")
        daemon.keeps({blob.digest for blob in blobs})
        before = len(origin.requests)
        serves(daemon, *blobs)
        assert len(origin.requests) == before
        time.sleep(3)
        assert said(daemon, "the index cannot be") == 1
        resize(index, 8 * MEBI)
        time.sleep(3)
        assert said(daemon, "the index cannot be") == 1
        daemon.restart()
        serves(daemon, *blobs)
        assert len(origin.requests) <= before + 1
        assert said(daemon, "the index cannot be") == 1
        assert daemon.stop() == 0


def test_others_leave_less_than_min_free(disk: Path, make_daemon: MakeDaemon, origin: Origin) -> None:
    """The cache gives up all that it has, says so once, and passes everything through until there is room."""
    blobs = add_blobs(origin, *[3 * MEBI] * 4)
    later = add_blobs(origin, 5001, 2 * MEBI + 1)
    daemon = make_daemon(registry_table(NS, origin.url), {"min_free": "28MiB"})
    serves(daemon, *blobs)
    daemon.keeps({blob.digest for blob in blobs})
    filler = fill(disk, leave=10 * MEBI)
    wait_until(lambda: daemon.stored() == set(), "everything is given up", seconds=8)
    assert free(disk) < 28 * MEBI
    for number in range(3):
        serves(daemon, *blobs[:2], *later)
        serves_images(daemon, origin, f"tag{number}")
        time.sleep(2.5)
    assert daemon.stored() == set()
    assert said(daemon) == 1
    filler.unlink()
    keeps_again(daemon, *later, blobs[0])
    nothing_half_stored(daemon, {blob.digest for blob in later})
    assert daemon.metric("cacheyd_store_write_errors_total") == 0
