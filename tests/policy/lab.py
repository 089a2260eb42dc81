"""What the tests of a module share: one daemon and its origins. Tests keep apart by repository."""

import base64
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from tests.faults.client import Client, Head, Reply
from tests.faults.daemon import Daemon
from tests.faults.scene import blob_target, manifest_target
from tests.real.procs import wait_until
from tests.support.images import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Blob, Image, make_image, random_bytes
from tests.support.origin import Origin, Request

# What clients send; each item is a header line.
CONTAINERD = (f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}, */*",)
SMALL = 2000
# Larger than what cacheyd waits for before the head, and than the 64 KiB that it holds back.
STREAMED = 1 << 20


@dataclass
class Lab:
    """A daemon, the origins behind its registries by a name of the test's own, and numbers that no other test has."""

    cache: Daemon
    origins: Mapping[str, Origin]
    numbers: Iterator[int]

    def repo(self) -> str:
        """A repository that nobody has asked for."""
        return f"test{next(self.numbers)}/img"

    def blob(self, origin: str, repo: str, size: int = SMALL) -> Blob:
        """A blob that only this origin has."""
        blob = Blob(random_bytes(size, 50_000 + next(self.numbers)))
        self.origins[origin].add_blob(repo, blob.data)
        return blob

    def image(self, origin: str, repo: str, tag: str = "1.0") -> Image:
        """A small image under a tag."""
        image = make_image(seed=50_000 + next(self.numbers))
        self.origins[origin].push(repo, tag, image)
        return image

    def get(self, target: str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Reply:
        """One request to the daemon."""
        return self.cache.get(target, headers, method=method)

    def pull(self, target: str, headers: Mapping[str, str] | None = None) -> Reply:
        """A request that is answered 200, and what it brought is kept when this returns."""
        reply = self.get(target, headers)
        assert (reply.status, reply.end) == (200, "complete"), (reply.status, reply.end, reply.body[:500])
        self.settle()
        return reply

    def settle(self) -> None:
        """Until nothing is on its way in."""
        wait_until(lambda: self.cache.metric("cacheyd_flights") == 0, "no flights", seconds=10)

    def asked(self, origin: str, repo: str, method: str | None = None) -> list[Request]:
        """What this origin was asked about a repository."""
        found = [request for request in self.origins[origin].requests if f"/{repo}/" in request.path]
        return [request for request in found if method in (None, request.method)]

    def wait_asked(self, origin: str, repo: str, count: int, method: str | None = None) -> None:
        """Until this origin was asked so often about a repository."""
        wait_until(lambda: len(self.asked(origin, repo, method)) >= count, f"{count} requests for {repo}", seconds=10)

    def wait_waiting(self, count: int) -> None:
        """Until so many clients wait for upstreams."""
        wait_until(lambda: self.cache.metric("cacheyd_waiting") >= count, f"{count} clients wait", seconds=10)


def target_of(kind: str, repo: str, image: Image, registry: str) -> str:
    """The request target of an image's tag 1.0, of its manifest by digest, or of its layer."""
    match kind:
        case "tag":
            return manifest_target(repo, "1.0", registry)
        case "digest":
            return manifest_target(repo, image.digest, registry)
        case _:
            return blob_target(repo, image.layers[0].digest, registry)


def ask_all(
    cache: Daemon, targets: Iterable[str], clients: ExitStack, headers: Mapping[str, str] | None = None
) -> list[Client]:
    """Clients that have each sent a request, to be read from."""
    found = []
    for target in targets:
        client = clients.enter_context(cache.connect())
        client.ask(target, headers)
        found.append(client)
    return found


def basic(user: str, password: str) -> str:
    """The value of Authorization for a login by password."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def login(value: str | None) -> dict[str, str]:
    """The header of a login, none for nobody."""
    return {} if value is None else {"Authorization": value}


def error_code(reply: Reply) -> str:
    """The code in OCI error JSON."""
    errors = json.loads(reply.body)["errors"]
    assert len(errors) == 1
    return str(errors[0]["code"])


def assert_denied(reply: Reply) -> None:
    """403 with the reason as OCI error JSON."""
    assert reply.status == 403, (reply.status, reply.cache, reply.body[:200])
    assert reply.header("Content-Type") == "application/json"
    assert error_code(reply) == "DENIED"
    assert json.loads(reply.body)["errors"][0]["message"]


def early_in_a_second(seconds: float = 0.4) -> None:
    """Until so much of a second of the clock is left that what follows happens in it."""
    while time.time() % 1 > 1 - seconds:
        time.sleep(0.01)


def assert_ok(reply: Reply, data: bytes, cache: str | None = None) -> None:
    """A whole 200 with these bytes, and this X-Cache."""
    assert (reply.status, reply.end) == (200, "complete"), (reply.status, reply.end, reply.body[:500])
    assert reply.body == data
    if cache is not None:
        assert reply.cache == cache


def statuses(replies: Iterable[Head]) -> list[int]:
    """The status of each."""
    return [reply.status for reply in replies]
