"""Made-up logins: an honest client waits for one of them at most, however many ask for the same thing."""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest

from tests.faults.client import Client, Reply, Stopwatch, request
from tests.faults.daemon import Daemon
from tests.faults.scene import registry_table
from tests.hostile.peers import PATIENCE, RawOrigin, head, whole
from tests.policy.conftest import Starter

# How long the registry takes for each answer, and how many strangers there are: one after the other, they take 6 s.
TAKES, MANY = 0.05, 120
# What an honest client may wait on a busy machine (seconds).
SOON = 3.0
OCI = "application/vnd.oci.image.manifest.v1+json"
REGISTRIES = ("raw.test", "verified.test")


def manifest(number: int) -> bytes:
    return b'{"schemaVersion":2,"mediaType":"%s","annotations":{"number":"%d"}}' % (OCI.encode(), number)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class World:
    """A registry that refuses made-up logins; `lies` says that it does so for GET only."""

    objects: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    asked: list[bytes] = field(default_factory=list)
    number: int = 0
    lies: bool = False
    daemon: Daemon | None = None

    def serve(self, connection: socket.socket, asked: bytes) -> None:
        """Answers one request."""
        self.asked.append(asked)
        time.sleep(TAKES)
        method, path, _ = asked.split(b"\r\n")[0].decode().split(" ")
        if b"made-up" in asked and not (self.lies and method == "HEAD"):
            connection.sendall(whole(b"", status=401))
            return
        media_type, data = self.objects[path.partition("?")[0]]
        fields = (f"Content-Length: {len(data)}", f"Content-Type: {media_type}", f"Docker-Content-Digest: {digest(data)}")
        connection.sendall(head(200, *fields, "Connection: close") + (b"" if method == "HEAD" else data))

    def thing(self, kind: str, registry: str = "raw.test") -> tuple[str, str, bytes]:
        """Something that nobody has asked for: how it is asked for, and its bytes."""
        self.number += 1
        data, media_type = manifest(self.number), OCI
        what = kind.rpartition(" ")[2]
        if what == "blob":
            data, media_type = b"%d" % self.number * 1000, "application/octet-stream"
        elif what == "list":
            data = b'{"name":"a/b","tags":["%d"]}' % self.number
        elif what == "referrers":
            data = b'{"schemaVersion":2,"manifests":[]}'
        places = {
            "tag": f"manifests/v{self.number}",
            "digest": f"manifests/{digest(data)}",
            "blob": f"blobs/{digest(data)}",
            "list": "tags/list",
            "referrers": f"referrers/{digest(manifest(self.number))}",
        }
        path = f"/v2/a/b{self.number}/{places[what]}"
        self.objects[path] = media_type, data
        return "HEAD" if kind.startswith("HEAD") else "GET", f"{path}?ns={registry}", data

    def ask(self, method: str, target: str, login: str) -> Client:
        """A client that has asked."""
        assert self.daemon
        client = Client(self.daemon.port, patience=PATIENCE)
        client.send(request(target, {"Accept": OCI, "Authorization": f"Bearer {login}"}, method=method))
        return client

    def answer(self, method: str, target: str, login: str = "good") -> Reply:
        """The answer to one client."""
        with self.ask(method, target, login) as client:
            return client.read_reply(method=method)


@pytest.fixture(scope="module")
def world(shared: Starter) -> Iterator[World]:
    world = World()
    with RawOrigin(world.serve) as origin:
        tables = [registry_table(name, origin.url) for name in REGISTRIES]
        world.daemon = shared.daemon("".join(tables) + 'access = "verify"\n', {"head_timeout": "10s"})
        yield world


def assert_soon(world: World, thing: tuple[str, str, bytes]) -> None:
    method, target, data = thing
    watch = Stopwatch()
    reply = world.answer(method, target)
    assert (reply.status, reply.body) == (200, b"" if method == "HEAD" else data)
    assert watch.seconds < SOON


@pytest.mark.parametrize("registry", REGISTRIES)
@pytest.mark.parametrize("kind", ["HEAD tag", "tag", "list", "referrers", "HEAD digest", "digest", "blob"])
def test_an_honest_client_does_not_queue_behind_made_up_logins(world: World, kind: str, registry: str) -> None:
    thing = world.thing(kind, registry)
    with ExitStack() as running:
        strangers = [running.enter_context(world.ask(*thing[:2], f"made-up{number}")) for number in range(MANY)]
        time.sleep(TAKES / 2)
        assert_soon(world, thing)
        assert {stranger.read_reply(method=thing[0]).status for stranger in strangers} <= {200, 401}


@contextmanager
def coming(world: World, method: str, target: str) -> Iterator[None]:
    """New ones all the time."""
    ended = threading.Event()

    def come() -> None:
        with ExitStack() as running:
            while not ended.wait(TAKES / 2):
                world.number += 1
                running.enter_context(world.ask(method, target, f"made-up{world.number}"))

    thread = threading.Thread(target=come)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("lies", [False, True])
@pytest.mark.parametrize("kind", ["tag", "digest", "blob"])
def test_nor_behind_those_that_come_all_the_time(world: World, kind: str, lies: bool) -> None:
    """Nor where HEAD says yes to everybody."""
    thing = world.thing(kind)
    world.lies = lies
    try:
        with coming(world, *thing[:2]):
            time.sleep(5 * TAKES)
            assert_soon(world, thing)
    finally:
        world.lies = False


@pytest.mark.parametrize("kind", ["HEAD tag", "list", "digest", "blob"])
def test_clients_with_one_login_share_the_request_behind_a_stranger(world: World, kind: str) -> None:
    method, target, data = world.thing(kind)
    path = target.partition("?")[0].encode()
    with ExitStack() as running:
        stranger = running.enter_context(world.ask(method, target, "made-up"))
        time.sleep(TAKES / 2)
        clients = [running.enter_context(world.ask(method, target, "good")) for _ in range(20)]
        assert stranger.read_reply(method=method).status == 401
        replies = [client.read_reply(method=method) for client in clients]
    assert {(reply.status, reply.body) for reply in replies} == {(200, b"" if method == "HEAD" else data)}
    gets = [asked for asked in list(world.asked) if path in asked and b"good" in asked and asked.startswith(method.encode())]
    assert len(gets) == 1
