"""A neighbour in the network, without a network: two network namespaces with a cable between them. Needs root."""

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

# This side, an address more of it, and the other side.
HERE, ALSO_HERE, THERE = "10.77.0.1", "10.77.0.5", "10.77.0.2"


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True, timeout=5)


class Neighbour:
    """The other side; what `call` runs there listens there."""

    def __init__(self, pid: int) -> None:
        self._namespace = Path(f"/proc/{pid}/ns/net")

    def call[T](self, make: Callable[[], T]) -> T:
        """What this makes on the other side."""

        def run() -> T:
            with self._namespace.open() as file:
                os.setns(file.fileno(), os.CLONE_NEWNET)
            return make()

        return _in_thread(run)


def _in_thread[T](run: Callable[[], T]) -> T:
    """Its result: a namespace is a thread's, and children inherit it."""
    results: list[T] = []
    errors: list[BaseException] = []

    def catch() -> None:
        try:
            results.append(run())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=catch)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def with_neighbour(body: Callable[[Neighbour], None]) -> None:
    """Runs the body in a namespace of its own: whatever it starts and connects to is there."""

    def run() -> None:
        try:
            os.unshare(os.CLONE_NEWNET)
            _ip("link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {error}")
        with subprocess.Popen(["unshare", "-n", "sleep", "60"]) as other:
            try:
                _plug(other.pid)
                body(Neighbour(other.pid))
            finally:
                other.kill()

    _in_thread(run)


def _plug(pid: int) -> None:
    own = Path("/proc/thread-self/ns/net").readlink()
    for _ in range(500):
        if (theirs := Path(f"/proc/{pid}/ns/net").readlink()) != own:
            break
        threading.Event().wait(0.01)
    assert theirs != own
    _ip("link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", str(pid))
    for address in (HERE, ALSO_HERE):
        _ip("addr", "add", f"{address}/24", "dev", "v0")
    _ip("link", "set", "v0", "up")
    there = ["nsenter", "-t", str(pid), "-n", "ip"]
    subprocess.run([*there, "addr", "add", f"{THERE}/24", "dev", "v1"], check=True, timeout=5)
    subprocess.run([*there, "link", "set", "v1", "up"], check=True, timeout=5)
