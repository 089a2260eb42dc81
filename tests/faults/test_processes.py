"""The process ends, by force or by request, or is not alone: what was fetched is used, and nothing wrong is served."""

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.faults.client import End
from tests.faults.conftest import MakeDaemon
from tests.faults.daemon import Daemon
from tests.faults.scene import assert_broken_off, assert_whole, blob_target, eventually, manifest_target, registry_table
from tests.real.procs import Process, listening, wait_until
from tests.support.images import Blob, make_image, random_bytes
from tests.support.origin import Origin

NS = "up.test"
CUT = 300_000
PATIENT = {"progress_timeout": "20s", "head_timeout": "20s", "grace": "20s"}


@pytest.fixture
def blob(origin: Origin) -> Blob:
    """One blob that upstream has."""
    blob = Blob(random_bytes(2 << 20, 1))
    origin.add_blob("app", blob.data)
    return blob


def target(blob: Blob) -> str:
    return blob_target("app", blob.digest, NS)


def answers(daemon: Daemon, path: str) -> bool:
    return daemon.get(path).status in (200, 503)


def start(make_daemon: MakeDaemon, origin: Origin, **settings: str) -> Daemon:
    return make_daemon(registry_table(NS, origin.url), {**PATIENT, **settings})


def ranges(origin: Origin) -> list[str | None]:
    return [request.header("Range") for request in origin.requests]


def signal_to(daemon: Daemon) -> None:
    os.kill(daemon.pid, signal.SIGTERM)


# By force


def test_a_killed_fetch_is_resumed_by_the_next_process(
    make_daemon: MakeDaemon, origin: Origin, blob: Blob, release: threading.Event
) -> None:
    daemon = start(make_daemon, origin)
    origin.fault("blobs", times=1, hold=release, hold_at=CUT)
    with daemon.connect() as client:
        client.ask(target(blob))
        wait_until(lambda: daemon.partial(blob.digest) == CUT, "the first part is on disk")
        daemon.kill()
        head, _ = client.rest()
    assert len(head) < len(blob.data)
    daemon.start()
    assert daemon.partial(blob.digest) == CUT
    assert_whole(daemon.get(target(blob)), blob)
    assert ranges(origin) == [None, f"bytes={CUT}-"]
    daemon.keeps({blob.digest})


def leave_partial(daemon: Daemon, origin: Origin, blob: Blob, release: threading.Event) -> Path:
    """Kills the daemon in the middle of a fetch; where its partial file is."""
    fault = origin.fault("blobs", times=1, hold=release, hold_at=CUT)
    with daemon.connect() as client:
        client.ask(target(blob))
        wait_until(lambda: daemon.partial(blob.digest) == CUT, "the first part is on disk")
        daemon.kill()
    fault.remove()
    (path,) = (daemon.cache_dir / "partial").glob(blob.digest.replace(":", "-") + "*")
    return path


def test_a_partial_file_that_is_wrong_is_never_served_as_a_whole(
    make_daemon: MakeDaemon, origin: Origin, blob: Blob, release: threading.Event
) -> None:
    daemon = start(make_daemon, origin)
    leave_partial(daemon, origin, blob, release).write_bytes(bytes(CUT))
    daemon.start()
    assert_broken_off(daemon.get(target(blob)), blob)
    eventually(lambda: daemon.partial(blob.digest), 0)
    assert not daemon.has(blob.digest)
    daemon.restart()
    assert_whole(daemon.get(target(blob)), blob)


def test_a_partial_file_that_is_whole_already_asks_nobody(
    make_daemon: MakeDaemon, origin: Origin, blob: Blob, release: threading.Event
) -> None:
    """Killed between the last byte and the rename."""
    daemon = start(make_daemon, origin)
    leave_partial(daemon, origin, blob, release).write_bytes(blob.data)
    daemon.start()
    assert_whole(daemon.get(target(blob)), blob)
    assert ranges(origin) == [None]
    daemon.keeps({blob.digest})


def test_a_partial_file_that_is_too_long_does_no_harm(
    make_daemon: MakeDaemon, origin: Origin, blob: Blob, release: threading.Event
) -> None:
    daemon = start(make_daemon, origin)
    leave_partial(daemon, origin, blob, release).write_bytes(blob.data + b"more")
    daemon.start()
    assert_whole(daemon.get(target(blob)), blob)
    daemon.keeps({blob.digest})


def test_what_is_kept_is_there_after_a_kill(make_daemon: MakeDaemon, origin: Origin, blob: Blob) -> None:
    """Also what the index had not written yet."""
    image = make_image()
    origin.push("app", "1.0", image)
    daemon = start(make_daemon, origin)
    assert_whole(daemon.get(target(blob)), blob)
    assert daemon.get(manifest_target("app", image.digest, NS)).status == 200
    wait_until(lambda: daemon.has(blob.digest), "the blob is kept")
    daemon.kill()
    daemon.start()
    asked = len(origin.requests)
    for what in (target(blob), manifest_target("app", image.digest, NS)):
        eventually(lambda what=what: daemon.get(what).cache, "HIT")  # type: ignore[misc]
    assert len(origin.requests) <= asked + 2  # Until the orphan files are adopted, they may be asked for again.


# By request


def test_a_running_transfer_is_completed(
    make_daemon: MakeDaemon, origin: Origin, blob: Blob, release: threading.Event
) -> None:
    daemon = start(make_daemon, origin)
    origin.fault("blobs", times=1, hold=release, hold_at=CUT)
    with daemon.connect() as client, daemon.connect() as idle, daemon.connect() as waiting:
        assert idle.exchange("/healthz").status == 200
        client.ask(target(blob))
        head = client.read_head()
        waiting.ask(target(blob), {"Range": "bytes=2000000-"})
        wait_until(lambda: daemon.partial(blob.digest) == CUT, "the first part is on disk")
        signal_to(daemon)
        wait_until(lambda: not listening(daemon.port), "new connections are refused")
        assert daemon.running
        release.set()
        assert_whole(client.read_body(head), blob)
        assert waiting.read_reply().body == blob.data[2_000_000:]
        assert daemon.process.wait(10) == 0
        assert idle.rest() == (b"", End.FIN)
    assert daemon.stored() == {blob.digest}


def test_a_slow_client_gets_its_hit_to_the_end(make_daemon: MakeDaemon, origin: Origin) -> None:
    large = Blob(random_bytes(32 << 20, 3))
    origin.add_blob("app", large.data)
    daemon = start(make_daemon, origin)
    assert_whole(daemon.get(target(large)), large)
    daemon.keeps({large.digest})
    with daemon.connect(receive_buffer=65536) as client:
        client.ask(target(large))
        head = client.read_head()
        assert head.cache == "HIT"
        signal_to(daemon)
        wait_until(lambda: not listening(daemon.port), "new connections are refused")
        assert_whole(client.read_body(head), large)
    assert daemon.process.wait(10) == 0


def test_an_unfinished_fetch_leaves_its_partial(
    make_daemon: MakeDaemon, origin: Origin, blob: Blob, release: threading.Event
) -> None:
    daemon = start(make_daemon, origin, grace="200ms")
    origin.fault("blobs", times=1, hold=release, hold_at=CUT)
    with daemon.connect() as client:
        client.ask(target(blob))
        wait_until(lambda: daemon.partial(blob.digest) == CUT, "the first part is on disk")
        assert daemon.stop() == 0
        reply = client.read_reply()
        assert (reply.status, len(reply.body)) == (200, CUT - (64 << 10))
        assert reply.end is End.FIN
    assert daemon.partial(blob.digest) == CUT
    daemon.start()
    assert_whole(daemon.get(target(blob)), blob)
    assert ranges(origin) == [None, f"bytes={CUT}-"]


def test_a_second_signal_ends_the_patience(
    make_daemon: MakeDaemon, origin: Origin, blob: Blob, release: threading.Event
) -> None:
    daemon = start(make_daemon, origin, grace="1h")
    origin.fault("blobs", times=1, hold=release, hold_at=CUT)
    with daemon.connect() as client:
        client.ask(target(blob))
        wait_until(lambda: daemon.partial(blob.digest) == CUT, "the first part is on disk")
        signal_to(daemon)
        wait_until(lambda: not listening(daemon.port), "new connections are refused")
        assert daemon.running
        signal_to(daemon)
        assert daemon.process.wait(10) == 0
        assert client.read_reply().end is End.FIN
    assert daemon.partial(blob.digest) == CUT


# Not alone


class Impatient(Daemon):
    """A daemon that is not waited for."""

    def start(self) -> None:
        self.process = Process(self.argv(), self.directory / "second.log", env=self.env)


@pytest.fixture
def second(make_daemon: MakeDaemon, origin: Origin, tmp_path: Path) -> Iterator[Callable[[Daemon], Impatient]]:
    """Starts a second daemon on the directory of the first."""
    with ExitStack() as running:

        def make(first: Daemon) -> Impatient:
            settings = {**PATIENT, "grace": "0s", "cache_dir": str(first.cache_dir)}
            daemon = Impatient(first.directory, registry_table(NS, origin.url), settings)
            running.callback(daemon.kill)
            return daemon

        yield make


def test_the_second_process_takes_over_when_the_first_ends(
    make_daemon: MakeDaemon, origin: Origin, blob: Blob, second: Callable[[Daemon], Impatient]
) -> None:
    image = make_image()
    origin.push("app", "1.0", image)
    one = start(make_daemon, origin)
    assert_whole(one.get(target(blob)), blob)
    two = second(one)
    wait_until(lambda: listening(two.port), "the second listens")
    assert two.get("/readyz").status == 503
    # containerd goes on at the registry itself.
    assert two.get(target(blob)).status == 503
    assert_whole(one.get(target(blob)), blob)
    assert one.stop() == 0
    wait_until(two.ready, "the second has the directory")
    asked = len(origin.requests)
    assert_whole(two.get(target(blob)), blob)
    assert len(origin.requests) == asked
    assert two.get(manifest_target("app", "1.0", NS)).body == image.manifest
    two.keeps({blob.digest, image.digest})
    assert "waiting for it to end" in two.log()
    assert two.stop() == 0


def test_the_second_process_refuses_in_the_end(
    make_daemon: MakeDaemon, origin: Origin, blob: Blob, second: Callable[[Daemon], Impatient]
) -> None:
    one = start(make_daemon, origin)
    two = second(one)
    assert two.process.wait(20) == 1
    assert f"{one.cache_dir} is in use by another cacheyd (process {one.pid})" in two.log()
    assert_whole(one.get(target(blob)), blob)


def test_who_waits_for_the_directory_can_be_stopped(
    make_daemon: MakeDaemon, origin: Origin, second: Callable[[Daemon], Impatient]
) -> None:
    two = second(start(make_daemon, origin))
    wait_until(lambda: "waiting for it to end" in two.log(), "the second waits")
    assert two.stop() == 0
    assert '"error"' not in two.log()


def test_who_waits_for_the_directory_says_so(
    make_daemon: MakeDaemon, origin: Origin, second: Callable[[Daemon], Impatient]
) -> None:
    two = second(start(make_daemon, origin))
    wait_until(lambda: "waiting for it to end" in two.log(), "the second waits")
    for path in ("/v2/", "/readyz"):
        reply = two.get(path)
        assert (reply.status, b"another process uses the cache directory" in reply.body) == (503, True)


def test_after_a_wipe_the_directory_belongs_to_one_process_still(
    make_daemon: MakeDaemon, origin: Origin, blob: Blob, second: Callable[[Daemon], Impatient]
) -> None:
    one = start(make_daemon, origin)
    one.expect("is in use by another cacheyd")
    assert_whole(one.get(target(blob)), blob)
    two = second(one)
    wait_until(lambda: "waiting for it to end" in two.log(), "the second waits")
    shutil.rmtree(one.cache_dir)
    # One of them makes the lock anew, and the other finds it taken: it serves on, and keeps nothing.
    for daemon in (one, two):
        wait_until(partial(answers, daemon, target(blob)), "an answer")
    assert_whole(one.get(target(blob)), blob)
    eventually(lambda: [path.name for path in (one.cache_dir / "partial").iterdir()], [])
