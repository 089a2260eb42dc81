"""A daemon with many registries, each of which answers with the bytes that a test gives it, at one origin.

What cacheyd learns of one of them (that it is down, say) does not matter to the next test.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from tests.faults.client import Reply
from tests.faults.daemon import Daemon
from tests.hostile.peers import RawOrigin
from tests.policy.conftest import Starter


class Scripted:
    """`daemon` and its registries; `answers` are the bytes that a registry's requests get, after which it closes."""

    def __init__(self, daemon: Daemon, origin: RawOrigin, answers: dict[str, bytes], size: int) -> None:
        self.daemon = daemon
        self.origin = origin
        self.answers = answers
        self._numbers = count()
        self._size = size

    def registry(self, answer: bytes) -> str:
        """The name of a registry of which nothing is known yet."""
        number = next(self._numbers)
        assert number < self._size
        self.answers[f"p{number}"] = answer
        return f"p{number}.test"

    def get(self, ns: str, what: str = "manifests/v1", *, method: str = "GET") -> Reply:
        """One request to a registry."""
        return self.daemon.get(f"/v2/app/{what}?ns={ns}", method=method)

    def get_unscoped(self, ns: str, what: str = "manifests/v1") -> Reply:
        """The same as clients ask that name the registry in the path: cacheyd answers challenges itself."""
        return self.daemon.get(f"/v2/{ns}/app/{what}")

    def lines(self, ns: str) -> list[bytes]:
        """The request lines that a registry got."""
        mark = f" /{ns.removesuffix('.test')}/".encode()
        return [head.partition(b"\r\n")[0] for head in self.origin.heads if mark in head]


@contextmanager
def scripted(starter: Starter, size: int = 100) -> Iterator[Scripted]:
    """A running one, with so many registries."""
    answers: dict[str, bytes] = {}

    def answer(connection: socket.socket, head: bytes) -> None:
        connection.sendall(answers.get(head.split(b"/")[1].decode("latin-1"), b""))

    with RawOrigin(answer) as origin:
        tables = "".join(f'[registries."p{number}.test"]\nupstream = "{origin.url}/p{number}"\n' for number in range(size))
        yield Scripted(starter.daemon(tables, {"retries": "0"}), origin, answers, size)
