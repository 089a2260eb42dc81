"""Nobody takes more than his share of turns and time: slow bodies, fetches that nobody waits for, many layers at once."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.faults.client import Client, Stopwatch
from tests.faults.scene import blob_target, manifest_target, registry_table
from tests.hostile.peers import PATIENCE, RawOrigin, head, whole
from tests.hostile.test_flight_memory import readers, some_digest
from tests.policy.conftest import Starter
from tests.policy.lab import assert_ok
from tests.real.procs import wait_until
from tests.support.images import Blob, make_image, random_bytes
from tests.support.origin import Origin

ROUGH = {"progress_timeout": "2s", "head_timeout": "10s", "connect_timeout": "2s"}


@contextmanager
def dripping(every: float, piece: bytes = b"x") -> Iterator[RawOrigin]:
    """An origin whose blobs of a GB come a piece at a time; manifests are answered at once."""

    def answer(connection: socket.socket, request: bytes) -> None:
        if b"/manifests/" in request:
            connection.sendall(whole(b'{"errors":[]}', status=404))
            return
        connection.sendall(head(200, "Content-Length: 1000000"))
        origin.drip(connection, piece, every)

    with RawOrigin(answer) as origin:
        yield origin


def test_fetches_that_nobody_waits_for_make_way(own: Starter) -> None:
    """4 hosts with 8 blobs each take all turns, a byte every now and then; the clients are gone at once."""
    with dripping(0.5) as evil, Origin() as honest:
        tables = "".join(registry_table(f"evil{n}.test", evil.url) for n in range(4))
        settings = ROUGH | {"max_flights": "32", "progress_timeout": "20s"}
        daemon = own.daemon(tables + registry_table("good.test", honest.url), settings)
        blob = Blob(random_bytes(200_000, 1))
        honest.add_blob("a/b", blob.data)
        with ExitStack() as clients:
            for number in range(32):
                client = clients.enter_context(Client(daemon.port, patience=PATIENCE))
                client.ask(blob_target("a/b", some_digest(number), f"evil{number % 4}.test"))
                client.leave()
        wait_until(lambda: daemon.metric("cacheyd_flights") == 32, "all turns are taken", seconds=5)
        time.sleep(5)
        with Stopwatch.started() as watch:
            with Client(daemon.port, patience=PATIENCE) as client:
                assert_ok(client.exchange(blob_target("a/b", blob.digest, "good.test")), blob.data, "MISS")
            assert watch.seconds < 5


def test_slow_fetches_make_way_although_somebody_reads_them(own: Starter) -> None:
    """They are fast enough for the least rate, and hold all turns as long as they like."""
    with dripping(0.05, b"x" * 400) as evil, Origin() as honest:
        tables = "".join(registry_table(f"evil{n}.test", evil.url) for n in range(4))
        daemon = own.daemon(tables + registry_table("good.test", honest.url), ROUGH | {"max_flights": "8"})
        blob = Blob(random_bytes(200_000, 2))
        honest.add_blob("a/b", blob.data)
        targets = [blob_target("a/b", some_digest(number), f"evil{number % 4}.test") for number in range(8)]
        with readers(daemon.port, targets):
            wait_until(lambda: daemon.metric("cacheyd_flights") == 8, "all turns are taken", seconds=5)
            time.sleep(5.5)
            assert daemon.metric("cacheyd_flights") == 8
            with Client(daemon.port, patience=PATIENCE) as client, Stopwatch.started() as watch:
                assert_ok(client.exchange(blob_target("a/b", blob.digest, "good.test")), blob.data, "MISS")
            assert watch.seconds < 4


def test_a_fetch_goes_on_without_its_client_but_not_for_ever(own: Starter) -> None:
    with dripping(0.02, b"x" * 500) as evil:
        settings = ROUGH | {"finish_abandoned": "1s", "progress_timeout": "20s"}
        daemon = own.daemon(registry_table("evil.test", evil.url), settings)
        with Client(daemon.port, patience=PATIENCE) as client:
            client.ask(blob_target("a/b", some_digest(1), "evil.test"))
            client.read_head()
        time.sleep(0.5)
        assert daemon.metric("cacheyd_flights") == 1
        wait_until(lambda: daemon.metric("cacheyd_flights") == 0, "it ends", seconds=4)


def test_no_registry_takes_more_than_half_of_the_turns(own: Starter) -> None:
    with dripping(0.05, b"x" * 5000) as evil, Origin() as honest:
        settings = ROUGH | {"max_flights": "16"}
        daemon = own.daemon(registry_table("evil.test", evil.url) + registry_table("good.test", honest.url), settings)
        blob = Blob(random_bytes(200_000, 3))
        honest.add_blob("a/b", blob.data)
        with readers(daemon.port, [blob_target("a/b", some_digest(number), "evil.test") for number in range(20)]):
            wait_until(lambda: len(evil.heads) == 8, "half of them are asked for", seconds=5)
            with Client(daemon.port, patience=PATIENCE) as client, Stopwatch.started() as watch:
                assert_ok(client.exchange(blob_target("a/b", blob.digest, "good.test")), blob.data, "MISS")
            assert watch.seconds < 1
            assert len(evil.heads) == 8


@pytest.mark.parametrize("kind", ["kept", "passed through"])
def test_a_body_below_the_least_rate_is_broken_off(own: Starter, kind: str) -> None:
    """A byte just within each deadline held its place for years."""
    with dripping(0.4, b"x" * 20) as evil:
        settings = ROUGH | {"retries": "0"} | ({"max_size": "1KiB"} if kind == "passed through" else {})
        daemon = own.daemon(registry_table("evil.test", evil.url), settings)
        with Client(daemon.port, patience=PATIENCE) as client, Stopwatch.started() as watch:
            reply = client.exchange(blob_target("a/b", some_digest(1), "evil.test"))
        assert (reply.status, reply.end) == (200, "fin")
        assert watch.seconds < 6
        wait_until(lambda: daemon.metric("cacheyd_flights") == 0, "nothing goes on", seconds=2)


@pytest.mark.parametrize("what", ["manifest", "error", "token", "redirect", "list"])
def test_other_slow_bodies_end_in_time(own: Starter, what: str) -> None:
    """Nobody waits for them longer than clients wait for a head."""

    def answer(connection: socket.socket, request: bytes) -> None:
        status, fields = 200, ["Content-Length: 50000"]
        if what == "error":
            status = 404
        elif what == "redirect":
            status, fields = 307, [*fields, f"Location: {origin.url}/elsewhere"]
        elif what == "token" and b"/token" not in request:
            realm = f'Www-Authenticate: Bearer realm="{origin.url}/token",service="x"'
            connection.sendall(whole(b"{}", realm, status=401))
            return
        connection.sendall(head(status, *fields))
        origin.drip(connection, b" " * 10, 0.3)

    with RawOrigin(answer) as origin:
        auth = 'auth = "anonymous"\n' if what == "token" else ""
        daemon = own.daemon(registry_table("evil.test", origin.url) + auth, ROUGH | {"head_timeout": "4s"})
        target = "/v2/a/b/tags/list?ns=evil.test" if what == "list" else manifest_target("a/b", "v1", "evil.test")
        with Client(daemon.port, patience=PATIENCE) as client, Stopwatch.started() as watch:
            reply = client.exchange(target)
        assert reply.status in ((404,) if what == "error" else (504,) if what == "list" else (502, 503, 504)), reply
        assert reply.end == "complete"
        assert watch.seconds < 9


def test_small_requests_never_wait_behind_layers(own: Starter) -> None:
    """64 honest layers of 1 MB/s starved the tags of their registry: a known `latest` was STALE after 20 s."""
    with Origin() as origin:
        settings = ROUGH | {"head_timeout": "20s", "max_waiting": "64"}
        daemon = own.daemon(registry_table("reg.test", origin.url) + "max_fetches = 8\n", settings)
        image, other = make_image(seed=1), make_image(seed=2)
        origin.push("a/b", "latest", image)
        assert daemon.get(manifest_target("a/b", "latest", "reg.test")).status == 200
        origin.push("a/b", "v2", other)
        release = threading.Event()
        layers = [Blob(random_bytes(300_000, number)) for number in range(10, 30)]
        for layer in layers:
            origin.add_blob("a/b", layer.data)
            origin.fault(layer.digest.partition(":")[2], hold=release, hold_at=100_000)
        with ExitStack() as clients, Stopwatch.started() as watch:
            for layer in layers:
                client = clients.enter_context(Client(daemon.port, patience=PATIENCE))
                client.ask(blob_target("a/b", layer.digest, "reg.test"))
            wait_until(lambda: daemon.metric("cacheyd_flights") == 20, "all are wanted", seconds=5)
            for method in ("HEAD", "GET"):
                known = daemon.get(manifest_target("a/b", "latest", "reg.test"), method=method)
                assert (known.status, known.cache) == (200, "REVALIDATED")
            assert daemon.get(manifest_target("a/b", "v2", "reg.test")).body == other.manifest
            assert daemon.get(manifest_target("a/b", "nothing", "reg.test")).status == 404
            assert daemon.get("/v2/a/b/tags/list?ns=reg.test").status == 200
            head_of_blob = daemon.get(blob_target("a/b", other.layers[0].digest, "reg.test"), method="HEAD")
            assert head_of_blob.status == 200
            assert watch.seconds < 8
            release.set()


def test_no_registry_has_more_than_half_of_those_who_wait(own: Starter) -> None:
    def hang(_: socket.socket, __: bytes) -> None:
        evil.stopping.wait(PATIENCE)

    with RawOrigin(hang) as evil, Origin() as honest:
        settings = ROUGH | {"max_waiting": "140", "head_timeout": "15s"}
        daemon = own.daemon(registry_table("evil.test", evil.url) + registry_table("good.test", honest.url), settings)
        honest.push("a/b", "v1", image := make_image(seed=5))
        with ExitStack() as clients:
            waiting = []
            for number in range(80):
                client = clients.enter_context(Client(daemon.port, patience=PATIENCE))
                client.ask(manifest_target("a/b", f"v{number}", "evil.test"))
                waiting.append(client)
            wait_until(lambda: daemon.metric("cacheyd_waiting") == 70, "half of them wait", seconds=5)
            assert daemon.get(manifest_target("a/b", "more", "evil.test")).status == 503
            assert_ok(daemon.get(manifest_target("a/b", "v1", "good.test")), image.manifest)
