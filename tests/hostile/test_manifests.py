"""Manifests of strangers: what type they are told to have, and what they cost."""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from cacheyd.protocol.media_types import OCI_INDEX, OCI_MANIFEST
from tests.faults.client import Reply
from tests.faults.daemon import Daemon
from tests.faults.scene import manifest_target, registry_table
from tests.hostile.peers import MIB, RawOrigin, Watch, rss_anon, whole
from tests.policy.conftest import Starter
from tests.support.images import digest_of

EVIL, GOOD = "evil.test", "good.test"
APP = "acme/app"
STRICT = {"Accept": f"{OCI_MANIFEST}, {OCI_INDEX}"}


class World:
    """A daemon with two registries: what they have is `content` by digest or tag; what each says that it is, `types`."""

    def __init__(self, starter: Starter, running: ExitStack) -> None:
        self.content: dict[str, bytes] = {}
        self.types = {EVIL: OCI_MANIFEST, GOOD: OCI_MANIFEST}
        origins = {name: running.enter_context(RawOrigin(self._answers(name))) for name in (EVIL, GOOD)}
        self.daemon: Daemon = starter.daemon("".join(registry_table(name, origins[name].url) for name in origins))

    def _answers(self, name: str) -> Callable[..., None]:
        def answer(connection, head: bytes) -> None:  # type: ignore[no-untyped-def]
            match = re.match(rb"(GET|HEAD) /v2/acme/app/manifests/(\S+) ", head)
            assert match, head
            data = self.content[match[2].decode()]
            fields = (f"Content-Type: {self.types[name]}", f"Docker-Content-Digest: {digest_of(data)}")
            reply = whole(data, *fields)
            connection.sendall(reply if match[1] == b"GET" else reply[: reply.index(b"\r\n\r\n") + 4])

        return answer

    def add(self, data: bytes, tag: str = "") -> str:
        self.content[tag or digest_of(data)] = self.content[digest_of(data)] = data
        return digest_of(data)

    def get(self, reference: str, ns: str, *, method: str = "GET") -> Reply:
        return self.daemon.get(manifest_target(APP, reference, ns), STRICT, method=method)


@pytest.fixture(scope="module")
def world(shared: Starter) -> Iterator[World]:
    with ExitStack() as running:
        yield World(shared, running)


def manifest(n: int, **more: object) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": {}, "layers": [], "annotations": {"n": str(n)}, **more}).encode()


# Types


@pytest.mark.parametrize("stated", ["application/evil+json", OCI_INDEX, "text/plain", "application/octet-stream", "x" * 9000])
def test_a_strangers_type_is_nobodys(world: World, stated: str) -> None:
    """He has the right bytes, and is the first."""
    digest = world.add(manifest(len(stated)))
    world.types[EVIL] = stated
    first = world.get(digest, EVIL)
    assert (first.status, first.header("Content-Type")) == (200, OCI_MANIFEST)

    for method in ("GET", "HEAD"):
        reply = world.get(digest, GOOD, method=method)
        assert (reply.status, reply.header("Content-Type")) == (200, OCI_MANIFEST)
    assert world.get(digest, GOOD).cache == "HIT"
    assert world.get(digest, GOOD, method="HEAD").cache == "HIT"


def test_a_tags_type_is_that_of_its_bytes(world: World) -> None:
    """Also where it was a HEAD that said what the tag means."""
    digest = world.add(manifest(1), "1.0")
    world.types[EVIL] = "application/evil+json"
    assert world.get("1.0", EVIL, method="HEAD").status == 200
    for _ in range(2):
        reply = world.get("1.0", EVIL)
        assert (reply.status, reply.header("Content-Type")) == (200, OCI_MANIFEST)
    again = world.get("1.0", EVIL, method="HEAD")
    assert again.header("Content-Type") in (OCI_MANIFEST, "application/evil+json")
    assert world.get(digest, GOOD).header("Content-Type") == OCI_MANIFEST


@pytest.mark.parametrize("data", [b"no manifest", b"{}", b'{"schemaVersion": 1}', b'{"mediaType": "application/evil+json"}'])
def test_what_is_no_manifest_is_passed_on_to_who_asked(world: World, data: bytes) -> None:
    digest = world.add(data)
    world.types[EVIL] = "application/vnd.evil"
    world.types[GOOD] = OCI_MANIFEST
    for _ in range(2):
        evil, good = world.get(digest, EVIL), world.get(digest, GOOD)
        assert (evil.status, evil.body, evil.cache) == (good.status, good.body, good.cache) == (200, data, "MISS")
        assert good.header("Content-Type") != "application/vnd.evil"
    assert not world.daemon.has(digest)


# Costs


def padded(n: int, size: int) -> bytes:
    return manifest(n, annotations={"n": str(n), "x": "y" * size})[:-1] + b"}"


def dense(n: int, size: int) -> bytes:
    """A quarter of a million small objects for each MiB."""
    return manifest(n)[:-1] + b', "x": [' + b",".join([b"{}"] * (size // 3)) + b"]}"


@pytest.mark.parametrize("make", [padded, dense], ids=["long", "dense"])
@pytest.mark.parametrize("mebi", [3, 7])
def test_large_manifests_stall_nobody_and_are_not_all_held(world: World, make: Callable[[int, int], bytes], mebi: int) -> None:
    world.types[EVIL] = OCI_MANIFEST
    digests = [world.add(make(mebi * 100 + n, mebi * MIB)) for n in range(8)]
    with Watch(world.daemon) as watch, ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda digest: world.get(digest, EVIL), digests))
    for digest, reply in zip(digests, replies, strict=True):
        assert (reply.status, reply.body == world.content[digest]) == (200, True)
    assert watch.stall < 0.3
    assert watch.peak < 150 * MIB
    kept = [digest for digest in digests if world.daemon.has(digest)]
    assert len(kept) == (len(kept) if make is padded and mebi == 3 else 0)
    assert rss_anon(world.daemon.pid) < 150 * MIB
    for digest in kept:
        assert world.get(digest, GOOD).cache == "HIT"
