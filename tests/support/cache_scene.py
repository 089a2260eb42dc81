"""A cache in front of a played registry, with a real store: for the unit tests of the cache's modules."""

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from cacheyd.cache.answer import Answer
from cacheyd.cache.bodies import BodyBroken
from cacheyd.cache.cache import Cache
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.request import Request
from cacheyd.observe.events import Events
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.headers import HeaderList, header
from cacheyd.protocol.media_types import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.protocol.targets import parse_target
from cacheyd.settings.load import load
from cacheyd.settings.settings import Settings
from cacheyd.store.store import Store
from cacheyd.upstream.port import UpstreamBroken, UpstreamRequest
from tests.support.fetching import Reply
from tests.support.stores import Clock

MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": {}, "layers": []}).encode()
INDEX = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
NEWER = json.dumps({"schemaVersion": 2, "manifests": [], "annotations": {"n": "2"}}).encode()
BLOB = random.Random(1).randbytes(300_000)
SMALL = random.Random(2).randbytes(2048)

CONTAINERD = f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}, */*"
ALICE, BOB = "Basic alice", "Basic bob"


TAG = "manifests/1.0"
BY_DIGEST = f"manifests/{digest_of(INDEX)}"
LARGE_BLOB = f"blobs/{digest_of(BLOB)}"
SMALL_BLOB = f"blobs/{digest_of(SMALL)}"


# A registry, played


type Override = Callable[[UpstreamRequest], Reply | None]


@dataclass
class Registry:
    """A played registry with one repository. A tag has a list of offers (media type and content), the best first."""

    tags: dict[str, list[tuple[str, bytes]]] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[UpstreamRequest] = field(default_factory=list)
    bodies: list[Reply] = field(default_factory=list)
    down: UpstreamBroken | None = None
    override: Override = lambda request: None
    pause: asyncio.Event | None = None

    def tag(self, name: str, *offers: tuple[str, bytes]) -> None:
        self.tags[name] = list(offers)
        self.manifests |= {digest_of(content): (media_type, content) for media_type, content in offers}

    def stock(self) -> None:
        """Adds the tags and blobs that the tests ask for."""
        self.tag("1.0", (OCI_INDEX, INDEX), (DOCKER_MANIFEST, MANIFEST))
        self.tag("latest", (OCI_INDEX, INDEX))
        self.blobs = {digest_of(BLOB): BLOB, digest_of(SMALL): SMALL}

    @property
    def log(self) -> list[str]:
        """The requests so far: method, kind and the beginning of the reference."""
        return [f"{request.method} {request.ref.kind} {request.ref.reference[:12]}" for request in self.requests]

    async def open(self, request: UpstreamRequest) -> Reply:
        self.requests.append(request)
        await asyncio.sleep(0)
        if self.pause:
            await self.pause.wait()
        if self.down:
            raise self.down
        body = self.override(request) or self._answer(request)
        if request.method == "HEAD":
            body.pieces = []
        self.bodies.append(body)
        return body

    def _answer(self, request: UpstreamRequest) -> Reply:
        ref = request.ref
        if ref.kind is Kind.BLOB:
            return self._blob(request)
        if ref.kind is not Kind.MANIFEST:
            return text(200, '{"name": "lab/img", "tags": ["1.0"]}')
        if ref.digest:
            found = self.manifests.get(ref.digest)
        else:
            offers = self.tags.get(ref.reference, [])
            accept = ",".join(value for key, value in request.headers if key == "Accept")
            found = next((offer for offer in offers if offer[0] in accept), offers[0] if offers else None)
        if found is None:
            return text(404, '{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')
        media_type, content = found
        return Reply(200, manifest_headers(media_type, content), [content])

    def _blob(self, request: UpstreamRequest) -> Reply:
        data = self.blobs.get(request.ref.digest or "")
        if data is None:
            return text(404, '{"errors": [{"code": "BLOB_UNKNOWN"}]}')
        wanted = header(request.headers, "range")
        first = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        last = int(wanted.rpartition("-")[2] or len(data) - 1) if wanted else len(data) - 1
        headers = (("Content-Type", "application/octet-stream"), ("Content-Length", str(last + 1 - first)))
        if wanted is None:
            return Reply(200, headers, [data])
        return Reply(206, (*headers, ("Content-Range", f"bytes {first}-{last}/{len(data)}")), [data[first : last + 1]])


def manifest_headers(media_type: str, content: bytes) -> HeaderList:
    return (
        ("Content-Type", media_type),
        ("Content-Length", str(len(content))),
        ("Docker-Content-Digest", digest_of(content)),
    )


def text(status: int, body: str, *headers: tuple[str, str]) -> Reply:
    length = ("Content-Length", str(len(body)))
    return Reply(status, (("Content-Type", "application/json"), length, *headers), [body.encode()])


# The rest of the scene


@dataclass
class Got:
    """The answer that a client got."""

    status: int
    headers: dict[str, str]
    body: bytes
    result: str

    @property
    def brief(self) -> tuple[int, str, bytes]:
        return self.status, self.result, self.body


class Scene(Events):
    """A cache in front of a played registry."""

    def __init__(self, store: Store, clock: Clock, **flags: str) -> None:
        self.store = store
        self.clock = clock
        self.registry = Registry()
        self.ignored_tags = 0
        self.configure(**flags)

    def configure(self, **flags: str) -> None:
        self.settings: Settings = load(environ={}, flags={"retries": "2"} | flags)
        self.fetcher = Fetcher(self.store, self.registry, self.settings, clock=self.clock, monotonic=self.clock)
        self.cache = Cache(self.store, self.fetcher, self.settings, clock=self.clock, events=self)

    def ignored(self) -> None:
        self.ignored_tags += 1

    async def ask(self, tail: str, **options: str) -> Answer:
        return await self.cache.answer(request(tail, **options))

    async def get(self, tail: str, **options: str) -> Got:
        """The whole answer to a GET."""
        return await received(await self.ask(tail, **options))

    async def head(self, tail: str, **options: str) -> Got:
        return await self.get(tail, method="HEAD", **options)

    def hit(self, tail: str, **options: str) -> Answer | None:
        return self.cache.hit(request(tail, **options))

    async def landed(self) -> None:
        async with asyncio.timeout(5):
            while len(self.fetcher.flights):
                await asyncio.sleep(0.001)


def request(
    tail: str, *, method: str = "GET", accept: str = CONTAINERD, login: str = "", ns: str = "reg.example", **conditions: str
) -> Request:
    ref = parse_target(f"/v2/lab/img/{tail}?ns={ns}")
    assert isinstance(ref, Reference)
    lines = tuple(accept.split("\n")) if accept else ()
    headers = (*(("Accept", line) for line in lines), *((("Authorization", login),) if login else ()))
    return Request(method, ref, headers, lines, **conditions)


async def received(answer: Answer) -> Got:
    headers = {name.lower(): value for name, value in answer.headers}
    assert len(headers) == len(answer.headers), "no header twice"
    body = bytearray(answer.body)
    if answer.source is not None:
        while piece := await answer.source.read():
            body += piece
        answer.source.close()
    if answer.length is not None:
        headers["content-length"] = str(answer.length)
    return Got(answer.status, headers, bytes(body), answer.result)


async def what_came(answer: Answer) -> bytes:
    """What a client gets of the body, also of one that breaks off."""
    body = bytearray(answer.body)
    if answer.source is not None:
        try:
            while piece := await answer.source.read():
                body += piece
        except BodyBroken:
            pass
        finally:
            answer.source.close()
    return bytes(body)
