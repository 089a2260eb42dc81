"""Room comes as bytes come: promises and bytes that are not verified push nothing out of the cache, or at most a tenth."""

import hashlib
import os
import socket
import time
from contextlib import ExitStack

import pytest

from tests.faults.client import Client
from tests.faults.scene import blob_target, registry_table
from tests.hostile.peers import MIB, PATIENCE, RawOrigin, head
from tests.policy.conftest import Starter
from tests.policy.lab import Lab, assert_ok
from tests.real.procs import wait_until
from tests.support.images import Blob, random_bytes
from tests.support.origin import Origin

MAX, COUNT, SIZE = 40 * MIB, 36, MIB
ROUGH = {"max_size": "40MiB", "progress_timeout": "4s", "head_timeout": "4s", "retries": "0"}


def some_digest(number: int) -> str:
    return f"sha256:{hashlib.sha256(b'nobody has %d' % number).hexdigest()}"


def full(own: Starter, evil: RawOrigin) -> tuple[Lab, list[Blob]]:
    """A cache that has 36 of the 40 MiB that it may have."""
    good = own.origin(Origin())
    lab = own.lab(registry_table("good.test", good.url) + registry_table("evil.test", evil.url), {"o": good}, ROUGH)
    blobs = [lab.blob("o", "a/b", SIZE) for _ in range(COUNT)]
    for blob in blobs:
        assert_ok(lab.get(blob_target("a/b", blob.digest, "good.test")), blob.data)
    lab.settle()
    return lab, blobs


def kept(lab: Lab, blobs: list[Blob]) -> int:
    """How many of them are still there."""
    return sum(lab.cache.has(blob.digest) for blob in blobs)


@pytest.mark.parametrize("promise", [39 * MIB, 41 * MIB, 10**17])
def test_a_head_evicts_nothing(own: Starter, promise: int) -> None:
    """One response head, without a body, emptied the cache."""

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head(200, f"Content-Length: {promise}"))
        evil.stopping.wait(PATIENCE)

    with RawOrigin(answer) as evil:
        lab, blobs = full(own, evil)
        with ExitStack() as clients:
            for number in range(10):
                client = clients.enter_context(Client(lab.cache.port, patience=PATIENCE))
                client.ask(blob_target("a/b", some_digest(number), "evil.test"))
            wait_until(lambda: len(evil.heads) >= 10, "all are asked for", seconds=5)
            time.sleep(2.5)  # Eviction looks every 2 s.
            assert kept(lab, blobs) == COUNT


@pytest.mark.parametrize("chunked", [True, False])
def test_bytes_that_are_not_verified_evict_a_tenth(own: Starter, chunked: bool) -> None:
    """An endless body, again and again, from several at once: never more than a tenth goes."""
    piece = os.urandom(256 << 10)
    framed = b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head(200, "Transfer-Encoding: chunked" if chunked else "Content-Length: 1000000000"))
        evil.drip(connection, framed, 0.0, count=400)

    with RawOrigin(answer) as evil:
        lab, blobs = full(own, evil)
        for attack in range(3):
            with ExitStack() as clients:
                for number in range(6):
                    client = clients.enter_context(Client(lab.cache.port, patience=PATIENCE))
                    client.ask(blob_target("a/b", some_digest(10 * attack + number), "evil.test"))
                asked = 6 * (attack + 1)
                wait_until(lambda asked=asked: len(evil.heads) >= asked, "all are asked for", seconds=5)  # type: ignore[misc]
                time.sleep(0.5)
            lab.settle()
        time.sleep(2.5)
        assert kept(lab, blobs) >= COUNT * 0.85
        assert lab.cache.metric("cacheyd_store_bytes") + lab.cache.metric("cacheyd_store_partial_bytes") <= MAX


def test_a_strangers_layer_larger_than_a_tenth_is_kept_once_it_was_right(own: Starter) -> None:
    """It passes through the first time, hashed; then room is made for it."""
    with RawOrigin(lambda _, __: None) as evil:
        lab, _ = full(own, evil)
        stranger = own.origin(Origin())
        lab.cache.config_file.write_text(lab.cache.config_file.read_text() + registry_table("new.test", stranger.url))
        lab.cache.restart()
        layer = Blob(random_bytes(12 * MIB, 4242))
        stranger.add_blob("a/b", layer.data)
        target = blob_target("a/b", layer.digest, "new.test")
        wait_until(lambda: lab.cache.metric("cacheyd_store_bytes") >= COUNT * SIZE, "what is stored is known", seconds=5)
        assert_ok(lab.get(target), layer.data, "BYPASS")
        assert_ok(lab.get(target), layer.data, "MISS")
        lab.settle()
        assert_ok(lab.get(target), layer.data, "HIT")


def test_who_has_delivered_what_is_there_has_room_for_more(own: Starter) -> None:
    """An ordinary full cache takes an ordinary large layer at once."""
    with RawOrigin(lambda _, __: None) as evil:
        lab, _ = full(own, evil)
        layer = lab.blob("o", "a/b", 12 * MIB)
        target = blob_target("a/b", layer.digest, "good.test")
        assert_ok(lab.get(target), layer.data, "MISS")
        lab.settle()
        assert_ok(lab.get(target), layer.data, "HIT")
