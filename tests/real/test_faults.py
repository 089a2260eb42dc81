"""Something breaks while containerd pulls: the pull ends well, and no wrong byte is kept or served."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.real.cache import Cacheyd
from tests.real.conftest import MakeCache
from tests.real.containerd import Containerd, write_hosts
from tests.real.lab import registry_table
from tests.real.procs import Process, tail, wait_until
from tests.support.images import Image, make_image
from tests.support.origin import Origin, Request

REGISTRY = "faulty.test:5000"
REFERENCE = f"{REGISTRY}/lab/big:1.0"
LAYER_SIZE = 8 << 20
HELD_AT = 5 << 20


@dataclass
class Scene:
    """A registry with faults, its image of one large layer, a cache before it, and a containerd."""

    origin: Origin
    image: Image
    cache: Cacheyd
    containerd: Containerd
    directory: Path

    @property
    def layer(self) -> str:
        return self.image.layers[0].digest

    @property
    def digests(self) -> set[str]:
        return {self.image.digest, *(blob.digest for blob in self.image.blobs)}

    def hosts(self, server: str | None = None) -> Path:
        """The cache, then `server`; by default nothing but the cache."""
        where = self.directory / f"hosts-{len(list(self.directory.iterdir()))}"
        return write_hosts(where, REGISTRY, self.cache.url if server else None, server=server or self.cache.url)

    def layer_requests(self) -> list[Request]:
        return [request for request in self.origin.requests if request.path.endswith(self.layer)]

    def assert_pulled(self, namespace: str) -> None:
        assert self.containerd.check(namespace) == {REFERENCE: True}
        assert self.containerd.digests(namespace) == self.digests

    def pull(self) -> None:
        """Through the cache alone."""
        pull = self.containerd.pull(REFERENCE, self.hosts())
        assert pull.ok, pull.output
        self.assert_pulled(pull.namespace)

    @contextmanager
    def pull_held(self, hosts: Path) -> Iterator[threading.Event]:
        """A pull that upstream holds up in the middle of the layer, until the event is set; then it has to succeed."""
        go = threading.Event()
        self.origin.fault(f"GET .*/blobs/{self.layer}", times=1, hold=go, hold_at=HELD_AT)
        namespace = self.containerd.namespace()
        argv = self.containerd.pull_command(REFERENCE, hosts, namespace)
        client = Process(argv, self.directory / f"{namespace}.log")
        try:
            wait_until(lambda: self.cache.partial(self.layer) >= HELD_AT // 2, "half of the layer is on disk")
            yield go
            go.set()
            assert client.wait(60) == 0, tail(client.log_file)
        finally:
            go.set()
            client.kill()
        self.assert_pulled(namespace)


@pytest.fixture
def scene(request: pytest.FixtureRequest, make_cache: MakeCache, containerd: Containerd, tmp_path: Path) -> Iterator[Scene]:
    image = make_image(layers=1, layer_size=LAYER_SIZE, seed=hash(request.node.name))
    with Origin() as origin:
        origin.push("lab/big", "1.0", image)
        yield Scene(origin, image, make_cache(registry_table(REGISTRY, origin.url)), containerd, tmp_path)


def test_killed_in_a_fetch(scene: Scene) -> None:
    """containerd goes on at the registry; after a restart the fetch goes on where it was."""
    with scene.pull_held(scene.hosts(scene.origin.url)):
        scene.cache.kill()
    had = scene.cache.partial(scene.layer)
    assert HELD_AT // 2 <= had < LAYER_SIZE
    assert scene.layer not in scene.cache.stored()

    scene.origin.clear()
    scene.cache.start()
    scene.pull()
    assert [request.header("Range") for request in scene.layer_requests()] == [f"bytes={had}-"]
    scene.cache.keeps(scene.digests)
    assert scene.cache.partial(scene.layer) == 0


def test_wiped_in_a_fetch(scene: Scene) -> None:
    with scene.pull_held(scene.hosts()):
        for path in scene.cache.cache_dir.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert scene.cache.stored() <= scene.digests
    scene.pull()
    scene.pull()
    scene.cache.keeps(scene.digests)
    assert scene.cache.ready()


def test_wiped_between_pulls(scene: Scene) -> None:
    """What was lost is a miss, never an error, and is kept again."""
    scene.pull()
    shutil.rmtree(scene.cache.cache_dir)
    scene.pull()
    assert len(scene.layer_requests()) == 2
    scene.pull()
    assert len(scene.layer_requests()) == 2
    scene.cache.keeps(scene.digests)


def test_terminated_in_a_fetch(scene: Scene) -> None:
    """SIGTERM lets running transfers end; what was fetched is kept."""
    with scene.pull_held(scene.hosts(scene.origin.url)) as go:
        threading.Timer(0.5, go.set).start()
        assert scene.cache.stop() == 0
    assert len(scene.layer_requests()) == 1
    assert scene.layer in scene.cache.stored()


def test_client_leaves_in_a_fetch(scene: Scene) -> None:
    """The fetch belongs to the cache: it is finished, and the next client finds the layer."""
    go = threading.Event()
    scene.origin.fault(f"GET .*/blobs/{scene.layer}", times=1, hold=go, hold_at=HELD_AT)
    argv = scene.containerd.pull_command(REFERENCE, scene.hosts(), scene.containerd.namespace())
    client = Process(argv, scene.directory / "leaves.log")
    try:
        wait_until(lambda: scene.cache.partial(scene.layer) >= HELD_AT // 2, "half of the layer is on disk")
    finally:
        client.kill()
        go.set()
    wait_until(lambda: scene.layer in scene.cache.stored(), "the layer is kept")
    scene.pull()
    assert len(scene.layer_requests()) == 1


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_upstream_cuts_a_body(scene: Scene, how: str) -> None:
    """The cache resumes; containerd sees a pause."""
    scene.origin.fault(f"GET .*/blobs/{scene.layer}", times=1, cut_after=HELD_AT, how="rst" if how == "rst" else "fin")
    scene.pull()
    first, second = scene.layer_requests()
    assert first.header("Range") is None
    assert (second.header("Range") or "").startswith("bytes=")
    scene.cache.keeps(scene.digests)


@pytest.mark.parametrize(
    ("part", "offset"), [("layer", LAYER_SIZE - 1000), ("config", 10)], ids=["end-of-layer", "small-blob"]
)
def test_upstream_sends_wrong_bytes(scene: Scene, part: str, offset: int) -> None:
    """They are not passed on: the end of a layer is held back and its resume refused, a small blob is refused at once."""
    digest = scene.layer if part == "layer" else scene.image.config.digest
    scene.origin.fault(f"GET .*/blobs/{digest}", corrupt_at=offset)
    with Origin() as good:
        good.push("lab/big", "1.0", scene.image)
        pull = scene.containerd.pull(REFERENCE, scene.hosts(good.url))
        assert pull.ok, pull.output
        scene.assert_pulled(pull.namespace)
        assert good.count("GET", digest) >= 1
    assert digest not in scene.cache.stored()
    assert scene.cache.metric("cacheyd_verify_failures_total") >= 1


def test_upstream_sends_wrong_bytes_early_in_a_layer(scene: Scene) -> None:
    """containerd has them when they are noticed, and refuses the layer; tried again it gets it from the second server."""
    # What is before the stall is at the client when the end comes.
    late = LAYER_SIZE * 3 // 4
    scene.origin.fault(f"GET .*/blobs/{scene.layer}", corrupt_at=LAYER_SIZE // 2, stall_at=late, stall_for=0.5)
    with Origin() as good:
        good.push("lab/big", "1.0", scene.image)
        hosts = scene.hosts(good.url)
        pull = scene.containerd.pull(REFERENCE, hosts)
        assert not pull.ok
        assert "unexpected commit digest" in pull.output
        # Until its collector has run, containerd goes on with the bytes it has.
        wait_until(lambda: scene.containerd.pull(REFERENCE, hosts, pull.namespace).ok, "a further pull succeeds")
        scene.assert_pulled(pull.namespace)
    assert scene.layer not in scene.cache.stored()
    assert scene.cache.metric("cacheyd_verify_failures_total") >= 1


def test_upstream_fails_before_the_body(scene: Scene) -> None:
    """A 5xx is passed on, so that containerd goes to the second server."""
    scene.origin.fault("GET .*/blobs/", status=503)
    with Origin() as good:
        good.push("lab/big", "1.0", scene.image)
        pull = scene.containerd.pull(REFERENCE, scene.hosts(good.url))
        assert pull.ok, pull.output
        scene.assert_pulled(pull.namespace)
    scene.cache.keeps({scene.image.digest})
