"""A process that may open few files: clients that are too many are told so at once, and the others are served."""

from contextlib import ExitStack, suppress
from pathlib import Path

from tests.faults.client import Client, ClosedError
from tests.faults.daemon import Daemon
from tests.faults.scene import blob_target, eventually, registry_table
from tests.real.procs import wait_until
from tests.support.images import digest_of, random_bytes
from tests.support.origin import Origin

LIMIT = 1024


class Poor(Daemon):
    """A daemon with few descriptors."""

    def argv(self) -> list[str]:
        return ["prlimit", f"--nofile={LIMIT}:{LIMIT}", *super().argv()]


def test_clients_beyond_the_descriptors_are_closed_and_not_left_hanging(tmp_path: Path) -> None:
    data = random_bytes(300_000, seed=81)
    with Origin() as origin, Poor(tmp_path / "daemon", registry_table("reg.test", origin.url)) as daemon:
        origin.add_blob("acme/img", data)
        target = blob_target("acme/img", digest_of(data), "reg.test")
        with ExitStack() as clients:
            many = [clients.enter_context(daemon.connect()) for _ in range(LIMIT * 3 // 4)]
            served = [client for client in many if is_served(client)]
            assert 0 < len(served) < len(many)
            assert served[-1].exchange(target).body == data
        eventually(lambda: served_again(daemon, target), data)
        assert daemon.stop() == 0
        assert daemon.problems() == []


def test_what_was_fetched_and_sent_keeps_no_file_open(tmp_path: Path) -> None:
    """Its room would not come back when it is evicted; the garbage collector is not to be waited for."""
    with Origin() as origin, Daemon(tmp_path / "daemon", registry_table("reg.test", origin.url)) as daemon:
        for seed in range(8):
            data = random_bytes(1 << 20, seed=seed)
            origin.add_blob("acme/img", data)
            assert daemon.get(blob_target("acme/img", digest_of(data), "reg.test")).body == data
            wait_until(lambda: not objects_open(daemon), "its file is closed", seconds=1)
        assert daemon.stop() == 0


def objects_open(daemon: Daemon) -> list[str]:
    """The files of objects, whole or not, that it has open."""
    found = []
    for link in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            target = str(link.readlink())
            found += [target] if "/blobs/" in target or "/partial/" in target else []
    return found


def is_served(client: Client) -> bool:
    """Whether it has an answer; else it was closed. A client that is left hanging is a TimeoutError."""
    try:
        return client.exchange("/healthz").status == 200
    except (ClosedError, ConnectionError):
        return False


def served_again(daemon: Daemon, target: str) -> bytes:
    """What a new client gets."""
    try:
        return daemon.get(target).body
    except (ClosedError, OSError):
        return b""
