"""Files in CACHE_DIR go, or are not what they were: requests succeed with the right bytes, and it is kept again."""

import os
import shutil
from pathlib import Path

import pytest

from tests.faults.conftest import MakeDaemon
from tests.faults.scene import STREAMED, Scene, assert_whole, blob_target, eventually, registry_table
from tests.real.procs import wait_until
from tests.support.files import sizes
from tests.support.images import Blob, random_bytes
from tests.support.origin import Origin

NS = "up.test"
CUT = 300_000
MEBI = 1 << 20
SIZES = [5000, 100_000, STREAMED]
WIPES = ["contents", "all"]


def wipe(directory: Path, how: str = "contents") -> None:
    """`rm -rf`; what the daemon makes anew meanwhile may stay."""
    if how == "all":
        shutil.rmtree(directory, ignore_errors=True)
    for path in list(directory.glob("*")):
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True) if path.is_file() else None


def assert_kept_again(scene: Scene, blob: Blob) -> None:
    """Clients get it all the time (for a moment, a small one may be in memory), and later from a file that is right."""
    path = scene.cache.blob_file(blob.digest)

    def kept() -> bool:
        assert_whole(scene.get(blob), blob)
        return path.is_file() and path.read_bytes() == blob.data

    eventually(kept, True)
    eventually(lambda: scene.get(blob, method="HEAD").cache, "HIT")
    assert_whole(scene.get(blob), blob)


# Wiped


@pytest.mark.parametrize("how", WIPES)
@pytest.mark.parametrize("size", SIZES)
def test_wiped_while_idle(scene: Scene, how: str, size: int) -> None:
    blob, image = scene.blob(size), scene.image()
    scene.assert_served(blob)
    assert scene.get(scene.tag_target("1.0")).status == 200
    wipe(scene.cache.cache_dir, how)
    assert_kept_again(scene, blob)
    for reference in ("1.0", image.digest):
        assert scene.get(scene.tag_target(reference)).body == image.manifest
    eventually(lambda: scene.get(scene.tag_target(image.digest)).cache, "HIT")
    eventually(lambda: scene.get(scene.tag_target("1.0")).cache, "HIT")


@pytest.mark.parametrize("how", WIPES)
def test_wiped_while_serving(scene: Scene, how: str) -> None:
    blob = scene.blob(24 * MEBI)
    scene.assert_served(blob)
    with scene.cache.connect(receive_buffer=65536) as client:
        client.ask(scene.target(blob))
        head = client.read_head()
        assert head.cache == "HIT"
        wipe(scene.cache.cache_dir, how)
        assert_whole(client.read_body(head), blob)
    assert_kept_again(scene, blob)


@pytest.mark.parametrize("how", WIPES)
@pytest.mark.parametrize("at", [-1, 0, CUT])
@pytest.mark.parametrize("size", [CUT + 1, 2 * STREAMED])
def test_wiped_during_a_fetch(scene: Scene, how: str, at: int, size: int) -> None:
    blob = scene.blob(size)
    go = scene.hold(blob, at)
    with scene.asking(blob) as client:
        if at < 0:
            scene.wait_waiting(1)
        else:
            scene.wait_partial(blob, at)
        wipe(scene.cache.cache_dir, how)
        go.set()
        assert_whole(client.read_reply(), blob)
    assert_kept_again(scene, blob)


def test_wiped_is_empty_for_the_metrics_too(make_daemon: MakeDaemon, origin: Origin) -> None:
    """What is found missing is no longer counted, and what is fetched again is counted once."""
    blob = Blob(random_bytes(STREAMED, 1))
    origin.add_blob("app", blob.data)
    daemon = make_daemon(registry_table(NS, origin.url))
    for _ in range(3):
        assert_whole(daemon.get(blob_target("app", blob.digest, NS)), blob)
        daemon.keeps({blob.digest})
        eventually(lambda: daemon.metric("cacheyd_store_objects", 'kind="blob"'), 1.0)
        eventually(lambda: daemon.metric("cacheyd_store_bytes"), float(STREAMED))
        wipe(daemon.cache_dir)


# Files that are not what they were


def spoil(path: Path, what: str, size: int) -> None:
    """Makes the file of a kept object another one, of another size."""
    match what:
        case "truncated":
            os.truncate(path, size // 2)
        case "empty":
            os.truncate(path, 0)
        case "longer":
            os.truncate(path, size * 2)
        case "garbage":
            path.unlink()
            path.write_bytes(b"rubbish" * 1000)
        case _:
            path.unlink()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("what", ["truncated", "empty", "longer", "garbage", "gone"])
def test_a_file_of_another_size_is_never_served(scene: Scene, size: int, what: str) -> None:
    blob = scene.blob(size)
    scene.assert_served(blob)
    spoil(scene.cache.blob_file(blob.digest), what, size)
    assert_kept_again(scene, blob)


def test_wiped_again_before_the_first_time_was_mended(make_daemon: MakeDaemon, origin: Origin) -> None:
    """While there is no index yet, it cannot be missed; what is counted is right within seconds all the same."""
    daemon = make_daemon(registry_table(NS, origin.url))
    for number in range(4):
        blob = Blob(random_bytes(100_000, 60 + number))
        origin.add_blob("app", blob.data)
        assert_whole(daemon.get(blob_target("app", blob.digest, NS)), blob)
        daemon.keeps({blob.digest})
        eventually(lambda: daemon.metric("cacheyd_store_objects"), 1.0)
        wipe(daemon.cache_dir)
        eventually(lambda: daemon.metric("cacheyd_store_objects"), 0.0, seconds=20.0)


@pytest.mark.parametrize("what", ["truncated", "longer", "garbage", "gone"])
def test_what_takes_the_place_of_a_wrong_file_is_counted(scene: Scene, what: str) -> None:
    """Eviction goes by these numbers: what is not counted is not evicted in time."""

    def counted() -> tuple[float, float]:
        return scene.cache.metric("cacheyd_store_bytes"), scene.cache.metric("cacheyd_store_objects")

    def on_disk() -> tuple[float, float]:
        there = sizes(scene.cache.cache_dir / "blobs")
        return float(sum(there.values())), float(len(there))

    blob = scene.blob(SIZES[0])
    scene.assert_served(blob)
    # What other tests wiped is noticed within seconds.
    wait_until(lambda: counted() == on_disk(), "what is there is counted")
    before = counted()
    spoil(scene.cache.blob_file(blob.digest), what, SIZES[0])
    assert_kept_again(scene, blob)
    eventually(counted, before)


def test_a_manifest_file_of_another_size_is_never_served(scene: Scene) -> None:
    image = scene.image()
    target = scene.tag_target(image.digest)
    assert scene.get(target).body == image.manifest
    scene.cache.blob_file(image.digest).write_bytes(b"{}")
    for reference in (image.digest, "1.0"):
        assert scene.get(scene.tag_target(reference)).body == image.manifest
    eventually(lambda: scene.get(target).cache, "HIT")
    assert scene.get(target).body == image.manifest


def test_a_mapped_file_that_shrinks_kills_nobody(scene: Scene) -> None:
    """Not ours to do, but a broken disk may: the client gets a FIN short of Content-Length."""
    blob = scene.blob(24 * MEBI)
    scene.assert_served(blob)
    with scene.cache.connect(receive_buffer=65536) as client:
        client.ask(scene.target(blob))
        head = client.read_head()
        os.truncate(scene.cache.blob_file(blob.digest), 100)
        # What the first client holds must not be what others get.
        assert_kept_again(scene, blob)
        reply = client.read_body(head)
        assert len(reply.body) < head.length or reply.body == blob.data
        assert blob.data.startswith(reply.body)
    assert_whole(scene.get(blob), blob)
