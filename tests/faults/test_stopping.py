"""A rolling update in the middle of pulls whose layers are read in pieces, as containerd does from 2.1 on."""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.faults.client import Client, ClosedError, Stopwatch
from tests.faults.conftest import MakeDaemon
from tests.faults.daemon import Daemon
from tests.faults.scene import blob_target, manifest_target, registry_table
from tests.real.procs import listening, wait_until
from tests.support.images import Blob, make_image, random_bytes
from tests.support.origin import Origin

NS = "up.test"
SIZE, PIECE = 12 << 20, 512 << 10


@pytest.fixture(scope="module")
def layer() -> Blob:
    return Blob(random_bytes(SIZE, 77))


def start(make_daemon: MakeDaemon, origin: Origin, *blobs: Blob, grace: str = "20s") -> Daemon:
    for blob in blobs:
        origin.add_blob("app", blob.data)
    return make_daemon(registry_table(NS, origin.url), {"grace": grace})


def piece(daemon: Daemon, blob: Blob, first: int, *, bounded: bool) -> bytes:
    """One piece on a connection of its own; an open-ended range is dropped when the piece is full."""
    last = min(len(blob.data), first + PIECE) - 1
    with Client(daemon.port) as client:
        client.ask(blob_target("app", blob.digest, NS), {"Range": f"bytes={first}-{last if bounded else ''}"})
        head = client.read_head()
        assert head.status == 206, head
        data = client.read(last + 1 - first)
        if not bounded:
            client.leave(reset=True)
    return data


def pull(daemon: Daemon, blob: Blob, *, bounded: bool, on_piece: Callable[[int], None]) -> bytes:
    """A layer by four workers, each taking the next piece when it has one."""
    starts = iter(range(0, len(blob.data), PIECE))
    lock = threading.Lock()
    found: dict[int, bytes] = {}

    def work() -> None:
        while True:
            with lock:
                first = next(starts, None)
            if first is None:
                return
            found[first] = piece(daemon, blob, first, bounded=bounded)
            on_piece(len(found))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work) for _ in range(4)]:
            done.result()
    return b"".join(found[first] for first in sorted(found))


@pytest.mark.parametrize("bounded", [False, True], ids=["open", "bounded"])
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_a_layer_in_pieces_is_served_to_its_end(
    make_daemon: MakeDaemon, origin: Origin, layer: Blob, bounded: bool, warm: bool
) -> None:
    daemon = start(make_daemon, origin, layer)
    if warm:
        daemon.get(blob_target("app", layer.digest, NS))
        wait_until(lambda: daemon.has(layer.digest), "it is kept")
    stopped = threading.Event()

    def on_piece(count: int) -> None:
        if count == 5:
            os.kill(daemon.pid, signal.SIGTERM)
            stopped.set()
        if stopped.is_set():
            time.sleep(0.05)  # Between two pieces there is nothing under way.

    assert pull(daemon, layer, bounded=bounded, on_piece=on_piece) == layer.data
    assert stopped.is_set()
    watch = Stopwatch()
    assert daemon.process.wait(15) == 0
    assert watch.seconds < 6, "it ends soon after the last piece, and not after all of `grace`"


def test_another_layer_is_refused_at_its_first_piece(make_daemon: MakeDaemon, origin: Origin, layer: Blob) -> None:
    """There its client goes to another mirror; in the middle it would not."""
    other = Blob(random_bytes(3 << 20, 78))
    image = make_image()
    origin.push("app", "1.0", image)
    daemon = start(make_daemon, origin, layer, other)
    for blob in (layer, other):
        daemon.get(blob_target("app", blob.digest, NS))
    wait_until(lambda: daemon.has(layer.digest) and daemon.has(other.digest), "both are kept")
    assert len(piece(daemon, layer, 0, bounded=True)) == PIECE
    os.kill(daemon.pid, signal.SIGTERM)
    wait_until(lambda: daemon.get("/readyz").status == 503, "it stops")
    for headers in ({"Range": "bytes=0-"}, {"Range": "bytes=0-999"}, {"Range": "bytes=-51"}):
        refused = daemon.get(blob_target("app", other.digest, NS), headers)
        assert (refused.status, refused.header("Connection")) == (503, "close")
    with ExitStack() as stack:
        client = stack.enter_context(Client(daemon.port))
        for first in (0, PIECE, 2 * PIECE):
            # Pieces of the one that goes on keep their connection.
            reply = client.exchange(blob_target("app", layer.digest, NS), {"Range": f"bytes={first}-{first + PIECE - 1}"})
            assert (reply.status, reply.body) == (206, layer.data[first : first + PIECE])
            assert reply.header("Connection") is None
        whole = client.exchange(manifest_target("app", "1.0", NS))
        assert (whole.status, whole.header("Connection")) == (200, "close")
    assert daemon.process.wait(15) == 0


def test_without_such_a_layer_nothing_listens_any_more(make_daemon: MakeDaemon, origin: Origin, layer: Blob) -> None:
    daemon = start(make_daemon, origin, layer)
    daemon.get(blob_target("app", layer.digest, NS))
    piece(daemon, layer, 0, bounded=True)
    time.sleep(2.2)
    watch = Stopwatch()
    assert daemon.stop() == 0
    assert watch.seconds < 1.5
    assert not listening(daemon.port)


def test_grace_is_the_most(make_daemon: MakeDaemon, origin: Origin, layer: Blob) -> None:
    """A client that never comes to an end."""
    daemon = start(make_daemon, origin, layer, grace="1s")
    daemon.get(blob_target("app", layer.digest, NS))
    done = threading.Event()

    def go_on() -> None:
        while not done.is_set():
            try:
                piece(daemon, layer, 0, bounded=True)
            except (OSError, AssertionError, ClosedError):
                return

    with ThreadPoolExecutor(1) as pool:
        pool.submit(go_on)
        time.sleep(0.3)
        watch = Stopwatch()
        assert daemon.stop() == 0
        done.set()
    assert 0.9 < watch.seconds < 4
