"""What goes when the disk is full: least recently used blobs first, manifests last, pinned images never."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.daemon import Daemon
from tests.faults.scene import blob_target, eventually, manifest_target, registry_table
from tests.policy.conftest import Starter
from tests.policy.lab import Lab, assert_ok
from tests.support.files import sizes
from tests.support.images import Blob, Image, make_image
from tests.support.origin import Origin

MIB = 1 << 20
SIZE = 20 * MIB


@pytest.fixture(scope="module")
def lab(shared: Starter) -> Lab:
    origin = shared.origin(Origin())
    head = f'max_size = "{SIZE // MIB}MiB"\npin = ["reg.test/pinned*:1.0"]\n'
    return shared.lab(head + registry_table("reg.test", origin.url), {"o": origin}, {"progress_timeout": "20s"})


def fetch(lab: Lab, repo: str, size: int) -> Blob:
    """A new blob, kept."""
    blob = lab.blob("o", repo, size)
    assert_ok(lab.pull(blob_target(repo, blob.digest, "reg.test")), blob.data, "MISS")
    return blob


def here(lab: Lab, blob: Blob) -> bool:
    """Whether it is on disk."""
    return lab.cache.blob_file(blob.digest).is_file()


def stored(lab: Lab) -> int:
    """Bytes of what is kept."""
    return sum(sizes(lab.cache.cache_dir / "blobs" / "sha256").values())


def pull_image(lab: Lab, repo: str, seed: int) -> Image:
    """An image of two layers of 2 MiB, pulled as a whole."""
    image = make_image(layers=2, layer_size=2 * MIB, seed=seed)
    lab.origins["o"].push(repo, "1.0", image)
    lab.pull(manifest_target(repo, "1.0", "reg.test"))
    for blob in image.blobs:
        lab.pull(blob_target(repo, blob.digest, "reg.test"))
    return image


def test_least_recently_used_blobs_go_first(lab: Lab) -> None:
    repo = lab.repo()
    fetch(lab, repo, 18 * MIB)  # Whatever was there before goes.
    blobs = [fetch(lab, repo, 2 * MIB) for _ in range(8)]
    for blob in blobs[:2]:
        assert_ok(lab.get(blob_target(repo, blob.digest, "reg.test")), blob.data, "HIT")
    blobs += [fetch(lab, repo, 2 * MIB) for _ in range(3)]
    # The last one would have been too much: room for it was made down to nine tenths.
    eventually(lambda: [n for n, blob in enumerate(blobs) if not here(lab, blob)], [2, 3])
    assert stored(lab) <= SIZE
    assert lab.cache.metric("cacheyd_store_bytes") == stored(lab)
    assert lab.cache.metric("cacheyd_store_objects", 'kind="blob"') == 9
    assert lab.cache.metric("cacheyd_evictions_total", 'reason="room"') >= 2
    # What went is a miss, and comes back.
    assert_ok(lab.get(blob_target(repo, blobs[2].digest, "reg.test")), blobs[2].data, "MISS")


def test_an_image_goes_as_a_whole(lab: Lab) -> None:
    repos = [lab.repo() for _ in range(3)]
    images = [pull_image(lab, repo, 90_000 + n) for n, repo in enumerate(repos)]
    # A layer of the first is used again, and with it the image.
    assert lab.get(blob_target(repos[0], images[0].blobs[-1].digest, "reg.test")).cache == "HIT"
    fetch(lab, lab.repo(), 8 * MIB)
    fetch(lab, lab.repo(), 2 * MIB)
    digests = [[image.digest, *(blob.digest for blob in image.blobs)] for image in images]
    there = [{lab.cache.blob_file(digest).is_file() for digest in one} for one in digests]
    assert there in ([{True}, {False}, {False}], [{True}, {False}, {True}])


def test_pinned_images_stay_and_running_pulls_end(lab: Lab) -> None:
    pinned, repo = f"pinned-{lab.repo()}", lab.repo()
    image = make_image(layers=2, layer_size=MIB, seed=77_000)
    lab.origins["o"].push(pinned, "1.0", image)
    lab.pull(manifest_target(pinned, "1.0", "reg.test"))
    for blob in image.blobs:
        lab.pull(blob_target(pinned, blob.digest, "reg.test"))
    large = fetch(lab, repo, 12 * MIB)
    with lab.cache.connect(receive_buffer=4096) as slow:
        slow.ask(blob_target(repo, large.digest, "reg.test"))
        head = slow.read_head()
        assert head.cache == "HIT"
        begun = slow.read(100_000)
        # The oldest is being read: others go first, and it goes when they are not enough. Its reader gets it all the same.
        others = [fetch(lab, repo, 3 * MIB) for _ in range(5)]
        others.append(fetch(lab, repo, 10 * MIB))
        assert not here(lab, large)
        rest = slow.read(head.length - len(begun))
    assert begun + rest == large.data
    assert here(lab, others[-1])
    assert all(here(lab, blob) for blob in image.blobs)
    assert_ok(lab.get(manifest_target(pinned, "1.0", "reg.test")), image.manifest, "HIT")
    assert stored(lab) <= SIZE


def test_what_is_larger_than_everything_is_served_and_not_kept(lab: Lab) -> None:
    repo = lab.repo()
    small = fetch(lab, repo, MIB)
    blob = lab.blob("o", repo, SIZE + 1)
    assert_ok(lab.get(blob_target(repo, blob.digest, "reg.test")), blob.data, "BYPASS")
    lab.settle()
    assert not here(lab, blob)
    assert here(lab, small)
    assert lab.cache.partial(blob.digest) == 0


# A small disk


class DiskDaemon(Daemon):
    """A daemon whose cache is a disk of its own."""

    def start(self) -> None:
        self.cache_dir.mkdir(exist_ok=True)
        if not os.path.ismount(self.cache_dir):
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(self.cache_dir)], check=True)
        super().start()


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[None]:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting takes root")
    yield
    for directory in tmp_path.glob("*/cache"):
        if os.path.ismount(directory):
            subprocess.run(["umount", "--lazy", str(directory)], check=True)


def free(lab: Lab) -> int:
    """Bytes free on the cache's disk."""
    status = os.statvfs(lab.cache.cache_dir)
    return status.f_bavail * status.f_frsize


def test_min_free(mounts: None, own: Starter) -> None:
    origin = own.origin(Origin())
    daemon = own.daemon(f'min_free = "40MiB"\n{registry_table("reg.test", origin.url)}', kind=DiskDaemon)
    lab = Lab(daemon, {"o": origin}, own.numbers)
    repo = lab.repo()
    blobs = [fetch(lab, repo, 8 * MIB) for _ in range(8)]
    assert free(lab) >= 40 * MIB
    eventually(lambda: lab.cache.metric("cacheyd_evictions_total"), 2.0)
    assert [here(lab, blob) for blob in blobs] == [False] * 2 + [True] * 6
    assert lab.cache.metric("cacheyd_store_free_bytes") == free(lab)
    # Room is made for what fits beside what is to be left free, and what does not is not kept.
    large = fetch(lab, repo, 50 * MIB)
    assert here(lab, large)
    assert not here(lab, blobs[2])
    lab.get(blob_target(repo, blobs[0].digest, "reg.test"))
    assert free(lab) >= 40 * MIB - MIB
    huge = lab.blob("o", repo, 60 * MIB)
    assert_ok(lab.get(blob_target(repo, huge.digest, "reg.test")), huge.data, "BYPASS")
    assert not here(lab, huge)
    assert lab.cache.metric("cacheyd_store_write_errors_total") == 0
