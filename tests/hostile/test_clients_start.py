"""The first moments: nobody is refused while the store opens, and at once while another process has the directory."""

import threading
from pathlib import Path

from tests.faults.client import Client, Stopwatch, get
from tests.faults.daemon import Daemon
from tests.faults.scene import blob_target, eventually, registry_table
from tests.hostile.launched import Launched
from tests.hostile.peers import PATIENCE
from tests.policy.conftest import Starter
from tests.real.procs import listening
from tests.support.images import digest_of, random_bytes
from tests.support.origin import Origin

DATA = random_bytes(5000, seed=931)
TARGET = blob_target("acme/app", digest_of(DATA), "reg.test")


class Early(Launched):
    """A daemon that counts as started once its port is open."""

    def ready(self) -> bool:
        return listening(self.port)


def ask_at_once(daemon: Daemon, count: int) -> list[int]:
    """What so many clients are answered, all at the same time."""
    found: list[int] = []

    def ask() -> None:
        with Client(daemon.port, patience=PATIENCE) as client:
            found.append(client.exchange(TARGET).status)

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return found


def start(own: Starter, origin: Origin, slow: str, **settings: str) -> Daemon:
    return own.daemon(registry_table("reg.test", origin.url), settings, env={"HOSTILE_SLOW_START": slow}, kind=Early)


def test_who_comes_first_waits_and_is_served(own: Starter) -> None:
    origin = own.origin(Origin())
    origin.add_blob("acme/app", DATA)
    daemon = start(own, origin, "1.5")
    watch = Stopwatch()
    assert daemon.get("/healthz").status == 200
    assert daemon.get("/readyz").status == 503
    assert watch.seconds < 1
    assert ask_at_once(daemon, 50) == [200] * 50
    assert daemon.get("/readyz").status == 200


def test_as_many_wait_as_may(own: Starter) -> None:
    origin = own.origin(Origin())
    origin.add_blob("acme/app", DATA)
    daemon = start(own, origin, "1", max_waiting="10")
    found = ask_at_once(daemon, 30)
    assert sorted(found) == [200] * 10 + [503] * 20


def test_nobody_waits_longer_than_a_start_takes(own: Starter) -> None:
    origin = own.origin(Origin())
    environ = {"HOSTILE_SLOW_START": "2.5", "HOSTILE_CONSTANTS": "cacheyd.service.readiness.START_PATIENCE=1"}
    daemon = own.daemon(registry_table("reg.test", origin.url), env=environ, kind=Early)
    watch = Stopwatch()
    assert daemon.get(TARGET).status == 503
    assert 0.5 < watch.seconds < 2.2
    eventually(lambda: daemon.get("/readyz").status, 200)


class Second(Launched):
    """A daemon for a directory that another one has."""

    def ready(self) -> bool:
        return listening(self.port)

    def start(self) -> None:
        self.cache_dir = Path(self.env["SHARED"])
        super().start()


def test_who_waits_for_the_directory_says_so_at_once(own: Starter) -> None:
    origin = own.origin(Origin())
    origin.add_blob("acme/app", DATA)
    config = registry_table("reg.test", origin.url)
    first = own.daemon(config)
    second = own.daemon(config, env={"SHARED": str(first.cache_dir)}, kind=Second)
    watch = Stopwatch()
    assert get(second.port, TARGET).status == 503
    assert watch.seconds < 1.5
    assert get(second.port, "/healthz").status == 200
    watch = Stopwatch()
    assert get(second.port, TARGET).status == 503
    assert watch.seconds < 0.5
    assert first.stop() == 0
    eventually(lambda: get(second.port, TARGET).status, 200)
