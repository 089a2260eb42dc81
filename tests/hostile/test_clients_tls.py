"""The same over TLS, and before it: handshakes that are not completed, ClientHellos without an end."""

import ssl
import time
from contextlib import ExitStack, suppress

import pytest

from tests.faults.client import Client, Stopwatch, request
from tests.faults.daemon import Daemon
from tests.faults.scene import blob_target, eventually, registry_table
from tests.hostile.launched import Launched, cpu_seconds, sockets
from tests.hostile.peers import MIB, Watch
from tests.policy.conftest import Starter
from tests.policy.test_tls_listener import TlsDaemon
from tests.support.certs import TestCA
from tests.support.images import digest_of, random_bytes
from tests.support.origin import Origin

NS, REPO = "reg.test", "acme/app"
DEADLINE = 1.0
HUGE = random_bytes(32 * MIB, seed=911)
MIDDLE = random_bytes(MIB, seed=912)
# The head of a handshake record of 16,384 bytes, and of a ClientHello of 1 MiB in it.
RECORD, HELLO = b"\x16\x03\x01\x40\x00", b"\x01\x10\x00\x00"


class LaunchedTls(Launched, TlsDaemon):
    """A daemon that speaks TLS."""


@pytest.fixture(scope="module")
def context(ca: TestCA) -> ssl.SSLContext:
    return ca.client_context()


@pytest.fixture(scope="module")
def daemon(shared: Starter, ca: TestCA, context: ssl.SSLContext) -> Daemon:
    origin = shared.origin(Origin())
    for data in (HUGE, MIDDLE):
        origin.add_blob(REPO, data)
    cert, key = ca.issue("127.0.0.1")
    config = f'tls_cert = "{cert}"\ntls_key = "{key}"\n{registry_table(NS, origin.url)}'
    kind = type("Tls", (LaunchedTls,), {"context": context})
    changed = {"HOSTILE_CONSTANTS": f"cacheyd.proxy.inbound.link.HANDSHAKE_DEADLINE={DEADLINE}"}
    daemon = shared.daemon(config, {"head_timeout": "10s"}, env=changed, kind=kind)
    for data in (HUGE, MIDDLE):
        target = blob_target(REPO, digest_of(data), NS)
        assert daemon.get(target).body == data
        eventually(lambda target=target: daemon.get(target, method="HEAD").header("X-Cache"), "HIT")  # type: ignore[misc]
    return daemon


def shake(daemon: Daemon, context: ssl.SSLContext, *, receive_buffer: int | None = None) -> Client:
    """A client whose bytes go through TLS."""
    client = Client(daemon.port, patience=10, receive_buffer=receive_buffer)
    client.sock = context.wrap_socket(client.sock, server_hostname="127.0.0.1")
    return client


BEGUN = {
    "nothing": b"",
    "a byte": b"\x16",
    "a record's head": RECORD,
    "half a hello": RECORD + HELLO + bytes(300),
    "records of a byte": b"".join(b"\x16\x03\x01\x00\x01" + bytes([byte]) for byte in HELLO + bytes(200)),
}


@pytest.mark.parametrize("begun", BEGUN.values(), ids=BEGUN.keys())
def test_a_handshake_has_a_deadline(daemon: Daemon, context: ssl.SSLContext, begun: bytes) -> None:
    with Client(daemon.port, patience=8) as client:
        watch = Stopwatch()
        client.send(begun)
        client.rest()
        assert DEADLINE - 0.2 < watch.seconds < DEADLINE + 2
    assert daemon.get("/healthz").status == 200


def test_a_handshake_byte_by_byte_has_the_same_deadline(daemon: Daemon) -> None:
    with Client(daemon.port) as client:
        watch = Stopwatch()
        data = iter(RECORD + HELLO + bytes(16_000))
        while sockets(daemon) or watch.seconds < 0.5:
            with suppress(ConnectionError):
                client.sock.send(bytes([next(data)]))
            time.sleep(0.02)
            assert watch.seconds < DEADLINE + 2
        assert watch.seconds > DEADLINE - 0.2


@pytest.mark.parametrize(
    "data",
    [RECORD + bytes(8192), RECORD + HELLO + bytes(16380) + RECORD + bytes(16384), b"\x16" * 8192, RECORD[:3] + bytes(8192)],
    ids=["no hello", "too long", "no record", "empty record"],
)
def test_what_is_no_hello_is_closed_at_once(daemon: Daemon, data: bytes) -> None:
    since = daemon.log_size()
    with Client(daemon.port) as client, Watch(daemon, stalls=False) as watch:
        started = Stopwatch()
        client.send(data + bytes(2 * MIB))
        client.rest()
        assert started.seconds < DEADLINE - 0.5
    assert watch.grown < 8 * MIB
    eventually(lambda: any("TLS with" in line for line in daemon.lines(since)), True)
    assert max(map(len, daemon.lines(since))) < 500


def test_a_hello_in_small_records_is_looked_at_once(daemon: Daemon) -> None:
    """16 KiB of them, a byte at a time, were 40 million records to look at."""
    data = b"".join(b"\x16\x03\x01\x00\x01" + bytes([byte]) for byte in HELLO + bytes(2600))
    with Client(daemon.port) as client:
        before = cpu_seconds(daemon)
        for at in range(0, len(data), 8):
            client.send(data[at : at + 8])
            if at % 512 == 0:
                time.sleep(0.0005)
        client.rest()
        assert cpu_seconds(daemon) - before < 1


def test_after_the_handshake_there_is_no_deadline_for_the_first_request(daemon: Daemon, context: ssl.SSLContext) -> None:
    with shake(daemon, context) as client:
        time.sleep(DEADLINE + 0.5)
        assert client.exchange("/v2/").body == b"{}"


def test_pipelined_hits_that_nobody_reads(daemon: Daemon, context: ssl.SSLContext) -> None:
    """TLS copies what it sends."""
    heads = request(blob_target(REPO, digest_of(MIDDLE), NS)) * 100
    with ExitStack() as stack:
        clients = [stack.enter_context(shake(daemon, context, receive_buffer=4096)) for _ in range(30)]
        with Watch(daemon, stalls=False) as watch:
            for client in clients:
                client.send(heads)
            time.sleep(0.7)
            for _ in range(5):
                assert clients[0].read_reply().body == MIDDLE
    assert watch.grown < 66 * MIB


def test_what_comes_behind_a_body_that_is_not_read_is_not_read(daemon: Daemon, context: ssl.SSLContext) -> None:
    with shake(daemon, context) as client, Watch(daemon, stalls=False) as watch:
        client.ask(blob_target(REPO, digest_of(HUGE), NS))
        client.sock.settimeout(0.5)
        sent = 0
        with suppress(TimeoutError, ssl.SSLError):
            while sent < 64 * MIB:
                sent += client.sock.send(bytes(1 << 16))
        assert sent < 32 * MIB
    assert watch.grown < 16 * MIB


def test_who_never_reads_is_let_go(daemon: Daemon, context: ssl.SSLContext) -> None:
    eventually(lambda: sockets(daemon), 0)
    with ExitStack() as stack:
        for _ in range(10):
            client = stack.enter_context(shake(daemon, context, receive_buffer=4096))
            client.ask(blob_target(REPO, digest_of(HUGE), NS))
        eventually(lambda: sockets(daemon), 0, seconds=6)


def test_bodies_that_nobody_reads_share_the_budget(daemon: Daemon, context: ssl.SSLContext) -> None:
    """Each client had a window of a MiB in memory, however many there were."""
    with ExitStack() as clients:
        with Watch(daemon, stalls=False) as watch:
            for _ in range(300):
                client = clients.enter_context(shake(daemon, context, receive_buffer=4096))
                client.sock.sendall(request(blob_target(REPO, digest_of(HUGE), NS)))
            time.sleep(1)
        assert watch.grown < 200 * MIB, watch.grown / MIB
    eventually(lambda: sockets(daemon) < 20, True)
