"""Common parts of the tests of fetches: a scripted upstream, and a fetcher with a real store."""

import asyncio
import random
from dataclasses import dataclass, field
from typing import override

from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.flight import Flight
from cacheyd.cache.flight_reader import FlightReader
from cacheyd.observe.events import Events
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.headers import HeaderList, header
from cacheyd.protocol.media_types import OCI_MANIFEST
from cacheyd.protocol.reference import Reference
from cacheyd.protocol.targets import parse_target
from cacheyd.settings.settings import Settings
from cacheyd.store.mapped import Mapped
from cacheyd.store.store import Store
from cacheyd.upstream.port import UpstreamBroken, UpstreamRequest
from tests.support.stores import Clock

BLOB = random.Random(1).randbytes(300_000)
BREAK = UpstreamBroken("connection reset")
ACCEPT: HeaderList = (("Accept", "*/*"),)
ALICE: HeaderList = (*ACCEPT, ("Authorization", "Basic alice"))
BOB: HeaderList = (*ACCEPT, ("Authorization", "Basic bob"))
MANIFEST = b'{"schemaVersion": 2, "config": {}, "layers": []}'


# A scripted upstream


@dataclass
class Reply:
    """A response. A piece of its body is bytes, a wait, or a failure."""

    status: int = 200
    headers: HeaderList = ()
    pieces: list[bytes | asyncio.Event | UpstreamBroken] = field(default_factory=list)
    closed: bool = False
    by_other_host: bool = False

    async def read(self) -> list[bytes]:
        while self.pieces:
            piece = self.pieces.pop(0)
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            elif isinstance(piece, UpstreamBroken):
                raise piece
            elif piece:
                return [piece]
        return []

    def close(self) -> None:
        self.closed = True


class Script:
    """An upstream that gives its replies in their order, for any request."""

    def __init__(self, *replies: Reply | UpstreamBroken) -> None:
        self.replies = list(replies)
        self.requests: list[UpstreamRequest] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def open(self, request: UpstreamRequest) -> Reply:
        self.requests.append(request)
        await asyncio.sleep(0)
        await self.gate.wait()
        assert self.replies, f"nobody expected request {len(self.requests)}: {request}"
        reply = self.replies.pop(0)
        if isinstance(reply, UpstreamBroken):
            raise reply
        return reply

    @property
    def ranges(self) -> list[str | None]:
        return [header(request.headers, "range") for request in self.requests]


def whole(data: bytes, *pieces: bytes | asyncio.Event | UpstreamBroken, length: bool = True) -> Reply:
    """A reply 200 with all of `data`, or with `pieces` if they are given."""
    stated = (("Content-Length", str(len(data))),) if length else ()
    return Reply(200, stated, list(pieces or [data]))


def rest(data: bytes, start: int, *pieces: bytes | asyncio.Event | UpstreamBroken) -> Reply:
    """A reply 206 with the bytes of `data` from `start`, or with `pieces` if they are given."""
    headers = (
        ("Content-Length", str(len(data) - start)),
        ("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}"),
    )
    return Reply(206, headers, list(pieces or [data[start:]]))


def refusal(status: int, *headers: tuple[str, str], body: bytes = b'{"errors": []}') -> Reply:
    return Reply(status, (("Content-Length", str(len(body))), *headers), [body])


# The rest of the scene


class Scene(Events):
    """A fetcher with its store, upstream and clock."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self.clock = Clock()
        self.mismatches: list[str] = []

    def fetcher(self, upstream: Script) -> Fetcher:
        return Fetcher(
            self.store,
            upstream,
            self.settings,
            clock=self.clock,
            monotonic=self.clock,
            events=self,
        )

    @override
    def verify_failure(self, registry: str) -> None:
        self.mismatches.append(registry)

    def on_disk(self, data: bytes) -> bytes | None:
        stored = self.store.objects.find(digest_of(data))
        body = self.store.objects.body(stored) if stored else None
        return bytes(body.view(0, body.size)) if isinstance(body, Mapped) else body

    def leave_partial(self, data: bytes, content: bytes) -> None:
        """Leaves a partial of `data` with this content, as from an earlier process."""
        self.store.partials.directory.open(digest_of(data), BY_DIGEST.registry).path.write_bytes(content)


def blob_ref(data: bytes, algorithm: str = "sha256") -> Reference:
    return reference(f"blobs/{digest_of(data, algorithm)}")


def reference(tail: str) -> Reference:
    ref = parse_target(f"/v2/lab/img/{tail}?ns=reg.example")
    assert isinstance(ref, Reference)
    return ref


async def read(flight: Flight, start: int = 0) -> bytes:
    """The bytes that a client gets if it joins the flight."""
    await flight.opened()
    reader = FlightReader(flight, start, flight.size)
    data = bytearray()
    while piece := await reader.read():
        data += piece
    reader.close()
    return bytes(data)


async def landed(fetcher: Fetcher) -> None:
    """Waits until no flight runs: clients have all bytes a moment before the object is stored."""
    async with asyncio.timeout(5):
        while len(fetcher.flights):
            await asyncio.sleep(0.001)


async def until(flight: Flight, received: int) -> None:
    async with asyncio.timeout(5):
        while flight.received < received:
            await flight.changed()


def manifest_reply(data: bytes = MANIFEST, *headers: tuple[str, str]) -> Reply:
    return Reply(200, (("Content-Type", OCI_MANIFEST), ("Content-Length", str(len(data))), *headers), [data])


BY_TAG = reference("manifests/1.0")
BY_DIGEST = reference(f"manifests/{digest_of(MANIFEST)}")
ASKED = frozenset({OCI_MANIFEST})
