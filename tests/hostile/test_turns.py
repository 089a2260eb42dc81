"""Whatever an upstream answers, its turn is given back, and its connection is closed."""

import gzip
import hashlib
import socket
import time
from contextlib import suppress

import pytest

from tests.faults.client import Client
from tests.faults.scene import eventually, registry_table
from tests.hostile.peers import MIB, PATIENCE, RawOrigin, head
from tests.hostile.test_breaker import silent
from tests.policy.conftest import Starter
from tests.real.cache import REPOSITORY
from tests.support.images import random_bytes

TURNS = 2
# What nobody refers to any more is found at once, and with it each task that nobody ended.
COLLECTS = """
import gc, threading, time
def collect():
    while True:
        time.sleep(0.1)
        gc.collect()
threading.Thread(target=collect, daemon=True).start()
"""


@pytest.mark.parametrize("half_closes", [False, True])
def test_encoded_objects_that_are_too_large_to_be_decoded_in_memory(own: Starter, half_closes: bool) -> None:
    """There is no room for a flight, so they pass through; nothing of the rest is read, and none of it is waited for."""
    blobs = [b"%d" % number + random_bytes(5 * MIB, number) for number in range(2 * TURNS + 1)]
    by_digest = {f"sha256:{hashlib.sha256(blob).hexdigest()}": gzip.compress(blob, 0) for blob in blobs}
    closed: list[str] = []
    site = own.directory / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(COLLECTS)

    def serve(connection: socket.socket, asked: bytes) -> None:
        digest = asked.split(b" ")[1].decode().rpartition("/")[2]
        data = by_digest[digest]
        with suppress(OSError):
            connection.sendall(head(200, f"Content-Length: {len(data) + 1}", "Content-Encoding: gzip") + data)
            if half_closes:
                connection.shutdown(socket.SHUT_WR)
            while connection.recv(1):
                pass
        closed.append(digest)

    with RawOrigin(serve) as origin:
        table = registry_table("raw.test", origin.url) + f"max_fetches = {TURNS}\n"
        daemon = own.daemon(table, {"max_size": "10KiB", "retries": "0"}, env={"PYTHONPATH": f"{site}:{REPOSITORY}"})
        for digest in by_digest:
            with Client(daemon.port, patience=PATIENCE) as client:
                reply = client.exchange(f"/v2/a/b/blobs/{digest}?ns=raw.test")
            assert (reply.status, b"under way" in reply.body) == (502, False)
        assert set(by_digest) == {asked.split(b" ")[1].decode().rpartition("/")[2] for asked in origin.heads}
        eventually(lambda: len(closed), len(origin.heads))
        time.sleep(0.5)
    assert daemon.problems() == []


def test_a_challenge_is_let_go_of_when_there_is_no_time_for_a_token(own: Starter) -> None:
    """Its body has not ended."""
    closed: list[bytes] = []
    with RawOrigin(silent) as service:

        def serve(connection: socket.socket, asked: bytes) -> None:
            challenge = f'WWW-Authenticate: Bearer realm="{service.url}/token"'
            connection.sendall(head(401, "Content-Length: 1000", challenge))
            with suppress(OSError):
                closed.append(connection.recv(1))

        with RawOrigin(serve) as origin:
            # Each of two upstreams has half of the time, which is less than a token service alone would have.
            upstreams = f'"{origin.url}", "http://localhost:{origin.port}"'
            table = f'[registries."raw.test"]\nupstream = [{upstreams}]\n'
            daemon = own.daemon(table, {"retries": "0", "head_timeout": "600ms", "connect_timeout": "200ms"})
            assert daemon.get("/v2/raw.test/a/b/manifests/1.0").status >= 400
            assert service.heads
            eventually(lambda: closed, [b""] * len(origin.heads), 2.0)
