"""What a test sees of the shared daemon: a repository of its own, and faults that end with the test."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Unpack
from urllib.parse import quote

from tests.faults.client import Client, Reply
from tests.faults.daemon import Daemon
from tests.real.procs import wait_until
from tests.support.images import Blob, Image, make_image, random_bytes
from tests.support.origin import Fault, FaultSpec, Origin, Request

# As in cacheyd.cache.flight, from the clients' side: the end of a body that nobody gets before it is verified.
HOLD = 64 << 10
# Blobs from this size on are streamed; smaller ones are verified before their head is sent.
STREAMED = 1 << 20


# Origins that each test has under a registry of its own: what cacheyd learns of one (that it is down, say) must not
# matter to the next test.
PER_TEST = ("reg", "flaky")
MAX_TESTS = 2000


class LoopbackOrigin(Origin):
    """An origin at each address of 127.0.0.0/8, so that each test can have its own."""

    def _bind(self) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(PermissionError):  # Nobody else on the network needs to see it; old kernels let only root say so.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        listener.bind(("0.0.0.0", self.port))
        listener.listen(1024)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        return listener

    def url_for(self, test: int) -> str:
        """The base URL of this test's registry."""
        return f"http://127.1.{test >> 8}.{test & 255}:{self.port}"


@dataclass(frozen=True)
class World:
    """The shared daemon and the origins behind its registries. `reg` is behind `reg7.test` in test 7, and so on."""

    cache: Daemon
    origins: Mapping[str, Origin]


class Scene:
    """One test's part of the world. Content has bytes of its own, so nothing of it is in the cache before."""

    def __init__(self, world: World, numbers: Iterator[int]) -> None:
        self.cache = world.cache
        self.world = world
        self.number = next(numbers)
        assert self.number < MAX_TESTS
        self.repo = f"test{self.number}/img"
        self._contents = count(self.number * 10_000)
        self._faults: list[Fault] = []
        self._events: list[threading.Event] = []

    # Content

    def ns(self, registry: str = "reg") -> str:
        """The name of a registry in this test."""
        return f"{registry}{self.number}.test" if registry in PER_TEST else f"{registry}.test"

    def url(self, registry: str = "reg") -> str:
        """The base URL by which cacheyd knows it."""
        origin = self.origin(registry)
        return origin.url_for(self.number) if isinstance(origin, LoopbackOrigin) else origin.url

    def origin(self, registry: str = "reg") -> Origin:
        return self.world.origins[registry]

    def blob(self, size: int = STREAMED, *, registry: str = "reg") -> Blob:
        """A blob that only upstream has."""
        blob = Blob(random_bytes(size, next(self._contents)))
        self.origin(registry).add_blob(self.repo, blob.data)
        return blob

    def image(self, tag: str = "1.0", *, registry: str = "reg", docker: bool = False) -> Image:
        """A small image under a tag."""
        image = make_image(seed=next(self._contents), docker=docker)
        self.origin(registry).push(self.repo, tag, image)
        return image

    # Requests

    def target(self, blob: Blob, registry: str = "reg") -> str:
        """The request target of a blob."""
        return blob_target(self.repo, blob.digest, self.ns(registry))

    def tag_target(self, reference: str, registry: str = "reg") -> str:
        """The request target of a manifest, by tag or digest."""
        return manifest_target(self.repo, reference, self.ns(registry))

    def get(self, what: Blob | str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Reply:
        """One request for a blob or a target."""
        return self.cache.get(self.target(what) if isinstance(what, Blob) else what, headers, method=method)

    @contextmanager
    def asking(self, what: Blob | str, headers: Mapping[str, str] | None = None) -> Iterator[Client]:
        """A connection on which a blob or a target was asked for."""
        with self.cache.connect() as client:
            client.ask(self.target(what) if isinstance(what, Blob) else what, headers)
            yield client

    def asked(self, what: Blob | str | None = None, *, registry: str = "reg", method: str | None = None) -> list[Request]:
        """What upstream was asked about this blob (or whose path has this text); default: about this repository."""
        text = self.repo if what is None else hex_of(what) if isinstance(what, Blob) else what
        requests = self.origin(registry).requests
        return [r for r in requests if text in r.path and method in (None, r.method)]

    def ranges(self, blob: Blob, *, registry: str = "reg") -> list[str | None]:
        """The Range of each GET for this blob at upstream, in their order."""
        return [request.header("Range") for request in self.asked(blob, registry=registry, method="GET")]

    # Faults

    def fault(
        self,
        what: Blob | str,
        *,
        registry: str = "reg",
        method: str = "GET",
        times: int | None = None,
        **spec: Unpack[FaultSpec],
    ) -> Fault:
        """Requests for this blob, or for what this regex is found in after the method, meet a fault."""
        pattern = hex_of(what) if isinstance(what, Blob) else what
        fault = self.origin(registry).fault(f"^{method} .*{pattern}", times=times, **spec)
        self._faults.append(fault)
        return fault

    def hold(
        self,
        what: Blob | str,
        at: int = 0,
        *,
        registry: str = "reg",
        method: str = "GET",
        times: int | None = 1,
        **spec: Unpack[FaultSpec],
    ) -> threading.Event:
        """Upstream's answer stops after `at` body bytes (-1: before its head) until the event is set."""
        event = threading.Event()
        self._events.append(event)
        spec["hold"], spec["hold_at"] = event, at
        self.fault(what, registry=registry, method=method, times=times, **spec)
        return event

    def clean(self) -> None:
        """Ends what holds and what is broken."""
        for fault in self._faults:
            fault.remove()
        for event in self._events:
            event.set()

    # Waiting

    def wait_partial(self, blob: Blob, size: int) -> None:
        """Until so many bytes of a blob are on disk, but not kept yet."""
        wait_until(lambda: self.cache.partial(blob.digest) >= size, f"{size} bytes are on disk")

    def wait_kept(self, blob: Blob) -> None:
        """Until a blob is kept."""
        wait_until(lambda: self.cache.has(blob.digest), "the blob is kept")

    def wait_waiting(self, clients: int) -> None:
        """Until so many clients wait for an upstream's answer."""
        eventually(lambda: self.cache.metric("cacheyd_waiting"), float(clients))

    def wait_flights(self, flights: int) -> None:
        """Until so many blobs are on their way in."""
        eventually(lambda: self.cache.metric("cacheyd_flights"), float(flights))

    def assert_nothing_kept(self, blob: Blob) -> None:
        """No client will get any of it from disk."""
        wait_until(lambda: self.cache.partial(blob.digest) == 0, "the partial is gone")
        assert not self.cache.has(blob.digest)

    def assert_served(self, blob: Blob) -> None:
        """A client gets the whole blob; and the next one from disk."""
        assert_whole(self.get(blob), blob)
        self.wait_kept(blob)
        # The file is there a moment before its row.
        eventually(lambda: self.get(blob, method="HEAD").cache, "HIT")
        asked = len(self.asked(blob))
        again = self.get(blob)
        assert_whole(again, blob)
        assert again.cache == "HIT"
        assert len(self.asked(blob)) == asked


def assert_whole(reply: Reply, blob: Blob) -> None:
    """A 200 with exactly this blob."""
    assert (reply.status, reply.end) == (200, "complete"), (reply.status, reply.end, reply.body[:500])
    assert len(reply.body) == len(blob.data)
    assert reply.body == blob.data
    assert reply.header("Docker-Content-Digest") == blob.digest
    assert reply.header("Content-Encoding") is None


def assert_broken_off(reply: Reply, blob: Blob) -> None:
    """A 200 that ended by FIN before the client had the whole of it, however much of it there was."""
    assert (reply.status, reply.end) == (200, "fin")
    assert len(reply.body) <= reply.length - HOLD


def hex_of(blob: Blob) -> str:
    return blob.digest.partition(":")[2]


def blob_target(repo: str, digest: str, ns: str) -> str:
    return f"/v2/{repo}/blobs/{digest}?ns={quote(ns, safe='')}"


def manifest_target(repo: str, reference: str, ns: str) -> str:
    return f"/v2/{repo}/manifests/{reference}?ns={quote(ns, safe='')}"


def eventually(read: Callable[[], object], expected: object, seconds: float = 10.0) -> None:
    """Waits until `read` gives `expected`; AssertionError that shows what it gives instead."""
    deadline = time.monotonic() + seconds
    while (value := read()) != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    assert value == expected


def closed_port() -> int:
    """A port where connections are refused."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def deaf_listener() -> Iterator[socket.socket]:
    """A listener whose queue is full: connecting to it takes for ever."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener


@contextmanager
def rude_listener() -> Iterator[int]:
    """The port of a server that answers everybody with a line of text, and closes."""

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                accepted, _ = listener.accept()
                with accepted, suppress(OSError):
                    accepted.recv(1 << 16)
                    accepted.sendall(b"220 mail.test ESMTP\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def registry_table(name: str, url: str, *, ca_file: Path | None = None) -> str:
    """The lines of the configuration file for one registry."""
    trust = f'ca_file = "{ca_file}"\n' if ca_file else ""
    return f'[registries."{name}"]\nupstream = "{url}"\n{trust}'


def bearer(token: str) -> dict[str, str]:
    """The header of a login."""
    return {"Authorization": f"Bearer {token}"}
