"""Processes that are killed at any instruction, and power cuts: nothing wrong is served or kept, nothing is lost for good.

`make soak` does thousands of each (KILLS, SEED); a failure names its seed.
"""

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.client import Client, ClosedError, End
from tests.faults.conftest import MakeDaemon
from tests.faults.crash_child import READY, at_rest_on_disk
from tests.faults.crash_content import MAX_SIZE, Content
from tests.faults.daemon import Daemon
from tests.faults.scene import blob_target, eventually, manifest_target, registry_table
from tests.real.cache import REPOSITORY
from tests.real.procs import Process
from tests.support.files import sizes
from tests.support.origin import FaultSpec, Origin

NS, REPO = "up.test", "lab/img"
TAGS = 30
CLIENTS = 4
SEED = os.environ.get("SEED") or str(random.randrange(1 << 32))
SOAK_KILLS = int(os.environ.get("KILLS") or 3000)


def drive(directory: Path, kills: int, *options: str) -> None:
    """Kills so many stores; the driver says what is wrong."""
    argv = [sys.executable, "-m", "tests.faults.crash_driver", str(directory / "cache"), "--kills", str(kills), "--seed", SEED]
    done = subprocess.run([*argv, *options], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-4000:]


def test_stores_that_are_killed(tmp_path: Path) -> None:
    drive(tmp_path, 300)


@pytest.mark.parametrize("durability", ["fast", "fsync"])
def test_power_cuts(tmp_path: Path, durability: str) -> None:
    drive(tmp_path, 80, "--power-cuts", "0.4", "--durability", durability)


def test_daemons_that_are_killed(make_daemon: MakeDaemon, origin: Origin) -> None:
    kill_daemons(make_daemon, origin, 20)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("durability", ["fast", "fsync"])
@pytest.mark.parametrize("power_cuts", ["0", "0.4"])
def test_thousands_of_stores(tmp_path: Path, power_cuts: str, durability: str) -> None:
    drive(tmp_path, SOAK_KILLS, "--power-cuts", power_cuts, "--durability", durability)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_hundreds_of_daemons(make_daemon: MakeDaemon, origin: Origin) -> None:
    kill_daemons(make_daemon, origin, SOAK_KILLS // 20)


# The whole daemon


def kill_daemons(make_daemon: MakeDaemon, origin: Origin, kills: int) -> None:
    """On one directory, with clients all the time; then everything has to be there, within the bounds."""
    print(f"seed {SEED}")
    rng, content = random.Random(SEED), Content()
    publish(origin, content)
    began = time.monotonic()
    daemon = make_daemon(
        registry_table(NS, origin.url), {"max_size": str(MAX_SIZE), "min_free": "0", "progress_timeout": "5s"}
    )
    ready = max(READY, 2 * (time.monotonic() - began))
    with clients(daemon, content) as wrong:
        for _ in range(kills):
            trouble(origin, content, rng)
            time.sleep(rng.uniform(0.02, 1.2))
            daemon.kill()
            check_files(daemon)
            if rng.random() < 0.2:
                kill_during_the_start(daemon, rng.uniform(0.1, 1.0))
            began = time.monotonic()
            daemon.start()
            assert time.monotonic() - began < ready
            assert wrong == []
    origin_is_well(origin)
    everything_is_there(daemon, content)
    assert wrong == []


def publish(origin: Origin, content: Content) -> None:
    """All of it, and tags."""
    for digest, (data, media_type) in content.objects.items():
        if media_type:
            origin.add_manifest(REPO, digest, data, media_type)
        else:
            origin.add_blob(REPO, data)
    for number in range(TAGS):
        data, media_type = content.objects[content.tagged(f"v{number}")]
        origin.add_manifest(REPO, f"v{number}", data, media_type)


def target(content: Content, digest: str, tag: str = "") -> str:
    if content.objects[digest][1]:
        return manifest_target(REPO, tag or digest, NS)
    return blob_target(REPO, digest, NS)


@contextmanager
def clients(daemon: Daemon, content: Content) -> Iterator[list[str]]:
    """Pull all the time; the list gets what they saw that is wrong."""
    wrong: list[str] = []
    over = threading.Event()
    threads = [threading.Thread(target=pull_on, args=(daemon, content, random.Random(n), over, wrong)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        over.set()
        for thread in threads:
            thread.join()


def pull_on(daemon: Daemon, content: Content, rng: random.Random, over: threading.Event, wrong: list[str]) -> None:
    """One client's pulls until they are over."""
    while not over.is_set():
        tag = f"v{rng.randrange(TAGS)}"
        root = content.tagged(tag) if rng.random() < 0.5 else rng.choice(content.roots)
        for digest in content.tree(root):
            if problem := pull(daemon, content, digest, tag if root == content.tagged(tag) == digest else ""):
                wrong.append(problem)
            time.sleep(0.002)


def pull(daemon: Daemon, content: Content, digest: str, tag: str = "") -> str:
    """What is wrong with the answer; that there is none, or only part of one, is right while processes are killed."""
    data, _ = content.objects[digest]
    try:
        with Client(daemon.port) as client:
            reply = client.exchange(target(content, digest, tag))
    except (ClosedError, OSError):
        return ""
    whole = reply.end is End.COMPLETE
    # What is passed through is for the client to verify.
    if reply.status != 200 or (digest in content.liars and (not whole or reply.cache == "BYPASS")):
        return ""
    if reply.body == (data if whole else data[: len(reply.body)]):
        return ""
    return f"{digest} {tag}: {reply.cache} {len(reply.body)} bytes, {reply.end}"


def trouble(origin: Origin, content: Content, rng: random.Random) -> None:
    """Some of the next answers are slow, broken or wrong."""
    (liar, *_) = rng.sample(sorted(content.liars), 1)
    specs: list[FaultSpec] = [
        {"cut_after": rng.randrange(1_000_000)},
        {"cut_after": rng.randrange(100_000), "how": "rst"},
        {"rate": 400_000},
        {"stall_at": rng.randrange(200_000), "stall_for": 1.0},
        {"status": 503},
        {"no_length": True},
    ]
    origin.fault("GET ", times=3, **rng.choice(specs))
    origin.fault(f"GET .*{liar}", times=1, corrupt_at=rng.randrange(len(content.objects[liar][0])))


def origin_is_well(origin: Origin) -> None:
    """Its newest fault is none."""
    origin.fault("")


def check_files(daemon: Daemon) -> None:
    """Each object has the digest of its name."""
    for path in sizes(daemon.cache_dir / "blobs"):
        assert hashlib.new(path.parent.name, path.read_bytes()).hexdigest() == path.name


def kill_during_the_start(daemon: Daemon, seconds: float) -> None:
    """A process that does not get far."""
    process = Process(daemon.argv(), daemon.process.log_file, env=daemon.env)
    time.sleep(seconds)
    process.kill()
    check_files(daemon)


def everything_is_there(daemon: Daemon, content: Content) -> None:
    """Each object can be had, the bounds hold, the counters are right and nothing is left over."""
    for digest in content.objects:
        pull(daemon, content, digest)  # What is left of a liar's bytes is refused, and then for a while.
    daemon.restart()
    for digest, (data, _) in content.objects.items():
        reply = daemon.get(target(content, digest))
        assert (reply.status, reply.body) == (200, data)
    # A client has the whole body a moment before its file has the object's name.
    eventually(lambda: [*at_rest_on_disk(daemon.cache_dir, content), *miscounted(daemon)], [])
    assert daemon.stop() == 0
    check_files(daemon)
    assert at_rest_on_disk(daemon.cache_dir, content) == []


def miscounted(daemon: Daemon) -> list[str]:
    """Where the counters and the files differ."""
    counted = (daemon.metric("cacheyd_store_bytes"), daemon.metric("cacheyd_store_objects"))
    there = sizes(daemon.cache_dir / "blobs")
    real = (sum(there.values()), len(there))
    return [] if counted == real else [f"counted {counted}, there are {real}"]
