"""The decisions, with a registry that is played and a store that is real: hit, join, revalidate, bypass, reject."""

import asyncio
import json
import random
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from cacheyd.cache.answer import Answer
from cacheyd.cache.bodies import BodyBroken
from cacheyd.cache.cache import FAR_AHEAD, Cache
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.growing import HOLD
from cacheyd.cache.request import Request
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.headers import HeaderList, header
from cacheyd.protocol.media_types import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.protocol.targets import parse_target
from cacheyd.settings.load import load
from cacheyd.settings.settings import Settings
from cacheyd.store.store import Store
from cacheyd.upstream.port import UpstreamBroken, UpstreamRequest
from tests.support.memory_store import MemoryStore
from tests.support.stores import Clock

MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": {}, "layers": []}).encode()
INDEX = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
NEWER = json.dumps({"schemaVersion": 2, "manifests": [], "annotations": {"n": "2"}}).encode()
BLOB = random.Random(1).randbytes(300_000)
SMALL = random.Random(2).randbytes(2048)

CONTAINERD = f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}, */*"
ALICE, BOB = "Basic alice", "Basic bob"


# A registry, played


class Body:
    """A response of the played registry."""

    elsewhere = False

    def __init__(self, status: int, headers: HeaderList, pieces: list[bytes | asyncio.Event | UpstreamBroken]) -> None:
        self.status = status
        self.headers = headers
        self.pieces = pieces
        self.closed = False

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


type Override = Callable[[UpstreamRequest], Body | None]


@dataclass
class Registry:
    """One repository. A tag has a list of what it offers, the best first: type and content."""

    tags: dict[str, list[tuple[str, bytes]]] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[UpstreamRequest] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)
    down: UpstreamBroken | None = None
    override: Override = lambda request: None
    pause: asyncio.Event | None = None

    def tag(self, name: str, *offers: tuple[str, bytes]) -> None:
        self.tags[name] = list(offers)
        self.manifests |= {digest_of(content): (media_type, content) for media_type, content in offers}

    def stock(self) -> None:
        """What the tests ask for."""
        self.tag("1.0", (OCI_INDEX, INDEX), (DOCKER_MANIFEST, MANIFEST))
        self.tag("latest", (OCI_INDEX, INDEX))
        self.blobs = {digest_of(BLOB): BLOB, digest_of(SMALL): SMALL}

    @property
    def log(self) -> list[str]:
        """What was asked: method and the end of the path."""
        return [f"{request.method} {request.ref.kind} {request.ref.reference[:12]}" for request in self.requests]

    async def open(self, request: UpstreamRequest) -> Body:
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

    def _answer(self, request: UpstreamRequest) -> Body:
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
        return Body(200, manifest_headers(media_type, content), [content])

    def _blob(self, request: UpstreamRequest) -> Body:
        data = self.blobs.get(request.ref.digest or "")
        if data is None:
            return text(404, '{"errors": [{"code": "BLOB_UNKNOWN"}]}')
        wanted = header(request.headers, "range")
        first = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        last = int(wanted.rpartition("-")[2] or len(data) - 1) if wanted else len(data) - 1
        headers = (("Content-Type", "application/octet-stream"), ("Content-Length", str(last + 1 - first)))
        if wanted is None:
            return Body(200, headers, [data])
        return Body(206, (*headers, ("Content-Range", f"bytes {first}-{last}/{len(data)}")), [data[first : last + 1]])


def manifest_headers(media_type: str, content: bytes) -> HeaderList:
    return (
        ("Content-Type", media_type),
        ("Content-Length", str(len(content))),
        ("Docker-Content-Digest", digest_of(content)),
    )


def text(status: int, body: str, *headers: tuple[str, str]) -> Body:
    length = ("Content-Length", str(len(body)))
    return Body(status, (("Content-Type", "application/json"), length, *headers), [body.encode()])


# The rest of the scene


@dataclass
class Got:
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes
    result: str

    @property
    def brief(self) -> tuple[int, str, bytes]:
        return self.status, self.result, self.body


class Scene:
    """A cache in front of a played registry."""

    def __init__(self, store: Store, clock: Clock, **flags: str) -> None:
        self.store = store
        self.clock = clock
        self.registry = Registry()
        self.ignored = 0
        self.configure(**flags)

    def configure(self, **flags: str) -> None:
        self.settings: Settings = load(environ={}, flags={"retries": "2"} | flags)
        self.fetcher = Fetcher(self.store, self.registry, self.settings, clock=self.clock, monotonic=self.clock)
        self.cache = Cache(self.store, self.fetcher, self.settings, clock=self.clock, on_ignored=self._ignore)

    def _ignore(self) -> None:
        self.ignored += 1

    async def ask(self, tail: str, **options: str) -> Answer:
        return await self.cache.answer(request(tail, **options))

    async def get(self, tail: str, **options: str) -> Got:
        """The whole answer of a GET."""
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


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr("cacheyd.cache.blob_fetch.random.uniform", lambda low, high: 0.0)
    clock = Clock()
    store = Store(tmp_path / "cache", clock=clock)
    await store.start()
    scene = Scene(store, clock)
    scene.registry.stock()
    yield scene
    await scene.fetcher.stop()
    await store.stop()


@pytest.fixture
async def tight() -> AsyncIterator[Scene]:
    """A cache in memory that has no room for `BLOB`."""
    clock = Clock()
    store = MemoryStore(load(environ={}, flags={"max_size": "100kB"}), clock=clock)
    scene = Scene(cast(Store, store), clock)
    scene.registry.stock()
    yield scene
    await scene.fetcher.stop()
    await store.stop()


TAG = "manifests/1.0"
BY_DIGEST = f"manifests/{digest_of(INDEX)}"
LARGE_BLOB = f"blobs/{digest_of(BLOB)}"
SMALL_BLOB = f"blobs/{digest_of(SMALL)}"


# A pull, as containerd does it


async def test_a_pull_and_a_pull_again(scene: Scene) -> None:
    async def pull() -> list[str]:
        head = await scene.head(TAG)
        results = [head.result]
        for tail in (f"manifests/{head.headers['docker-content-digest']}", LARGE_BLOB, SMALL_BLOB):
            got = await scene.get(tail)
            assert got.status == 200
            results.append(got.result)
        await scene.landed()
        return results

    assert await pull() == ["MISS"] * 4
    asked = len(scene.registry.requests)
    assert asked == 4
    assert await pull() == ["HIT"] * 4
    assert len(scene.registry.requests) == asked


async def test_what_an_object_brings_along(scene: Scene) -> None:
    for tail, media_type, data in ((BY_DIGEST, OCI_INDEX, INDEX), (SMALL_BLOB, "application/octet-stream", SMALL)):
        miss = await scene.get(tail)
        await scene.landed()
        scene.clock.now += 10
        hit = await scene.get(tail)
        for got, result in ((miss, "MISS"), (hit, "HIT")):
            assert got.brief == (200, result, data)
            assert got.headers["content-type"] == media_type
            assert got.headers["content-length"] == str(len(data))
            assert got.headers["docker-content-digest"] == digest_of(data)
            assert got.headers["etag"] == f'"{digest_of(data)}"'
            assert got.headers["docker-distribution-api-version"] == "registry/2.0"
            assert got.headers["x-cache"] == result
            assert got.headers["x-proxied-by"] == "cacheyd"
            assert got.headers["x-proxied-for"] == got.headers["oci-namespace"] == "reg.example"
        assert int(hit.headers["age"]) >= 0
        assert hit.headers["x-proxy-date"] == hit.headers["date"]
    assert (await scene.get(SMALL_BLOB)).headers["accept-ranges"] == "bytes"


async def test_oci_namespace_echoes_ns_and_is_not_there_without(scene: Scene) -> None:
    assert (await scene.get(BY_DIGEST, ns="docker.io")).headers["oci-namespace"] == "docker.io"
    got = await scene.get(BY_DIGEST, ns="registry-1.docker.io")
    assert got.headers["oci-namespace"] == "registry-1.docker.io"
    assert got.headers["x-proxied-for"] == "docker.io"

    plain = parse_target(f"/v2/reg.example/lab/img/{BY_DIGEST}")
    assert isinstance(plain, Reference)
    assert "oci-namespace" not in (await received(await scene.cache.answer(Request("GET", plain, ())))).headers


async def test_age_is_since_upstream_confirmed_it(scene: Scene) -> None:
    await scene.get(TAG)
    scene.clock.now += 100
    assert (await scene.get(TAG)).headers["age"] == "100"
    scene.clock.now -= 200
    assert (await scene.head(BY_DIGEST)).headers["age"] == "0"


async def test_objects_are_shared_between_registries_and_repositories(scene: Scene) -> None:
    await scene.get(SMALL_BLOB, ns="one.example")
    await scene.landed()
    assert (await scene.get(SMALL_BLOB, ns="two.example")).result == "HIT"


async def test_hits_ask_nobody_and_do_not_wait(scene: Scene) -> None:
    assert scene.hit(TAG) is None
    assert scene.hit(BY_DIGEST) is None
    assert scene.hit(LARGE_BLOB) is None
    await scene.get(TAG)
    await scene.get(LARGE_BLOB)
    await scene.landed()
    scene.registry.requests.clear()

    for tail in (TAG, BY_DIGEST, LARGE_BLOB):
        for method in ("GET", "HEAD"):
            answer = scene.hit(tail, method=method)
            assert answer is not None
            assert (answer.status, answer.result) == (200, "HIT")
    assert scene.registry.requests == []


# HEAD


async def test_head_has_the_headers_of_get_and_no_body(scene: Scene) -> None:
    for tail, data in ((TAG, INDEX), (BY_DIGEST, INDEX), (SMALL_BLOB, SMALL), (LARGE_BLOB, BLOB)):
        cold = await scene.head(tail)
        get = await scene.get(tail)
        await scene.landed()
        warm = await scene.head(tail)
        for head in (cold, warm):
            assert (head.status, head.body) == (200, b"")
            for name in ("content-type", "content-length"):
                assert head.headers[name] == get.headers[name]
        assert warm.headers["docker-content-digest"] == digest_of(data)


@pytest.mark.parametrize("tail", [TAG, BY_DIGEST, SMALL_BLOB])
async def test_head_always_tells_the_digest(scene: Scene, tail: str) -> None:
    """The played registry's blobs come without Docker-Content-Digest, as from a CDN."""
    assert "docker-content-digest" in (await scene.head(tail)).headers


async def test_a_head_teaches_the_tag(scene: Scene) -> None:
    assert (await scene.head(TAG)).result == "MISS"
    assert (await scene.head(TAG)).result == "HIT"
    assert scene.registry.log == ["HEAD manifest 1.0"]


async def test_a_get_after_the_head_of_a_tag_asks_for_the_content(scene: Scene) -> None:
    await scene.head(TAG)
    assert (await scene.get(TAG)).brief == (200, "MISS", INDEX)
    assert (await scene.get(TAG)).brief == (200, "HIT", INDEX)


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_registry_that_knows_no_head_is_asked_with_get(scene: Scene, status: int) -> None:
    scene.registry.override = lambda request: text(status, "") if request.method == "HEAD" else None

    for tail in (TAG, BY_DIGEST):
        got = await scene.head(tail)
        assert (got.status, got.body) == (200, b"")
        assert got.headers["docker-content-digest"] == digest_of(INDEX)
        assert got.headers["content-length"] == str(len(INDEX))
        assert got.headers["content-type"] == OCI_INDEX
    assert scene.registry.log[:2] == ["HEAD manifest 1.0", "GET manifest 1.0"]


@pytest.mark.parametrize("missing", ["Docker-Content-Digest", "Content-Type", "Content-Length"])
async def test_a_head_that_does_not_tell_everything_is_asked_with_get(scene: Scene, missing: str) -> None:
    def incomplete(asked: UpstreamRequest) -> Body | None:
        headers = tuple(item for item in manifest_headers(OCI_INDEX, INDEX) if item[0] != missing)
        return Body(200, headers, []) if asked.method == "HEAD" else None

    scene.registry.override = incomplete
    got = await scene.head(TAG)
    assert got.headers["docker-content-digest"] == digest_of(INDEX)
    assert got.headers["content-length"] == str(len(INDEX))
    assert got.headers["content-type"] == OCI_INDEX


async def test_a_length_of_zero_is_no_answer_to_a_head(scene: Scene) -> None:
    """containerd takes a Content-Length of 0 as fatal."""
    scene.registry.override = lambda asked: (
        Body(200, (*manifest_headers(OCI_INDEX, INDEX)[::2], ("Content-Length", "0")), []) if asked.method == "HEAD" else None
    )
    assert (await scene.head(TAG)).headers["content-length"] == str(len(INDEX))


@pytest.mark.parametrize("status", [401, 403, 500])
async def test_a_refusal_of_head_is_relayed(scene: Scene, status: int) -> None:
    scene.registry.override = lambda _: text(status, "no", ("WWW-Authenticate", 'Bearer realm="https://a/t"'))
    got = await scene.head(TAG)
    assert (got.status, got.body) == (status, b"")
    assert got.headers["www-authenticate"] == 'Bearer realm="https://a/t"'
    assert scene.registry.log == ["HEAD manifest 1.0"]


async def test_many_heads_at_once_are_one(scene: Scene) -> None:
    scene.registry.pause = asyncio.Event()
    asking = [asyncio.create_task(scene.head(TAG)) for _ in range(10)]
    await asyncio.sleep(0.01)
    scene.registry.pause.set()

    assert {got.status for got in await asyncio.gather(*asking)} == {200}
    assert scene.registry.log == ["HEAD manifest 1.0"]


async def test_a_head_during_a_flight_knows_the_size(scene: Scene) -> None:
    more = asyncio.Event()
    length = ("Content-Length", str(len(BLOB)))
    scene.registry.override = lambda asked: Body(200, (length,), [BLOB[:200_000], more, BLOB[200_000:]])
    answer = await scene.ask(LARGE_BLOB)
    head = await scene.head(LARGE_BLOB)
    assert (head.status, head.headers["content-length"]) == (200, str(len(BLOB)))
    more.set()
    assert (await received(answer)).body == BLOB
    assert len(scene.registry.requests) == 1


# Tags


async def test_a_tag_is_fresh_for_its_time_to_live(scene: Scene) -> None:
    await scene.get(TAG)
    scene.clock.now += 299.9
    assert (await scene.get(TAG)).result == "HIT"
    assert scene.registry.log == ["GET manifest 1.0"]


async def test_then_a_head_confirms_it(scene: Scene) -> None:
    await scene.get(TAG)
    scene.clock.now += 300
    got = await scene.get(TAG)
    assert got.brief == (200, "REVALIDATED", INDEX)
    assert got.headers["age"] == "0"
    assert scene.registry.log == ["GET manifest 1.0", "HEAD manifest 1.0"]
    assert (await scene.get(TAG)).result == "HIT", "fresh again"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_tag_that_moved(scene: Scene, method: str) -> None:
    await scene.get(TAG)
    scene.registry.tag("1.0", (OCI_INDEX, NEWER))
    scene.clock.now += 300

    got = await scene.get(TAG, method=method)
    assert (got.status, got.result) == (200, "MISS")
    assert got.headers["docker-content-digest"] == digest_of(NEWER)
    assert (await scene.get(TAG)).body == NEWER
    assert (await scene.get(BY_DIGEST)).brief == (200, "HIT", INDEX), "the old object stays"


async def test_a_tag_that_moved_to_what_is_here_already(scene: Scene) -> None:
    await scene.get(f"manifests/{digest_of(MANIFEST)}")
    await scene.get(TAG)
    scene.registry.tag("1.0", (DOCKER_MANIFEST, MANIFEST))
    scene.clock.now += 300
    got = await scene.get(TAG)
    assert (got.status, got.body) == (200, MANIFEST)
    assert scene.registry.log[-1] == "HEAD manifest 1.0", "the content is not fetched again"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_tag_that_was_deleted_is_gone(scene: Scene, method: str) -> None:
    await scene.get(TAG)
    del scene.registry.tags["1.0"]
    assert (await scene.get(TAG)).result == "HIT", "until its time is up"
    scene.clock.now += 300

    assert (await scene.get(TAG, method=method)).status == 404
    scene.registry.down = UpstreamBroken("down")
    assert (await scene.get(TAG)).status == 502, "not served as stale either"
    # For this client: whether it is for others is theirs to hear.
    assert len(scene.store.tag_variants("reg.example", "lab/img", "1.0")) == 1


async def test_a_tag_whose_object_was_wiped_is_fetched_again(scene: Scene) -> None:
    await scene.get(TAG)
    shutil.rmtree(scene.store.root)
    assert (await scene.get(TAG)).brief == (200, "MISS", INDEX)
    assert (await scene.get(TAG)).brief == (200, "HIT", INDEX)


async def test_latest_is_always_asked_for_again(scene: Scene) -> None:
    assert (await scene.get("manifests/latest")).result == "MISS"
    assert (await scene.get("manifests/latest")).result == "REVALIDATED"
    assert (await scene.head("manifests/latest")).result == "REVALIDATED"
    assert scene.hit("manifests/latest") is None
    assert scene.ignored == 3
    await scene.get(TAG)
    assert scene.ignored == 3


async def test_a_clock_that_went_back_makes_a_tag_stale_not_eternal(scene: Scene) -> None:
    await scene.get(TAG)
    scene.clock.now -= 3600
    assert (await scene.get(TAG)).result == "REVALIDATED"


# Stale


@pytest.mark.parametrize(
    "error", [UpstreamBroken("reset"), UpstreamBroken("late", timeout=True), UpstreamBroken("refused", refused=True)]
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_while_upstream_is_down_the_last_known_tag_is_served(scene: Scene, error: UpstreamBroken, method: str) -> None:
    await scene.get(TAG)
    scene.clock.now += 6 * 86400
    scene.registry.down = error

    got = await scene.get(TAG, method=method)
    assert got.brief == (200, "STALE", INDEX if method == "GET" else b"")
    assert got.headers["x-cache"] == "STALE"
    assert got.headers["age"] == str(6 * 86400)
    assert "warning" in got.headers


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_while_upstream_fails_the_last_known_tag_is_served(scene: Scene, status: int) -> None:
    await scene.get("manifests/latest")
    scene.registry.override = lambda _: text(status, "no")
    assert (await scene.get("manifests/latest")).brief == (200, "STALE", INDEX)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_is_a_refusal(scene: Scene, status: int) -> None:
    await scene.get("manifests/latest")
    scene.registry.override = lambda _: text(status, "no")
    assert (await scene.get("manifests/latest")).status == status
    scene.registry.override = lambda _: None
    assert (await scene.get("manifests/latest")).result == "REVALIDATED"


async def test_stale_has_an_end(scene: Scene) -> None:
    await scene.get(TAG)
    scene.registry.down = UpstreamBroken("down")
    scene.clock.now += 7 * 86400
    got = await scene.get(TAG)
    assert got.status == 502
    assert json.loads(got.body)["errors"][0]["detail"]["from"] == "cacheyd"


async def test_stale_if_error_is_a_setting(scene: Scene) -> None:
    scene.configure(stale_if_error="0s")
    await scene.get("manifests/latest")
    scene.registry.down = UpstreamBroken("down")
    assert (await scene.get("manifests/latest")).status == 502


async def test_an_unknown_tag_while_upstream_is_down(scene: Scene) -> None:
    scene.registry.down = UpstreamBroken("late", timeout=True)
    assert (await scene.get(TAG)).status == 504


# Accept


async def test_clients_that_ask_for_the_same_types_share_a_tag(scene: Scene) -> None:
    await scene.get(TAG)
    skopeo = "\n".join([OCI_MANIFEST, DOCKER_MANIFEST, DOCKER_LIST, OCI_INDEX])
    assert (await scene.get(TAG, accept=skopeo)).brief == (200, "HIT", INDEX)


async def test_a_client_of_one_platform_and_one_of_all_do_not_mix(scene: Scene) -> None:
    old, new = DOCKER_MANIFEST, CONTAINERD
    for _ in range(2):
        assert (await scene.get(TAG, accept=old)).body == MANIFEST
        assert (await scene.get(TAG, accept=new)).body == INDEX
    assert scene.registry.log == ["GET manifest 1.0"] * 2
    assert (await scene.head(TAG, accept=old)).headers["docker-content-digest"] == digest_of(MANIFEST)
    assert (await scene.head(TAG, accept=new)).headers["docker-content-digest"] == digest_of(INDEX)


async def test_a_stale_tag_is_never_of_another_type(scene: Scene) -> None:
    await scene.get(TAG, accept=DOCKER_MANIFEST)
    scene.registry.down = UpstreamBroken("down")
    scene.clock.now += 300
    assert (await scene.get(TAG)).status == 502
    assert (await scene.get(TAG, accept=DOCKER_MANIFEST)).result == "STALE"


async def test_every_accept_line_goes_upstream(scene: Scene) -> None:
    await scene.get(TAG, accept=f"{OCI_MANIFEST}\n{OCI_INDEX}")
    assert scene.registry.requests[0].headers == (("Accept", OCI_MANIFEST), ("Accept", OCI_INDEX))


async def test_a_manifest_here_but_of_a_type_that_the_client_does_not_take(scene: Scene) -> None:
    await scene.get(BY_DIGEST)
    scene.registry.override = lambda _: text(404, "not in this form")
    got = await scene.get(BY_DIGEST, accept=DOCKER_MANIFEST)
    assert (got.status, got.result) == (404, "BYPASS")


# Manifests by digest


async def test_a_digest_never_asks_again(scene: Scene) -> None:
    await scene.get(BY_DIGEST)
    scene.clock.now += 10 * 365 * 86400
    scene.registry.down = UpstreamBroken("down")
    assert (await scene.get(BY_DIGEST)).brief == (200, "HIT", INDEX)
    assert (await scene.head(BY_DIGEST)).brief == (200, "HIT", b"")


async def test_a_manifest_that_is_not_there(scene: Scene) -> None:
    unknown = f"manifests/{digest_of(b'unknown')}"
    for method in ("GET", "HEAD"):
        got = await scene.get(unknown, method=method)
        assert (got.status, got.result) == (404, "MISS")
        assert got.headers["x-proxied-for"] == "reg.example"
    assert (await scene.get(unknown)).body == b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}'


async def test_a_wrong_manifest_is_a_bad_gateway_and_not_kept(scene: Scene) -> None:
    scene.registry.override = lambda _: Body(200, (("Content-Type", OCI_INDEX),), [b"{}"])
    got = await scene.get(BY_DIGEST)
    assert got.status == 502
    assert json.loads(got.body)["errors"][0]["code"] == "DIGEST_INVALID"
    assert scene.store.find(digest_of(INDEX)) is None
    assert scene.store.find(digest_of(b"{}")) is None


async def test_a_blob_that_turns_out_to_be_a_manifest_gets_its_type(scene: Scene) -> None:
    """containerd tries /blobs/<digest> for a manifest whose type it did not understand."""
    scene.registry.blobs[digest_of(INDEX)] = INDEX
    await scene.get(f"blobs/{digest_of(INDEX)}")
    await scene.landed()

    got = await scene.get(BY_DIGEST)
    assert (got.status, got.body, got.headers["content-type"]) == (200, INDEX, OCI_INDEX)
    assert (await scene.get(BY_DIGEST)).result == "HIT"
    # As a blob it is its registry's to give from now on.
    got = await scene.get(f"blobs/{digest_of(INDEX)}")
    assert (got.status, got.body, got.result) == (200, INDEX, "MISS")


async def test_a_manifest_is_no_blob_where_the_registry_says_so(scene: Scene) -> None:
    """containerd/containerd#13007: its digest under /blobs/ was answered as octet-stream."""
    await scene.get(BY_DIGEST)
    for method in ("GET", "HEAD"):
        got = await scene.get(f"blobs/{digest_of(INDEX)}", method=method)
        assert (got.status, got.result) == (404, "MISS"), method
    assert (await scene.get(BY_DIGEST)).result == "HIT"


async def test_a_blob_is_no_manifest_where_the_registry_says_so(scene: Scene) -> None:
    data = b'{"schemaVersion": 2, "note": "no manifest"}'
    scene.registry.blobs[digest_of(data)] = data
    await scene.get(f"blobs/{digest_of(data)}")
    await scene.landed()
    for method in ("GET", "HEAD"):
        assert (await scene.get(f"manifests/{digest_of(data)}", method=method)).status == 404, method
    assert (await scene.get(f"blobs/{digest_of(data)}")).result == "HIT"


# Conditions


async def test_if_none_match(scene: Scene) -> None:
    digest = f'"{digest_of(INDEX)}"'
    for _ in range(2):
        for tag in (digest, f"W/{digest}", f'"x", {digest}', "*"):
            got = await scene.get(TAG, if_none_match=tag)
            assert (got.status, got.body) == (304, b"")
            assert got.headers["etag"] == digest
            assert "content-length" not in got.headers
        assert (await scene.get(TAG, if_none_match='"x"')).status == 200


async def test_no_client_is_told_304_unasked(scene: Scene) -> None:
    scene.registry.override = lambda _: Body(304, (), [])
    assert (await scene.get(BY_DIGEST)).status == 502
    assert (await scene.get(LARGE_BLOB)).status == 502


# Blobs


async def test_many_clients_at_once_are_one_fetch(scene: Scene) -> None:
    scene.registry.pause = asyncio.Event()
    asking = [asyncio.create_task(scene.get(LARGE_BLOB)) for _ in range(20)]
    await asyncio.sleep(0.01)
    scene.registry.pause.set()

    assert {got.brief for got in await asyncio.gather(*asking)} == {(200, "MISS", BLOB)}
    assert len(scene.registry.requests) == 1


@pytest.mark.parametrize(
    ("range_", "start", "end"),
    [
        ("bytes=500-1499", 500, 1500),
        ("bytes=500-", 500, 2048),
        ("bytes=-500", 1548, 2048),
        ("bytes=2000-5000", 2000, 2048),
        ("bytes=0-", 0, 2048),
    ],
)
async def test_ranges_are_exact_cold_and_warm(scene: Scene, range_: str, start: int, end: int) -> None:
    for result in ("MISS", "HIT"):
        got = await scene.get(SMALL_BLOB, range=range_)
        assert (got.status, got.body) == (206, SMALL[start:end])
        assert got.headers["content-range"] == f"bytes {start}-{end - 1}/2048"
        assert got.headers["content-length"] == str(end - start)
        assert got.result in (result, "HIT")
        await scene.landed()
    assert header(scene.registry.requests[0].headers, "range") is None, "the whole object is fetched"


@pytest.mark.parametrize("range_", ["bytes=500-0", "bytes=5000-10000", "bytes=-0"])
async def test_a_range_without_a_byte_is_416_cold_and_warm(scene: Scene, range_: str) -> None:
    for _ in range(2):
        got = await scene.get(SMALL_BLOB, range=range_)
        assert (got.status, got.body) == (416, b"")
        assert got.headers["content-range"] == "bytes */2048"
        await scene.landed()


@pytest.mark.parametrize("range_", ["items=0-1", "bytes=x", "bytes=0-,0-", "bytes=0-1,5000-"])
async def test_other_ranges_get_the_whole(scene: Scene, range_: str) -> None:
    for _ in range(2):
        got = await scene.get(SMALL_BLOB, range=range_)
        assert (got.status, got.body) == (200, SMALL)
        assert "content-range" not in got.headers
        await scene.landed()


async def test_several_ranges_are_all_of_it_or_multipart_never_one_part(scene: Scene) -> None:
    assert (await scene.get(SMALL_BLOB, range="bytes=0-1,5-6")).brief == (200, "MISS", SMALL)
    await scene.landed()

    got = await scene.get(SMALL_BLOB, range="bytes=0-1,5-6")
    media_type, _, boundary = got.headers["content-type"].partition("; boundary=")
    assert (got.status, got.result, media_type) == (206, "HIT", "multipart/byteranges")
    assert "content-range" not in got.headers
    assert got.headers["content-length"] == str(len(got.body))
    first, second = got.body.split(f"--{boundary}".encode())[1:3]
    assert first.endswith(b"Content-Range: bytes 0-1/2048\r\n\r\n" + SMALL[:2] + b"\r\n")
    assert second.endswith(b"Content-Range: bytes 5-6/2048\r\n\r\n" + SMALL[5:7] + b"\r\n")
    assert got.body.endswith(f"--{boundary}--\r\n".encode())


async def test_if_range(scene: Scene) -> None:
    for _ in range(2):
        same = await scene.get(SMALL_BLOB, range="bytes=5-", if_range=f'"{digest_of(SMALL)}"')
        other = await scene.get(SMALL_BLOB, range="bytes=5-", if_range='"other"')
        assert (same.status, same.body) == (206, SMALL[5:])
        assert (other.status, other.body) == (200, SMALL)
        await scene.landed()


async def test_a_range_of_a_manifest_is_ignored(scene: Scene) -> None:
    for _ in range(2):
        assert (await scene.get(BY_DIGEST, range="bytes=0-1")).brief[0] == 200


async def test_a_small_piece_far_ahead_of_a_flight_is_asked_for_on_its_own(scene: Scene) -> None:
    """Lazy pulling (stargz, SOCI) reads a few bytes near the end first."""
    data = bytes(FAR_AHEAD + 1_000_000)
    tail = f"blobs/{digest_of(data)}"
    scene.registry.blobs[digest_of(data)] = data
    more = asyncio.Event()
    slow = Body(200, (("Content-Length", str(len(data))),), [data[:1000], more, data[1000:]])
    scene.registry.override = lambda asked: None if header(asked.headers, "range") else slow
    first = await scene.ask(tail)

    got = await scene.get(tail, range=f"bytes={len(data) - 100}-{len(data) - 1}")
    assert (got.status, got.result, len(got.body)) == (206, "BYPASS", 100)
    assert got.headers["content-range"] == f"bytes {len(data) - 100}-{len(data) - 1}/{len(data)}"
    # What the flight has is not verified yet, and will not be for a while.
    near = await scene.get(tail, range="bytes=500-1499")
    assert (near.status, near.result, len(near.body)) == (206, "BYPASS", 1000)
    open_ended = asyncio.create_task(scene.get(tail, range="bytes=500-"))
    await asyncio.sleep(0.01)
    assert not open_ended.done()
    more.set()
    assert (await open_ended).result == "MISS"
    assert (await received(first)).status == 200
    assert len(scene.registry.requests) == 3


async def test_a_blob_of_unknown_length_has_one_in_the_end(scene: Scene) -> None:
    scene.registry.override = lambda _: Body(200, (), [BLOB])
    got = await scene.get(LARGE_BLOB)
    assert got.brief == (200, "MISS", BLOB)
    assert got.headers["content-length"] == str(len(BLOB))


async def test_a_blob_of_unknown_length_that_takes_long_is_sent_as_it_comes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheyd.cache.cache.LENGTH_WAIT", 0.01)
    more = asyncio.Event()
    scene.registry.override = lambda _: Body(200, (), [BLOB[:200_000], more, BLOB[200_000:]])
    answer = await scene.ask(LARGE_BLOB)
    assert answer.length is None
    more.set()
    got = await received(answer)
    assert (got.body, "content-length" in got.headers) == (BLOB, False)


async def test_a_small_wrong_blob_is_an_error_before_the_head(scene: Scene) -> None:
    """Only before the head is there a way back to the upstream."""
    scene.registry.blobs[digest_of(SMALL)] = bytes(len(SMALL))
    got = await scene.get(SMALL_BLOB)
    assert got.status == 502
    assert json.loads(got.body)["errors"][0]["code"] == "DIGEST_INVALID"


async def test_a_large_wrong_blob_is_cut_short_and_the_resume_is_502(scene: Scene) -> None:
    scene.registry.blobs[digest_of(BLOB)] = bytes(len(BLOB))
    answer = await scene.ask(LARGE_BLOB)
    assert (answer.status, answer.length) == (200, len(BLOB))
    with pytest.raises(BodyBroken):
        await received(answer)

    resumed = await scene.get(LARGE_BLOB, range=f"bytes={len(BLOB) - HOLD}-")
    assert resumed.status == 502
    assert len(scene.registry.requests) == 1
    assert (await scene.get(SMALL_BLOB)).status == 200, "others are not affected"


@pytest.mark.parametrize("status", [401, 403, 404, 500])
async def test_an_error_of_upstream_is_relayed(scene: Scene, status: int) -> None:
    challenge = ("WWW-Authenticate", 'Bearer realm="https://a/t",scope="repository:lab/img:pull"')
    scene.registry.override = lambda _: text(status, '{"errors": []}', challenge)
    got = await scene.get(LARGE_BLOB)
    assert (got.status, got.body) == (status, b'{"errors": []}')
    assert got.headers["www-authenticate"] == challenge[1]
    assert got.headers["content-type"] == "application/json"
    assert got.headers["x-proxied-for"] == "reg.example"


@pytest.mark.parametrize("tail", [TAG, BY_DIGEST, LARGE_BLOB])
async def test_what_one_client_may_not_have_is_asked_for_with_the_others_credentials(scene: Scene, tail: str) -> None:
    def private(asked: UpstreamRequest) -> Body | None:
        return None if header(asked.headers, "authorization") == BOB else text(401, "who are you")

    scene.registry.override = private
    scene.registry.pause = asyncio.Event()
    alice = [asyncio.create_task(scene.get(tail, login=ALICE)) for _ in range(3)]
    await asyncio.sleep(0.01)
    bob = [asyncio.create_task(scene.get(tail, login=BOB)) for _ in range(3)]
    await asyncio.sleep(0.01)
    scene.registry.pause.set()

    assert {got.status for got in await asyncio.gather(*alice)} == {401}
    assert {got.status for got in await asyncio.gather(*bob)} == {200}


@pytest.mark.parametrize("tail", [TAG, LARGE_BLOB])
async def test_the_refusal_of_one_client_is_not_remembered_for_another(scene: Scene, tail: str) -> None:
    scene.registry.override = lambda asked: None if header(asked.headers, "authorization") else text(401, "who are you")
    assert (await scene.get(tail)).status == 401
    assert (await scene.get(tail, login=BOB)).status == 200


async def test_a_rate_limit_is_relayed_and_asked_about_once(scene: Scene) -> None:
    scene.registry.override = lambda _: text(429, '{"errors": [{"code": "TOOMANYREQUESTS"}]}', ("Retry-After", "60"))
    for tail in (TAG, BY_DIGEST, LARGE_BLOB, TAG, LARGE_BLOB):
        got = await scene.get(tail)
        assert (got.status, got.headers["retry-after"]) == (429, "60")
    assert len(scene.registry.requests) == 1


# Bypass


async def test_while_the_disk_refuses_blobs_go_straight_through(scene: Scene) -> None:
    scene.store.report_write_error(OSError(28, "No space left on device"))
    assert (await scene.get(LARGE_BLOB)).brief == (200, "BYPASS", BLOB)

    resumed = await scene.get(LARGE_BLOB, range="bytes=100000-199999", if_range=f'"{digest_of(BLOB)}"')
    assert resumed.brief == (206, "BYPASS", BLOB[100_000:200_000])
    # A part cannot be verified: all of it is asked for and looked at.
    assert header(scene.registry.requests[-1].headers, "range") is None
    assert (await scene.get(TAG)).brief == (200, "MISS", INDEX), "manifests are served, too"
    assert scene.store.find(digest_of(BLOB)) is None


async def test_a_blob_that_does_not_fit_goes_straight_through(tight: Scene) -> None:
    assert (await tight.get(LARGE_BLOB)).brief == (200, "BYPASS", BLOB)


async def test_too_many_waiting_clients_are_sent_on(scene: Scene) -> None:
    await scene.get(BY_DIGEST)
    scene.configure(max_waiting="1")
    scene.registry.pause = asyncio.Event()
    first = asyncio.create_task(scene.get(LARGE_BLOB))
    await asyncio.sleep(0.01)

    assert (await scene.get(SMALL_BLOB)).status == 503
    assert (await scene.get(BY_DIGEST)).result == "HIT", "hits do not wait"
    scene.registry.pause.set()
    assert (await first).status == 200
    assert (await scene.get(SMALL_BLOB)).status == 200


async def test_a_bypass_that_breaks_off_is_broken_off(tight: Scene) -> None:
    length = ("Content-Length", str(len(BLOB)))
    tight.registry.override = lambda _: Body(200, (length,), [BLOB[:1000], UpstreamBroken("reset")])
    answer = await tight.ask(LARGE_BLOB)
    with pytest.raises(BodyBroken):
        await received(answer)


async def test_a_client_that_leaves_a_bypass_ends_it(tight: Scene) -> None:
    answer = await tight.ask(LARGE_BLOB)
    assert answer.source is not None
    answer.source.close()
    assert tight.registry.bodies[-1].closed


async def test_a_tag_list_is_kept_and_what_is_no_referrers_is_not(tight: Scene) -> None:
    for tail, results in (("tags/list", ("MISS", "HIT")), (f"referrers/{digest_of(INDEX)}", ("BYPASS", "BYPASS"))):
        tight.registry.requests.clear()
        for result in results:
            got = await tight.get(tail)
            assert got.brief == (200, result, b'{"name": "lab/img", "tags": ["1.0"]}')
            assert got.headers["x-proxied-for"] == "reg.example"
        assert len(tight.registry.requests) == (1 if "HIT" in results else 2)
    head = await tight.head(tail)
    assert (head.status, head.body, head.result) == (200, b"", "BYPASS")


async def test_a_bypass_while_upstream_is_down(tight: Scene) -> None:
    tight.registry.down = UpstreamBroken("late", timeout=True)
    got = await tight.get("tags/list")
    assert got.status == 504
    assert got.headers["content-type"] == "application/json"


# Wipes


async def test_the_directory_may_be_wiped_between_any_two_requests(scene: Scene) -> None:
    for tail, data in [(TAG, INDEX), (BY_DIGEST, INDEX), (LARGE_BLOB, BLOB), (SMALL_BLOB, SMALL)] * 2:
        got = await scene.get(tail)
        assert (got.status, got.body) == (200, data)
        await scene.landed()
        shutil.rmtree(scene.store.root)


async def test_a_wipe_while_a_hit_is_read(scene: Scene) -> None:
    await scene.get(LARGE_BLOB)
    await scene.landed()
    answer = await scene.ask(LARGE_BLOB)
    shutil.rmtree(scene.store.root)
    assert (await received(answer)).brief == (200, "HIT", BLOB)
