"""What flights cost in memory, however many there are and in whatever pieces their bytes come."""

import gzip
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import zstandard

from tests.faults.client import Client
from tests.faults.scene import blob_target, manifest_target, registry_table
from tests.hostile.peers import MIB, PATIENCE, RawOrigin, Watch, head, rss_anon, whole
from tests.policy.conftest import Starter
from tests.real.procs import wait_until
from tests.support.images import digest_of, random_bytes

# Generous deadlines: what is measured here is memory, and nothing is to end before that.
PATIENT = {"progress_timeout": "30s", "head_timeout": "20s", "connect_timeout": "10s", "max_fetches": "1000"}


def some_digest(number: int) -> str:
    """A digest of something that nobody has."""
    return f"sha256:{hashlib.sha256(b'%d' % number).hexdigest()}"


@contextmanager
def readers(port: int, targets: list[str]) -> Iterator[list[Client]]:
    """Clients that have asked, and read what comes in a thread of their own."""
    with ExitStack() as running:
        clients = [running.enter_context(Client(port, patience=PATIENCE)) for _ in targets]
        for client, target in zip(clients, targets, strict=True):
            client.ask(target)

        def drain(client: Client) -> None:
            try:
                while client.sock.recv(1 << 20):
                    pass
            except OSError:
                pass

        threads = [threading.Thread(target=drain, args=(client,), daemon=True) for client in clients]
        for thread in threads:
            thread.start()
        yield clients


@pytest.mark.parametrize(
    ("flights", "size", "every", "seconds"), [(1, 1400, 0.002, 3.0), (4, 16 << 10, 0.002, 3.0), (20, 1, 0.0, 3.0)]
)
def test_small_pieces_pin_no_blocks(own: Starter, flights: int, size: int, every: float, seconds: float) -> None:
    """Each piece was a view of a block of a MiB: 1,400 bytes each 5 ms were 3 GB in 16 s."""

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head(200, "Content-Length: 1000000000"))
        origin.drip(connection, b"x" * size, every or 0.0002)

    with RawOrigin(answer) as origin:
        daemon = own.daemon(registry_table("evil.test", origin.url), PATIENT)
        targets = [blob_target("a/b", some_digest(n), "evil.test") for n in range(flights)]
        with readers(daemon.port, targets), Watch(daemon) as watch:
            time.sleep(seconds)
            assert daemon.metric("cacheyd_flights") == flights
        assert watch.peak < 100 * MIB, watch.peak / MIB
        assert watch.stall < 0.5
        wait_until(lambda: rss_anon(daemon.pid) < 100 * MIB, "the memory comes back", seconds=5)


def test_many_flights_share_one_budget(own: Starter) -> None:
    """256 flights of which 8 MiB have come were 2 GB: each could hold that much."""
    flights, size = 256, 3 * MIB
    piece = b"x" * MIB
    came = threading.Semaphore(0)

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head(200, "Content-Length: 10000000"))
        connection.sendall(piece * (size // len(piece)))
        came.release()
        origin.stopping.wait(PATIENCE)

    with RawOrigin(answer) as origin, RawOrigin(answer) as other:
        other.stopping = origin.stopping
        daemon = own.daemon(registry_table("a.test", origin.url) + registry_table("b.test", other.url), PATIENT)
        targets = [blob_target("a/b", some_digest(n), "ab"[n % 2] + ".test") for n in range(flights)]
        with readers(daemon.port, targets), Watch(daemon) as watch:
            for _ in range(flights):
                assert came.acquire(timeout=PATIENCE)
            wait_until(lambda: daemon.metric("cacheyd_store_partial_bytes") >= flights * size, "all of it", seconds=PATIENCE)
        assert watch.peak < 300 * MIB, watch.peak / MIB
        assert watch.stall < 1.5


def test_slow_readers_of_one_flight_share_the_budget(own: Starter) -> None:
    """Who has taken nothing yet held a copy of up to a MiB."""
    clients = 400

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head(200, "Content-Length: 1000000000") + b"x" * (3 * MIB))
        origin.stopping.wait(PATIENCE)

    with RawOrigin(answer) as origin:
        daemon = own.daemon(registry_table("evil.test", origin.url), PATIENT)
        target = blob_target("a/b", some_digest(1), "evil.test")
        with ExitStack() as running, Watch(daemon, stalls=False) as watch:
            for number in range(clients):
                client = running.enter_context(Client(daemon.port, patience=PATIENCE, receive_buffer=4096))
                client.ask(target)
                if not number:
                    client.read_head()
            time.sleep(1)
        assert watch.peak < 250 * MIB, watch.peak / MIB


ENDLESS = {
    "head": b"HTTP/1.1 200 OK\r\nX: ",
    "status line": b"HTTP/1.1 200 ",
    "many headers": b"HTTP/1.1 200 OK\r\n",
    "nothing like HTTP": b"",
    "chunk line": head(200, "Transfer-Encoding: chunked") + b"5;x=",
    "trailers": head(200, "Transfer-Encoding: chunked") + b"0\r\nX: ",
    "informational": b"",
}


@pytest.mark.parametrize("what", ["head", "status line", "many headers", "nothing like HTTP", "chunk line", "trailers"])
@pytest.mark.parametrize("kind", ["blob", "manifest", "head"])
def test_a_head_or_a_line_without_an_end(own: Starter, what: str, kind: str) -> None:
    """1.5 GB, until the memory was gone."""
    line = b"X: " + b"y" * 1000 + b"\r\n" if what == "many headers" else b"x" * (1 << 16)

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(ENDLESS[what])
        origin.drip(connection, line * (64 if what == "many headers" else 1), 0.0, count=4000)

    with RawOrigin(answer) as origin:
        daemon = own.daemon(registry_table("evil.test", origin.url), PATIENT)
        target = (
            blob_target("a/b", some_digest(1), "evil.test") if kind == "blob" else manifest_target("a/b", "v1", "evil.test")
        )
        with Watch(daemon) as watch:
            started = time.monotonic()
            with Client(daemon.port, patience=PATIENCE) as client:
                reply = client.exchange(target, method="HEAD" if kind == "head" else "GET")
        assert reply.status in (200, 502), reply.status
        if reply.status == 200:
            assert reply.end == "fin" or kind == "head"
        assert time.monotonic() - started < 10
        assert watch.peak < 100 * MIB, watch.peak / MIB
        assert watch.stall < 0.5


def test_answers_of_429_are_remembered_in_little_memory(own: Starter) -> None:
    """400 of them with bodies of 1 MiB were 493 MB."""
    body = b"{" + b" " * MIB + b"}"

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(whole(body, "Retry-After: 120", "X-Large: " + "y" * 5000, status=429))

    with RawOrigin(answer) as origin:
        daemon = own.daemon(registry_table("evil.test", origin.url), PATIENT)
        with Watch(daemon) as watch, Client(daemon.port, patience=PATIENCE) as client:
            for number in range(300):
                reply = client.exchange(manifest_target("a/b", "v1", "evil.test"), {"Authorization": f"Bearer {number}"})
                assert reply.status == 429
                assert reply.header("Retry-After") == "120"
        assert watch.peak < 120 * MIB, watch.peak / MIB
        asked = len(origin.heads)
        again = daemon.get(manifest_target("a/b", "v1", "evil.test"), {"Authorization": "Bearer 7"})
        assert (again.status, again.header("Retry-After"), len(origin.heads)) == (429, "120", asked)
        assert b'"errors"' in again.body


def test_tiny_chunks_do_not_hold_the_loop(own: Starter) -> None:
    """Each chunk costs the time of all layers, however small it is."""

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head(200, "Transfer-Encoding: chunked"))
        origin.drip(connection, b"1\r\nx\r\n" * 20_000, 0.0, count=10)

    with RawOrigin(answer) as origin:
        daemon = own.daemon(registry_table("evil.test", origin.url), PATIENT)
        targets = [blob_target("a/b", some_digest(n), "evil.test") for n in range(4)]
        with readers(daemon.port, targets), Watch(daemon) as watch:
            wait_until(lambda: daemon.metric("cacheyd_flights") == 0, "the flights end", seconds=PATIENCE)
        assert watch.peak < 100 * MIB, watch.peak / MIB
        assert watch.stall < 0.3, watch.stall


def patient_clients(running: ExitStack, port: int, targets: list[str], headers: dict[str, str] | None = None) -> None:
    """Clients that ask, and read nothing."""
    for target in targets:
        running.enter_context(Client(port, patience=PATIENCE, receive_buffer=4096)).ask(target, headers)
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["lists", "one list", "decoded"])
def test_bodies_in_memory_count_until_they_are_sent(own: Starter, kind: str) -> None:
    """200 clients that did not read held 600 MB of lists, or 800 MB of what had come encoded."""
    clients = 100
    tags = json.dumps({"name": "a/b", "tags": ["t" * 100] * 19_000}).encode()
    blob = random_bytes(30_000, 1) + bytes(4 * MIB - 40_000)
    packed = gzip.compress(blob)

    def answer(connection: socket.socket, request: bytes) -> None:
        if b"/tags/" in request:
            connection.sendall(whole(tags, "Content-Type: application/json"))
        else:
            connection.sendall(whole(packed, "Content-Encoding: gzip"))

    with RawOrigin(answer) as origin:
        # What is decoded has no room on the disk.
        settings = {**PATIENT, "flight_memory": "32MiB", "max_size": "1MiB"}
        daemon = own.daemon(registry_table("evil.test", origin.url), settings)
        with ExitStack() as running, Watch(daemon) as watch:
            if kind == "decoded":
                targets = [blob_target("a/b", digest_of(blob), "evil.test")] * clients
            else:
                targets = [f"/v2/a/b/tags/list?n={0 if kind == 'one list' else n}&ns=evil.test" for n in range(clients)]
            patient_clients(running, daemon.port, targets)
            time.sleep(2.5)
        assert watch.grown < 140 * MIB, watch.grown / MIB
        assert watch.stall < 1
        with Client(daemon.port, patience=PATIENCE) as client:
            # All of it is given back.
            wait_until(lambda: client.exchange(targets[0]).status == 200, "there is room", seconds=5)


def test_windows_of_decoders_are_few(own: Starter) -> None:
    """Each had 8 MiB: 64 lists held 400 MB."""
    plain = b"".join(random_bytes(9000, n) + bytes(MIB) for n in range(12))
    parameters = zstandard.ZstdCompressionParameters(window_log=23, compression_level=1)
    engine = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = engine.compress(plain) + engine.flush()

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(whole(packed, "Content-Encoding: zstd", "Content-Type: application/json"))

    with RawOrigin(answer) as origin:
        daemon = own.daemon(registry_table("evil.test", origin.url), PATIENT)
        targets = [f"/v2/a/b/tags/list?n={n}&ns=evil.test" for n in range(40)]
        targets += [blob_target("a/b", some_digest(n), "evil.test") for n in range(40)]
        with ExitStack() as running, Watch(daemon) as watch:
            patient_clients(running, daemon.port, targets)
            time.sleep(3)
        assert watch.grown < 140 * MIB, watch.grown / MIB
        assert watch.stall < 1
