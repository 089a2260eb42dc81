"""CACHE_DIR is missing, full of rubbish, full or read-only: requests succeed with the right bytes all the same."""

import hashlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import MakeDaemon
from tests.faults.daemon import Daemon
from tests.faults.scene import (
    HOLD,
    STREAMED,
    assert_broken_off,
    assert_whole,
    blob_target,
    eventually,
    manifest_target,
    registry_table,
)
from tests.real.procs import wait_until
from tests.support.images import Blob, make_image, random_bytes
from tests.support.origin import Origin

NS = "up.test"
CUT = 300_000
MEBI = 1 << 20


def serves(daemon: Daemon, *blobs: Blob) -> None:
    """Each of these blobs, twice."""
    for blob in (*blobs, *blobs):
        assert_whole(daemon.get(blob_target("app", blob.digest, NS)), blob)


def make_blobs(origin: Origin, *sizes: int) -> list[Blob]:
    blobs = [Blob(random_bytes(size, seed)) for seed, size in enumerate(sizes)]
    for blob in blobs:
        origin.add_blob("app", blob.data)
    return blobs


# The start


@pytest.mark.parametrize("rubbish", ["garbage", "empty", "zeros", "directory", "cut"])
def test_an_index_of_rubbish_loses_nothing(make_daemon: MakeDaemon, origin: Origin, rubbish: str) -> None:
    """Files without a row are adopted, once their bytes are verified."""
    (blob,) = make_blobs(origin, STREAMED)
    image = make_image()
    origin.push("app", "1.0", image)
    daemon = make_daemon(registry_table(NS, origin.url))
    serves(daemon, blob)
    manifest = manifest_target("app", image.digest, NS)
    assert daemon.get(manifest).status == 200
    daemon.keeps({blob.digest, image.digest})
    assert daemon.stop() == 0
    path = daemon.cache_dir / "index" / "cache.db"
    good = path.read_bytes()
    for extra in ("-wal", "-shm"):
        path.with_name(path.name + extra).unlink(missing_ok=True)
    match rubbish:
        case "directory":
            path.unlink()
            (path / "what").mkdir(parents=True)
        case "cut":
            path.write_bytes(good[: len(good) // 2] + b"rubbish")
        case _:
            path.write_bytes({"garbage": random_bytes(50_000, 9), "empty": b"", "zeros": bytes(50_000)}[rubbish])
    wrong = daemon.cache_dir / "blobs" / "sha256" / hashlib.sha256(b"never").hexdigest()
    wrong.write_bytes(b"wrong")
    daemon.start()
    asked = len(origin.requests)
    eventually(wrong.exists, False)
    eventually(lambda: daemon.metric("cacheyd_store_objects"), 2.0)
    for target, data in ((blob_target("app", blob.digest, NS), blob.data), (manifest, image.manifest)):
        reply = daemon.get(target)
        assert (reply.cache, reply.body) == ("HIT", data)
    assert len(origin.requests) == asked
    assert daemon.get(manifest_target("app", "1.0", NS)).body == image.manifest


def test_a_directory_that_is_missing_is_made(make_daemon: MakeDaemon, origin: Origin) -> None:
    (blob,) = make_blobs(origin, STREAMED)
    daemon = make_daemon(registry_table(NS, origin.url), env={"CACHE_DIR": "/nowhere"})
    assert daemon.stop() == 0
    shutil.rmtree(daemon.cache_dir)
    daemon.start()
    serves(daemon, blob)
    daemon.keeps({blob.digest})
    assert (daemon.cache_dir / "oci-layout").is_file()


def test_stale_partial_files_are_swept(make_daemon: MakeDaemon, origin: Origin, release: threading.Event) -> None:
    """Old ones, and those that no fetch can go on with; not a fresh one."""
    fresh, old = make_blobs(origin, STREAMED, STREAMED + 1)
    daemon = make_daemon(registry_table(NS, origin.url), {"progress_timeout": "20s", "grace": "0s"})
    partial = daemon.cache_dir / "partial"
    origin.fault("blobs", times=2, hold=release, hold_at=CUT)
    with daemon.connect() as one, daemon.connect() as two:
        for client, blob in ((one, fresh), (two, old)):
            client.ask(blob_target("app", blob.digest, NS))
            wait_until(lambda blob=blob: daemon.partial(blob.digest) == CUT, "the first part is on disk")  # type: ignore[misc]
        assert daemon.stop() == 0
    names = {path.name: path for path in partial.iterdir()}
    (stale,) = (path for name, path in names.items() if old.digest.replace(":", "-") in name)
    two_days_ago = time.time() - 48 * 3600
    os.utime(stale, (two_days_ago, two_days_ago))
    for name in (*(f"{name}.123-456" for name in names), "rubbish.tmp", "sha256-short"):
        (partial / name).write_bytes(fresh.data[:CUT])
    daemon.start()
    eventually(lambda: {path.name for path in partial.iterdir()}, names.keys() - {stale.name})
    origin.clear()
    serves(daemon, fresh, old)
    assert [request.header("Range") for request in origin.requests] == [f"bytes={CUT}-", None]


# A disk that refuses writes


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """40 MiB of memory where the daemon's CACHE_DIR is to be."""
    where = tmp_path / "daemon" / "cache"
    where.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", where], capture_output=True, check=False)
    if mounted.returncode and not os.environ.get("CI"):
        pytest.skip(f"may not mount: {mounted.stderr.decode().strip()}")
    assert mounted.returncode == 0, mounted.stderr
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def error_lines(daemon: Daemon) -> int:
    return sum("cannot be written" in line and '"error"' in line for line in daemon.lines())


def serves_without_keeping(daemon: Daemon, origin: Origin, *blobs: Blob) -> None:
    """Blobs, ranges and manifests come whole; with one line in the log, and a metric."""
    image = make_image()
    origin.push("app", "1.0", image)
    serves(daemon, *blobs)
    for blob in blobs:
        part = daemon.get(blob_target("app", blob.digest, NS), {"Range": "bytes=100-199"})
        assert (part.status, part.body) == (206, blob.data[100:200])
    for reference in ("1.0", image.digest, "1.0"):
        assert daemon.get(manifest_target("app", reference, NS)).body == image.manifest
    assert daemon.metric("cacheyd_store_writable") == 0
    assert daemon.metric("cacheyd_store_write_errors_total") >= 1
    assert error_lines(daemon) == 1
    assert daemon.get("/readyz").status == 200


def test_a_directory_that_cannot_be_made(make_daemon: MakeDaemon, origin: Origin, tmp_path: Path) -> None:
    blobs = make_blobs(origin, 5000, STREAMED)
    (tmp_path / "daemon").mkdir()
    (tmp_path / "daemon" / "cache").write_text("a file")
    daemon = make_daemon(registry_table(NS, origin.url))
    daemon.expect("cannot be written")
    serves_without_keeping(daemon, origin, *blobs)


def test_a_disk_that_is_read_only(make_daemon: MakeDaemon, origin: Origin, small_disk: Path) -> None:
    kept, *blobs = make_blobs(origin, 200_000, 5000, STREAMED)
    daemon = make_daemon(registry_table(NS, origin.url))
    daemon.expect("cannot be written")
    serves(daemon, kept)
    daemon.keeps({kept.digest})
    assert daemon.stop() == 0
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    daemon.start()
    serves_without_keeping(daemon, origin, *blobs)
    eventually(lambda: daemon.get(blob_target("app", kept.digest, NS)).cache, "HIT")


def test_a_disk_that_is_full(make_daemon: MakeDaemon, origin: Origin, small_disk: Path) -> None:
    """Known beforehand, so it is no error: what does not fit goes through; what fits again is kept again."""
    blobs = make_blobs(origin, 5000, STREAMED, 30 * MEBI)
    daemon = make_daemon(registry_table(NS, origin.url))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(30 * MEBI))
    serves(daemon, *blobs)
    assert daemon.stored() == set()
    filler.unlink()
    serves(daemon, *blobs[:2])
    daemon.keeps({blob.digest for blob in blobs[:2]})


@pytest.mark.parametrize(("size", "cut"), [(60_000, 30_000), (4 * MEBI, CUT)])
def test_a_disk_that_fills_up_during_a_fetch(
    make_daemon: MakeDaemon, origin: Origin, small_disk: Path, release: threading.Event, size: int, cut: int
) -> None:
    """A small blob comes whole all the same; of a large one, the rest is for the upstream: nobody verified the beginning."""
    (blob,) = make_blobs(origin, size)
    daemon = make_daemon(registry_table(NS, origin.url), {"progress_timeout": "20s"})
    daemon.expect("cannot be written")
    target = blob_target("app", blob.digest, NS)
    origin.fault("blobs", times=1, hold=release, hold_at=cut)
    with daemon.connect() as client:
        client.ask(target)
        wait_until(lambda: daemon.partial(blob.digest) == cut, "the first part is on disk")
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
        release.set()
        reply = client.read_reply()
    if size < HOLD:
        assert_whole(reply, blob)
    else:
        assert_broken_off(reply, blob)
        assert daemon.get(target, {"Range": f"bytes={len(reply.body)}-"}).status == 502
        assert_whole(daemon.get(target), blob)
    # It is seen before the write, as room is made for each piece.
    assert error_lines(daemon) + sum("is full" in line for line in daemon.lines()) == 1
    assert daemon.metric("cacheyd_store_write_errors_total") >= 1 or daemon.metric("cacheyd_store_full") == 1
    assert daemon.stored() == set()
    serves(daemon, blob)
