"""A model of who may have what: random clients against registries that verify, are open, or lie; in any order, at once.

One invariant. Bytes of an object, its size, or "not modified" go out only where this registry would give this very login
the object in this repository, or, where it does not verify, where an open registry has itself delivered the bytes.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cacheyd.cache.answer import Answer
from cacheyd.cache.cache import Cache
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.request import Request
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.headers import HeaderList, header
from cacheyd.protocol.media_types import OCI_MANIFEST
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.settings.settings import RegistrySettings, Settings
from cacheyd.store.store import Store
from cacheyd.upstream.port import UpstreamBroken, UpstreamRequest
from tests.support.cache_scene import what_came

LOGINS = (None, "alice", "bob", "carol")
REPOSITORIES = ("one/img", "two/img", "three/img")
TAGS = ("1.0", "latest")
LIE = 12_345
STEPS, AT_ONCE = 300, 4


@dataclass(frozen=True)
class Thing:
    """An object that no other one is as large as."""

    kind: Kind
    data: bytes

    @property
    def digest(self) -> str:
        return digest_of(self.data)


@dataclass
class Repository:
    """What a registry has in one repository, and who may read it."""

    things: dict[str, Thing] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    readers: set[str | None] = field(default_factory=set)


@dataclass
class Registry:
    """`lies`: says 200 to each HEAD, also of what it does not have, and its tags are whatever it likes."""

    verifies: bool
    lies: bool = False
    failing: bool = False
    hides: bool = False
    repositories: dict[str, Repository] = field(default_factory=dict)
    # What it has given all bytes of, and what it has told the size of, or begun to give.
    delivered: set[str] = field(default_factory=set)
    described: set[str] = field(default_factory=set)

    def has(self, repository: str, digest: str, login: str | None) -> bool:
        """Whether it gives this login this object there."""
        found = self.repositories[repository]
        return digest in found.things and login in found.readers


class Played:
    """A response, piece by piece, others going on in between."""

    by_other_host = False

    def __init__(self, status: int, headers: HeaderList, data: bytes, told: Callable[[], None] = lambda: None) -> None:
        self.status, self.headers = status, (*headers, ("Content-Length", str(len(data))))
        self._pieces = [data[at : at + 50_000] for at in range(0, len(data), 50_000)]
        self._told = told

    async def read(self) -> list[bytes]:
        await asyncio.sleep(0)
        if not self._pieces:
            return []
        piece = self._pieces.pop(0)
        if not self._pieces:
            self._told()
        return [piece]

    def close(self) -> None:
        self._pieces.clear()


def login_of(headers: HeaderList) -> str | None:
    return header(headers, "authorization")


class World:
    """All registries; an `Upstream`."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.registries = {
            "private.test": Registry(verifies=True),
            "hiding.test": Registry(verifies=True, hides=True),
            "open.test": Registry(verifies=False),
            "evil.test": Registry(verifies=False, lies=True),
            "evil-verify.test": Registry(verifies=True, lies=True),
        }
        sizes = iter(self.random.sample(range(300, 900), 40))
        large = iter(self.random.sample(range(70_000, 200_000), 10))
        self.things = [Thing(Kind.MANIFEST, self._manifest(next(sizes))) for _ in range(6)]
        self.things += [Thing(Kind.BLOB, self.random.randbytes(next(sizes))) for _ in range(4)]
        self.things += [Thing(Kind.BLOB, self.random.randbytes(next(large))) for _ in range(3)]
        for registry in self.registries.values():
            registry.repositories = {name: self._repository(registry) for name in REPOSITORIES}

    def _manifest(self, size: int) -> bytes:
        start = b'{"schemaVersion":2,"config":{},"layers":[],"annotations":{"x":"'
        return start + self.random.randbytes(size).hex().encode()[: size - len(start) - 3] + b'"}}'

    def _repository(self, registry: Registry) -> Repository:
        share = 0.1 if registry.lies else 0.4
        things = {thing.digest: thing for thing in self.things if self.random.random() < share}
        told = self.things if registry.lies else list(things.values())
        manifests = [thing.digest for thing in told if thing.kind is Kind.MANIFEST]
        tags = {tag: self.random.choice(manifests) for tag in TAGS if manifests}
        return Repository(things, tags, self._some())

    def _some(self) -> set[str | None]:
        return set(self.random.sample(LOGINS, self.random.randrange(1, 4)))

    async def open(self, request: UpstreamRequest) -> Played:
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        ref = request.ref
        registry = self.registries[ref.registry]
        repository = registry.repositories[ref.repository]
        if registry.failing:
            if self.random.random() < 0.5:
                raise UpstreamBroken("down")
            return Played(503, (), b"{}")
        digest = ref.digest or repository.tags.get(ref.reference, "")
        if request.method == "HEAD" and registry.lies and digest:
            told = (("Content-Type", OCI_MANIFEST), ("Docker-Content-Digest", digest))
            return Played(200, told, bytes(LIE))
        if login_of(request.headers) not in repository.readers and not registry.lies:
            return Played(404 if registry.hides else 403, (), b"{}")
        thing = repository.things.get(digest)
        if thing is None or thing.kind is not ref.kind:
            return Played(404, (), b"{}")
        return self._thing(registry, thing, request)

    def _thing(self, registry: Registry, thing: Thing, request: UpstreamRequest) -> Played:
        headers: HeaderList = (("Docker-Content-Digest", thing.digest),)
        headers += (("Content-Type", OCI_MANIFEST if thing.kind is Kind.MANIFEST else "application/octet-stream"),)
        wanted, data, status = header(request.headers, "range"), thing.data, 200
        # Several ranges get everything, as from docker-registry.
        if wanted and "," not in wanted and thing.kind is Kind.BLOB and request.method == "GET":
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(0, len(data) - int(last))
            end = min(len(data), int(last) + 1) if first and last else len(data)
            if start >= len(data):
                return Played(416, (), b"")
            headers += (("Content-Range", f"bytes {start}-{end - 1}/{len(data)}"),)
            data, status = data[start:end], 206
        registry.described.add(thing.digest)
        if request.method == "HEAD":
            return Played(status, headers, data)
        return Played(status, headers, data, lambda: registry.delivered.add(thing.digest))

    # Changes

    def change(self) -> None:
        """Other readers, or a registry that fails, or does no more."""
        registry = self.random.choice(list(self.registries.values()))
        if self.random.random() < 0.5:
            registry.failing = not registry.failing and self.random.random() < 0.5
            return
        repository = self.random.choice(list(registry.repositories.values()))
        repository.readers = self._some()

    def request(self) -> Request:
        name, repository = self.random.choice(list(self.registries)), self.random.choice(REPOSITORIES)
        thing, login = self.random.choice(self.things), self.random.choice(LOGINS)
        is_tag = self.random.random() < 0.3
        reference = self.random.choice(TAGS) if is_tag else thing.digest
        kind = Kind.MANIFEST if is_tag else thing.kind
        ref = Reference(name, repository, kind, reference, None if is_tag else reference, name)
        headers: HeaderList = (("Accept", OCI_MANIFEST),) if self.random.random() < 0.8 else ()
        accept = tuple(value for _, value in headers)
        if login is not None:
            headers = (*headers, ("Authorization", login))
        method = self.random.choice(("GET", "GET", "HEAD"))
        condition = self.random.choice((None, None, None, "*", f'"{thing.digest}"'))
        range_ = self.random.choice((None, None, "bytes=0-99", "bytes=200-", "bytes=-50", "bytes=0-9,20-29", "bytes=999999-"))
        return Request(method, ref, headers, accept, range_, None, condition)

    def may_have(self, request: Request, thing: Thing, body: bytes) -> bool:
        """The invariant's right side."""
        ref, login = request.ref, login_of(request.headers)
        registry = self.registries[ref.registry]
        repository = registry.repositories[ref.repository]
        if registry.has(ref.repository, thing.digest, login):
            return True
        # Whoever lies has these bytes, and gives them to everybody.
        if registry.lies and thing.digest in registry.described:
            return True
        if registry.verifies and not (ref.digest is None and (registry.lies or login in repository.readers)):
            return False
        # An open registry, or the tag of one that lets this login read it, may mean what is everybody's.
        if not registry.verifies and not body and thing.digest in registry.described:
            return True
        return any(not one.verifies and thing.digest in one.delivered for one in self.registries.values())


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path / "cache")
    await store.start()
    yield store
    await store.stop()


def settings_for(world: World, *, tag_ttl: float) -> Settings:
    rows = {
        name: RegistrySettings(
            configured=True, access="verify" if registry.verifies else "open", tag_ttl=tag_ttl, tag_ttls=(("latest", 0.0),)
        )
        for name, registry in world.registries.items()
    }
    return Settings(retries=0, registries=rows)


def is_part(body: bytes, thing: Thing) -> bool:
    """Whether there are bytes of this object, and of no other, in a body."""
    if thing.kind is Kind.MANIFEST:  # They all begin and end alike.
        return body == thing.data
    return len(body) >= 10 and (body in thing.data or thing.data[:10] in body)


def told(answer: Answer, body: bytes, things: list[Thing]) -> list[Thing]:
    """The objects of which an answer gives bytes, the size, or that they are as they were."""
    found = []
    content_range = header(answer.headers, "content-range") or ""
    for thing in things:
        size = len(thing.data)
        if (
            is_part(body, thing)
            or (answer.length == size and answer.status != 206)
            or content_range.endswith(f"/{size}")
            or (answer.status == 304 and header(answer.headers, "docker-content-digest") == thing.digest)
        ):
            found.append(thing)
    return found


@pytest.mark.parametrize("seed", range(16))
async def test_nobody_gets_what_is_not_his(store: Store, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheyd.cache.pieces.FAR_AHEAD", 10_000)
    world = World(seed)
    settings = settings_for(world, tag_ttl=300.0 if seed % 2 else 0.0)
    fetcher = Fetcher(store, world, settings)
    cache = Cache(store, fetcher, settings)
    hits = 0
    try:
        for _ in range(STEPS):
            match world.random.randrange(16):
                case 0:
                    world.change()
                    fetcher.forget()
                    cache.forget()
                case 1 if store.catalog.objects:
                    # The row of an object is lost, its file is there.
                    store.objects.forget(world.random.choice(list(store.catalog.objects.values())))
            requests = [world.request() for _ in range(world.random.randrange(1, AT_ONCE + 1))]
            hits += await together(world, cache, requests)
    finally:
        await fetcher.stop()
    assert hits > 10, "else it would show nothing"


async def together(world: World, cache: Cache, requests: list[Request]) -> int:
    """Asks all of it at once, and looks at what each got; how many were hits."""
    answers = await asyncio.gather(*map(cache.answer, requests))
    bodies = await asyncio.gather(*map(what_came, answers))
    for request, answer, body in zip(requests, answers, bodies, strict=True):
        for thing in told(answer, body, world.things):
            assert world.may_have(request, thing, body), (request, answer.status, answer.headers, len(body))
    return sum(answer.result in ("HIT", "REVALIDATED", "STALE") for answer in answers)
