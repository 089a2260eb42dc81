"""containerd pulls more than the cache holds, several images at a time: evictions run during pulls, and harm none."""

import random
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.real.cache import Cacheyd
from tests.real.conftest import MakeCache
from tests.real.containerd import Containerd, write_hosts
from tests.real.lab import REGISTRY, Lab, contents, image_for, new_image, registry_table
from tests.real.procs import program, wait_until
from tests.support.files import sizes
from tests.support.images import Index

LOCAL = "linux/amd64"
LAYER, LAYERS, IMAGES = 2_000_000, 3, 5
MAX_SIZE = LAYER * LAYERS * 3 // 2
PULLS, AT_ONCE = 30, 4


def test_pulls_of_more_than_the_cache_holds(lab: Lab, containerd: Containerd, make_cache: MakeCache, tmp_path: Path) -> None:
    images = {f"lab/evicted-{n}": new_image(layers=LAYERS, layer_size=LAYER) for n in range(IMAGES)}
    pinned = new_image(layers=2, layer_size=300_000)
    for repository, image in {**images, "lab/pinned": pinned}.items():
        lab.publish(tmp_path, repository, content=image)
    head = f'max_size = {MAX_SIZE}\npin = ["{REGISTRY}/lab/pinned:*"]\n'
    cache = make_cache(head + registry_table(REGISTRY, lab.registry.url, lab.ca_file))
    hosts = write_hosts(tmp_path / "hosts", REGISTRY, None, server=cache.url)
    pull(containerd, hosts, "lab/pinned", pinned)

    order = random.Random(1).choices(sorted(images), k=PULLS)
    with watched(cache) as most, ThreadPoolExecutor(AT_ONCE) as nodes:
        for done in [nodes.submit(pull, containerd, hosts, repository, images[repository]) for repository in order]:
            done.result()
    assert cache.metric("cacheyd_evictions_total") >= LAYERS

    wait_until(lambda: cache.metric("cacheyd_flights") == 0, "nothing is on its way in")
    assert contents(pinned, LOCAL) <= cache.stored()
    pull(containerd, hosts, "lab/pinned", pinned)
    assert lab.downloads("lab/pinned") == dict.fromkeys(contents(pinned, LOCAL), 1)
    for repository, image in images.items():
        pull(containerd, hosts, repository, image)
    assert max(most) <= MAX_SIZE


def pull(containerd: Containerd, hosts: Path, repository: str, image: Index) -> None:
    """Into a fresh namespace; everything is there, unpacked, and a layer is byte for byte what was pushed."""
    reference = f"{REGISTRY}/{repository}:1.0"
    done = containerd.pull(reference, hosts)
    assert done.ok, done.output
    assert containerd.check(done.namespace) == {reference: True}
    assert containerd.digests(done.namespace) == contents(image, LOCAL)
    layer = image_for(image, LOCAL).layers[-1]
    argv = [
        program("ctr"),
        "--address",
        str(containerd.address),
        "--namespace",
        done.namespace,
        "content",
        "get",
        layer.digest,
    ]
    assert subprocess.run(argv, capture_output=True, timeout=30, check=True).stdout == layer.data


@contextmanager
def watched(cache: Cacheyd) -> Iterator[list[int]]:
    """The list gets the bytes of objects and partial files, again and again."""
    found = [0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            # Twice: between one directory and the next, what is counted may make room for what is counted, too.
            found.append(min(stored(cache.cache_dir), stored(cache.cache_dir)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def stored(directory: Path) -> int:
    """Bytes of objects and partial files; what goes meanwhile is left out."""
    return sum(size for part in ("blobs/sha256", "partial") for size in sizes(directory / part).values())
