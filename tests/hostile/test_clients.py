"""Clients that pour, pipeline, trickle and never read: each costs its share, and others are served meanwhile."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.faults.client import Client, End, Stopwatch, request
from tests.faults.daemon import Daemon
from tests.faults.scene import blob_target, eventually, manifest_target, registry_table
from tests.hostile.launched import cpu_seconds, sockets
from tests.hostile.peers import MIB, RawOrigin, Watch, whole
from tests.policy.conftest import Starter
from tests.support.images import digest_of, make_image, random_bytes
from tests.support.origin import Origin

NS, REPO = "reg.test", "acme/app"
HUGE = random_bytes(32 * MIB, seed=901)
WINDOW = random_bytes(4 * MIB, seed=902)
LITTLE = random_bytes(60_000, seed=903)
IMAGE = make_image(seed=904)
MAX_CONNECTIONS = 60


def blob(data: bytes) -> str:
    return blob_target(REPO, digest_of(data), NS)


@pytest.fixture(scope="module")
def held() -> Iterator[threading.Event]:
    """Upstream `slow.test` answers when it is set."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(scope="module")
def slow(held: threading.Event) -> Iterator[RawOrigin]:
    def answer(connection: socket.socket, head: bytes) -> None:
        held.wait(10)
        connection.sendall(whole(b"{}", status=404))

    with RawOrigin(answer) as origin:
        yield origin


@pytest.fixture(scope="module")
def daemon(shared: Starter, slow: RawOrigin) -> Daemon:
    origin = shared.origin(Origin())
    for data in (HUGE, WINDOW, LITTLE):
        origin.add_blob(REPO, data)
    origin.push(REPO, "1.0", IMAGE)
    config = registry_table(NS, origin.url) + registry_table("slow.test", slow.url)
    daemon = shared.daemon(config, {"max_connections": str(MAX_CONNECTIONS), "head_timeout": "10s", "access": "open"})
    for target in (blob(HUGE), blob(WINDOW), blob(LITTLE), manifest_target(REPO, IMAGE.digest, NS)):
        assert daemon.get(target).status == 200
        eventually(lambda target=target: daemon.get(target, method="HEAD").cache, "HIT")  # type: ignore[misc]
    return daemon


def pour(client: Client, piece: bytes, seconds: float) -> int:
    """Sends pieces while they are taken; how many bytes were."""
    client.sock.settimeout(0.2)
    sent, ends = 0, time.monotonic() + seconds
    while time.monotonic() < ends:
        with suppress(TimeoutError):
            sent += client.sock.send(piece[sent % len(piece) :])
    client.sock.settimeout(10)
    return sent


# What is sent to it


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_comes_behind_a_waiting_request_is_not_read(daemon: Daemon, held: threading.Event, method: str) -> None:
    held.clear()
    ask = request(manifest_target(REPO, method, "slow.test"), method=method)
    piece = request(manifest_target(REPO, IMAGE.digest, NS), {"X-Long": "x" * 2000})
    with daemon.connect() as client, Watch(daemon) as watch:
        client.send(ask)
        sent = pour(client, piece * 40, 2)
        assert sent < 16 * MIB
        held.set()
        assert client.read_reply(method=method).status == 404
        for _ in range(sent // len(piece)):
            assert client.read_reply().body == IMAGE.manifest
    assert watch.grown < 16 * MIB


def test_what_comes_behind_a_body_that_is_not_read_is_not_read(daemon: Daemon) -> None:
    with daemon.connect(receive_buffer=4096) as client, Watch(daemon) as watch:
        client.ask(blob(HUGE))
        # Within the deadline on progress.
        assert pour(client, bytes(1 << 16), 0.8) < 16 * MIB
        assert client.read_reply().body == HUGE
        assert client.read_reply().status == 400
    assert watch.grown < 16 * MIB


@pytest.mark.parametrize("data", [LITTLE, WINDOW], ids=["little", "window"])
def test_pipelined_hits_that_nobody_reads(daemon: Daemon, data: bytes) -> None:
    heads = request(blob(data)) * 585
    with ExitStack() as stack, Watch(daemon) as watch:
        clients = [stack.enter_context(daemon.connect(receive_buffer=4096)) for _ in range(30)]
        for client in clients:
            pour_once(client, heads)
        time.sleep(0.8)
        for _ in range(585 if data is LITTLE else 8):
            reply = clients[0].read_reply()
            assert (reply.status, reply.cache) == (200, "HIT")
            assert reply.body == data
    assert watch.grown < 40 * MIB
    assert watch.stall < 0.6


def pour_once(client: Client, data: bytes) -> None:
    """As much of it as goes without the other side reading it."""
    threading.Thread(target=client.send, args=(data,), daemon=True).start()


@pytest.mark.parametrize("target", ["/metrics", manifest_target(REPO, IMAGE.digest, NS), "/v2/nobody"])
def test_pipelined_answers_are_all_right(daemon: Daemon, target: str) -> None:
    """Also those that are flows: pages, errors, HEADs of hits."""
    with daemon.connect() as client, Watch(daemon) as watch:
        pour_once(client, request(target) * 400)
        time.sleep(0.5)
        replies = [client.read_reply() for _ in range(400)]
    assert len({(reply.status, reply.end) for reply in replies}) == 1
    assert all(reply.body for reply in replies)
    assert watch.grown < 16 * MIB


def test_a_refused_body_without_end(daemon: Daemon) -> None:
    """Chunked, with a chunk extension that never ends."""
    with daemon.connect() as client, Watch(daemon) as watch:
        client.send(request("/v2/a/blobs/uploads/", {"Transfer-Encoding": "chunked"}, method="POST") + b"1;")
        with suppress(ConnectionError):
            pour(client, b"x" * (1 << 16), 1.5)
        reply = client.read_reply()
        assert reply.status == 405
    assert watch.grown < 8 * MIB


def test_who_goes_on_sending_is_closed_all_the_same(daemon: Daemon) -> None:
    """mitmproxy forgot such a connection, and left it open."""
    eventually(lambda: sockets(daemon), 0)
    with ExitStack() as stack:
        for headers in ({"Connection": "close"}, {"Bad Header": "x"}) * 10:
            client = stack.enter_context(daemon.connect())
            pour_once(client, request("/healthz", headers) + bytes(20 * MIB))
        eventually(lambda: sockets(daemon), 0, seconds=4)


# Heads


def test_a_head_in_small_pieces_costs_little(daemon: Daemon) -> None:
    """Looked at once: 1,900 pieces of 60 KiB took 0.7 s of CPU when each was a search of the whole."""
    head = request("/v2/", {"X-Long": "x" * 61_000})
    with daemon.connect() as client:
        before = cpu_seconds(daemon)
        for at in range(0, len(head), 32):
            client.send(head[at : at + 32])
            time.sleep(0.001)  # So that they arrive as they were sent.
        assert client.read_reply().body == b"{}"
        assert cpu_seconds(daemon) - before < 0.45


def test_a_head_with_many_lines_is_refused(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.send(request("/v2/", dict.fromkeys(map(str, range(8000)), "")))
        assert client.read_reply().status == 431
        assert client.rest()[1] is End.FIN


# Clients that do not read


@pytest.mark.parametrize(
    ("target", "times", "clients"),
    [(blob(HUGE), 1, 54), (blob(WINDOW), 1, 54), (blob(LITTLE), 100, 54), ("/metrics", 1000, 1)],
    ids=["huge", "window", "little", "page"],
)
def test_who_never_reads_is_let_go(daemon: Daemon, target: str, times: int, clients: int) -> None:
    """All of them count until their sockets are closed, and then others are served."""
    eventually(lambda: sockets(daemon), 0)
    with ExitStack() as stack:
        for _ in range(3):
            for _ in range(clients):
                client = stack.enter_context(daemon.connect(receive_buffer=4096))
                pour_once(client, request(target) * times)
            time.sleep(0.2)
            assert sockets(daemon) <= MAX_CONNECTIONS
        watch = Stopwatch()
        # One deadline for the answer, one for the close.
        eventually(lambda: sockets(daemon), 0)
        assert watch.seconds < 6
        assert daemon.get(blob(LITTLE)).body == LITTLE


def test_who_reads_less_than_the_least_rate_is_let_go(daemon: Daemon) -> None:
    with daemon.connect(receive_buffer=4096) as client:
        client.ask(blob(HUGE))
        watch = Stopwatch()
        client.read_head()
        while sockets(daemon) and watch.seconds < 8:
            with suppress(ConnectionError):
                client.sock.recv(64)
            time.sleep(0.1)
        assert 1 < watch.seconds < 6


def test_who_reads_slowly_gets_it_all(daemon: Daemon) -> None:
    """More than the least rate, less than the deadline would allow for the whole."""
    with daemon.connect(receive_buffer=65536) as client:
        client.ask(blob(WINDOW))
        head = client.read_head()
        begun = b""
        for _ in range(15):
            begun += client.read(40_000)
            time.sleep(0.2)
        assert begun + client.read(head.length - len(begun)) == WINDOW
