"""A disk that cannot be read any more: what it cannot give is fetched again, and nobody gets wrong bytes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.client import End
from tests.faults.conftest import MakeDaemon
from tests.faults.daemon import Daemon
from tests.faults.disks import MEBI, FailingDisk, failing_disk
from tests.faults.scene import assert_whole, blob_target, eventually, manifest_target, registry_table
from tests.support.images import Blob, make_image, random_bytes
from tests.support.origin import Origin

NS = "up.test"
SIZE = 30 * MEBI


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FailingDisk]:
    """Where the daemon's CACHE_DIR is."""
    with failing_disk(tmp_path / "daemon" / "cache", 96 * MEBI) as disk:
        yield disk


@pytest.fixture
def daemon(make_daemon: MakeDaemon, origin: Origin, disk: FailingDisk) -> Daemon:
    return make_daemon(registry_table(NS, origin.url), {"min_free": "0", "progress_timeout": "20s"})


@pytest.fixture
def blob(origin: Origin, daemon: Daemon) -> Blob:
    """One that is kept."""
    blob = Blob(random_bytes(SIZE, 77))
    origin.add_blob("app", blob.data)
    assert_whole(daemon.get(target(blob)), blob)
    eventually(lambda: daemon.has(blob.digest), True)
    return blob


def target(blob: Blob) -> str:
    return blob_target("app", blob.digest, NS)


def readable(daemon: Daemon, blob: Blob) -> list[bool]:
    """Each MiB of its file."""
    fd = os.open(daemon.blob_file(blob.digest), os.O_RDONLY)
    try:
        return [_can_read(fd, at) for at in range(0, SIZE, MEBI)]
    finally:
        os.close(fd)


def _can_read(fd: int, at: int) -> bool:
    try:
        return len(os.pread(fd, 1, at)) == 1
    except OSError:
        return False


def test_a_body_that_breaks_off_is_whole_the_next_time(daemon: Daemon, blob: Blob, disk: FailingDisk, origin: Origin) -> None:
    disk.fail(beyond=24 * MEBI)
    broken = daemon.get(target(blob))
    assert broken.end is End.FIN
    assert 0 < len(broken.body) < SIZE
    assert blob.data.startswith(broken.body)
    parts = readable(daemon, blob)
    assert parts[0]
    assert not parts[-1]

    asked = len(origin.requests)
    assert_whole(daemon.get(target(blob)), blob)
    assert len(origin.requests) > asked
    eventually(lambda: daemon.get(target(blob), {"Range": "bytes=0-0"}).cache, "HIT")
    assert_whole(daemon.get(target(blob)), blob)


def test_a_body_that_cannot_be_begun_is_a_miss(daemon: Daemon, blob: Blob, disk: FailingDisk, origin: Origin) -> None:
    disk.fail(beyond=24 * MEBI)
    first = readable(daemon, blob).index(False) * MEBI
    reply = daemon.get(target(blob), {"Range": f"bytes={first}-{first + 999}"})

    assert reply.status == 206
    assert reply.body == blob.data[first : first + 1000]
    assert_whole(daemon.get(target(blob)), blob)


def test_pulls_go_on_when_nothing_can_be_read(daemon: Daemon, blob: Blob, disk: FailingDisk, origin: Origin) -> None:
    daemon.expect("cannot be written|did not get to the disk|failed")
    image = make_image(seed=5)
    origin.push("app", "1.0", image)
    disk.fail(beyond=MEBI)

    for _ in range(3):
        assert_whole(daemon.get(target(blob)), blob)
        assert daemon.get(manifest_target("app", "1.0", NS)).body == image.manifest
        for layer in image.blobs:
            assert_whole(daemon.get(target(layer)), layer)
