"""Somebody with a wildcard domain has as many registries as he likes: what each may have is no bound on all of them."""

import socket
import time
from contextlib import ExitStack

from tests.faults.client import Client, Stopwatch
from tests.faults.scene import blob_target, manifest_target, registry_table
from tests.hostile.peers import MIB, PATIENCE, RawOrigin, Watch, head, whole
from tests.hostile.test_flight_memory import readers, some_digest
from tests.policy.conftest import Starter
from tests.policy.lab import assert_ok
from tests.real.procs import wait_until
from tests.support.images import Blob, random_bytes
from tests.support.origin import Origin

ROUGH = {"progress_timeout": "20s", "head_timeout": "10s", "connect_timeout": "2s"}


def names(count: int, url: str) -> str:
    """So many registries behind one origin."""
    return "".join(registry_table(f"n{number}.test", url) for number in range(count))


def test_one_slow_fetch_under_each_of_many_names(own: Starter) -> None:
    """Each was the only one of its registry, so none made way: every other miss was 503."""

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head(200, "Content-Length: 1000000"))
        evil.drip(connection, b"x" * 400, 0.1)

    with RawOrigin(answer) as evil, Origin() as honest:
        daemon = own.daemon(names(16, evil.url) + registry_table("good.test", honest.url), ROUGH | {"max_flights": "16"})
        blob = Blob(random_bytes(200_000, 3))
        honest.add_blob("a/b", blob.data)
        with readers(daemon.port, [blob_target("a/b", some_digest(n), f"n{n}.test") for n in range(16)]):
            wait_until(lambda: daemon.metric("cacheyd_flights") == 16, "all turns are taken", seconds=5)
            time.sleep(5.2)
            with Client(daemon.port, patience=PATIENCE) as client, Stopwatch.started() as watch:
                assert_ok(client.exchange(blob_target("a/b", blob.digest, "good.test")), blob.data, "MISS")
            assert watch.seconds < 4


def test_idle_connections_to_many_origins(own: Starter) -> None:
    """One answer of each of 8,000 origins left 8,000 descriptors and 360 MB."""

    def answer(connection: socket.socket, request: bytes) -> None:
        while request:
            connection.sendall(head(404, "Content-Length: 0"))
            request = connection.recv(1 << 16)

    with ExitStack() as running:
        origins = [running.enter_context(RawOrigin(answer)) for _ in range(400)]
        tables = "".join(registry_table(f"n{number}.test", origin.url) for number, origin in enumerate(origins))
        daemon = own.daemon(tables, ROUGH)
        with Client(daemon.port, patience=PATIENCE) as client:
            for number in range(len(origins)):
                assert client.exchange(manifest_target("a/b", "v1", f"n{number}.test")).status == 404
        assert daemon.descriptors() < 256 + 60


def test_answers_that_are_refused_give_their_memory_back(own: Starter) -> None:
    """What came of their bodies counted for ever: 16,500 of them used up the memory of all others."""
    refused = head(200, "Content-Length: 100000", "X: \0") + b"x" * 8000

    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(refused if b"/manifests/" in request else whole(data.data))

    data = Blob(random_bytes(30 * MIB, 8))
    with RawOrigin(answer) as evil:
        # Little enough to be used up by as many as a test can send.
        tables = names(200, evil.url) + registry_table("good.test", evil.url)
        daemon = own.daemon(tables, ROUGH | {"flight_memory": "1MiB"})
        with Client(daemon.port, patience=PATIENCE) as client:
            for number in range(200):
                assert client.exchange(manifest_target("a/b", "v1", f"n{number}.test")).status == 502
        with Watch(daemon, stalls=False) as watch:
            assert_ok(daemon.get(blob_target("a/b", data.digest, "good.test")), data.data, "MISS")
        assert watch.peak < 100 * MIB


def test_rate_limits_with_many_headers(own: Starter) -> None:
    """6,000 of them, each with 60 KB of headers that looked as if they mattered, were 430 MB."""
    fields = [f"ratelimit-{number}: {'x' * 1000}" for number in range(60)]

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(whole(b"", "Retry-After: 300", "RateLimit-Remaining: 0;w=21600", *fields, status=429))

    with RawOrigin(answer) as evil:
        daemon = own.daemon(registry_table("evil.test", evil.url), ROUGH)
        target = manifest_target("a/b", "v1", "evil.test")
        with Watch(daemon, stalls=False) as watch, Client(daemon.port, patience=PATIENCE) as client:
            for number in range(800):
                reply = client.exchange(target, {"Authorization": f"Bearer {number}"}, method="HEAD")
                assert reply.status == 429
        assert watch.grown < 20 * MIB, watch.grown / MIB
        again = daemon.get(target, {"Authorization": "Bearer 7"}, method="HEAD")
        assert (again.header("Retry-After"), again.header("RateLimit-Remaining")) == ("300", "0;w=21600")
        assert len(evil.heads) == 800


def test_heads_of_many_clients_that_do_not_end(own: Starter) -> None:
    """4,000 connections with 60 KB of a head each were 450 MB."""
    with RawOrigin(lambda _, __: None) as evil:
        daemon = own.daemon(registry_table("evil.test", evil.url), ROUGH)
        half = b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 60_000
        with ExitStack() as clients, Watch(daemon) as watch:
            for _ in range(900):
                clients.enter_context(Client(daemon.port, patience=PATIENCE)).send(half)
            time.sleep(0.5)
            assert daemon.get("/v2/").status == 200
        assert watch.grown < 65 * MIB, watch.grown / MIB
        assert watch.stall < 0.5
        # And others are served again, large heads included.
        wait_until(lambda: daemon.get("/v2/", {"X": "x" * 50_000}).status == 200, "there is room again", seconds=5)
