"""A clock that is set back an hour: what is kept in memory ends all the same, and idle connections, too."""

import shutil
import time

import pytest

from tests.faults.client import Reply
from tests.faults.scene import blob_target, eventually, manifest_target, registry_table
from tests.hostile.launched import Launched
from tests.policy.conftest import Starter
from tests.support.images import digest_of, make_image, random_bytes
from tests.support.origin import Origin

NS, REPO = "reg.test", "acme/app"
TTL = 1.0


@pytest.fixture(scope="module")
def origin(shared: Starter) -> Origin:
    return shared.origin(Origin())


@pytest.fixture(scope="module")
def daemon(shared: Starter, origin: Origin) -> Launched:
    config = registry_table(NS, origin.url) + f'tag_ttl = "{TTL}s"\n'
    daemon = shared.daemon(config, {}, env={"HOSTILE_CONSTANTS": "cacheyd.proxy.addon.IDLE_TIMEOUT=2"}, kind=Launched)
    assert isinstance(daemon, Launched)
    return daemon


def fill(daemon: Launched, target: str) -> None:
    """Until it is answered from memory: asked many times within a second."""
    eventually(lambda: daemon.get(target).cache, "HIT")
    in_a_second(daemon, target)


def in_a_second(daemon: Launched, target: str) -> None:
    while time.time() % 1 > 0.3:
        time.sleep(0.01)
    for _ in range(20):
        assert daemon.get(target).cache == "HIT"


def is_right(reply: Reply) -> bool:
    """Whether it has a Date."""
    return reply.header("Date") is not None and reply.header("Age") is not None


@pytest.mark.parametrize("times", [1, 3])
def test_a_moved_tag_is_seen_after_its_ttl(daemon: Launched, origin: Origin, times: int) -> None:
    old, new = make_image(seed=921), make_image(seed=922)
    origin.push(REPO, f"1.{times}", old)
    target = manifest_target(REPO, f"1.{times}", NS)
    fill(daemon, target)
    origin.push(REPO, f"1.{times}", new)
    for _ in range(times):
        daemon.set_clock_back()
    reply = daemon.get(target)
    assert reply.body in (old.manifest, new.manifest)
    time.sleep(TTL + 0.2)
    for _ in range(3):
        reply = daemon.get(target)
        assert reply.body == new.manifest
        assert is_right(reply) or reply.cache == "MISS"


def test_what_is_wiped_is_not_answered_from_memory(daemon: Launched, origin: Origin) -> None:
    data = random_bytes(3000, seed=923)
    origin.add_blob(REPO, data)
    target = blob_target(REPO, digest_of(data), NS)
    fill(daemon, target)
    shutil.rmtree(daemon.cache_dir / "blobs")
    daemon.set_clock_back()
    before = len(origin.requests)
    time.sleep(0.3)
    reply = daemon.get(target)
    assert (reply.status, reply.cache, reply.body) == (200, "MISS", data)
    assert len(origin.requests) > before


def test_an_idle_connection_is_closed(daemon: Launched) -> None:
    with daemon.connect() as client:
        assert client.exchange("/v2/").status == 200
        daemon.set_clock_back()
        started = time.monotonic()
        assert client.rest()[0] == b""
        assert 1 < time.monotonic() - started < 4
