"""Who may have what, where it is close: between a look and a join, in what was left behind, and in the tables' bounds."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cacheyd.cache.cache import Cache
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.request import Request
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.headers import HeaderList, credentials_of, header
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.settings.live import Live
from cacheyd.settings.settings import RegistrySettings, Settings
from cacheyd.store.records import Stored, add_repository
from cacheyd.store.store import Store
from cacheyd.upstream.port import UpstreamBroken, UpstreamRequest
from tests.support.cache_scene import what_came
from tests.support.stores import Clock

DATA = bytes(range(256)) * 2000
OTHER = b"something else" * 100
ALICE, BOB = "alice", "bob"
SECRET, OWN = "secret/img", "bob/img"


class Response:
    """A whole response; `held` is waited for before its body."""

    by_other_host = False

    def __init__(self, status: int, data: bytes, held: asyncio.Event | None = None) -> None:
        self.status = status
        self.headers: HeaderList = (("Content-Length", str(len(data))),)
        self._data = [data] if data else []
        self._held = held

    async def read(self) -> list[bytes]:
        if self._held is not None:
            await self._held.wait()
        data, self._data = self._data, []
        return data

    def close(self) -> None:
        self._data = []


class Registry:
    """Alice's repository with `DATA`, and Bob's without it."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.held: asyncio.Event | None = None
        self.down = False
        self.on_head: Callable[[], object] = lambda: None

    async def open(self, request: UpstreamRequest) -> Response:
        self.log.append((request.method, request.ref.repository))
        await asyncio.sleep(0)
        if self.down:
            raise UpstreamBroken("down")
        if request.method == "HEAD":
            self.on_head()
        who, data = header(request.headers, "authorization"), {SECRET: DATA, OWN: OTHER}[request.ref.repository]
        if who != {SECRET: ALICE, OWN: BOB}[request.ref.repository]:
            return Response(403, b"{}")
        if request.ref.digest != digest_of(data):
            return Response(404, b"{}")
        if header(request.headers, "range") == f"bytes={len(data)}-":
            return Response(416, b"")
        if request.method == "HEAD":
            head = Response(200, b"")
            head.headers = (("Content-Length", str(len(data))),)
            return head
        return Response(200, data, self.held)


class Scene:
    """A cache in front of it."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store, self.clock, self.registry = store, clock, Registry()
        self.settings = Settings(retries=0, registries={"reg.test": RegistrySettings(configured=True, access="verify")})
        self.fetcher = Fetcher(store, self.registry, self.settings)
        self.live = Live(self.settings)
        self.cache = Cache(store, self.fetcher, self.live)

    async def ask(self, login: str, repository: str, data: bytes = DATA, method: str = "GET") -> tuple[int, bytes]:
        """Status and body."""
        answer = await self.cache.answer(request(login, repository, data, method))
        return answer.status, await what_came(answer)

    async def landed(self) -> None:
        async with asyncio.timeout(5):
            while len(self.fetcher.flights):
                await asyncio.sleep(0.001)


def request(login: str, repository: str, data: bytes, method: str = "GET") -> Request:
    digest = digest_of(data)
    return Request(method, Reference("reg.test", repository, Kind.BLOB, digest, digest, "reg.test"), authorized(login))


def authorized(*logins: str) -> HeaderList:
    return tuple(("Authorization", login) for login in logins)


def tag(name: str) -> Reference:
    return Reference("reg.test", SECRET, Kind.MANIFEST, name, None, "reg.test")


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    clock = Clock()
    store = Store(tmp_path / "cache", clock=clock)
    await store.start()
    scene = Scene(store, clock)
    yield scene
    await scene.fetcher.stop()
    await store.stop()


# Between a look and a join


async def test_a_flight_that_begins_after_the_look_is_not_joined(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bob may read his repository, and nothing was here when he came; then Alice's flight began."""
    assert (await scene.ask(BOB, OWN, OTHER))[0] == 200
    await scene.landed()
    scene.registry.held = asyncio.Event()
    alices: list[asyncio.Task[tuple[int, bytes]]] = []

    async def recover(digest: str, *, wait: float | None = None) -> Stored | None:
        if not alices:
            alices.append(asyncio.create_task(scene.ask(ALICE, SECRET)))
            while not len(scene.fetcher.flights):
                await asyncio.sleep(0)
        return None

    monkeypatch.setattr(scene.store.objects, "recover", recover)
    bobs = asyncio.create_task(scene.ask(BOB, OWN))
    await asyncio.sleep(0.05)
    scene.registry.held.set()
    assert await bobs == (404, b"{}")
    assert await alices[0] == (200, DATA)


@pytest.mark.parametrize("down", [False, True])
async def test_what_is_complete_but_no_object_yet_is_asked_for(scene: Scene, down: bool) -> None:
    """All bytes of Alice's had come when the process ended, or the disk refused the rest."""
    partial = await scene.store.partials.open(digest_of(DATA), "reg.test")
    await scene.store.partials.append(partial, [DATA])
    scene.store.partials.release(partial)
    assert (await scene.ask(BOB, OWN, OTHER))[0] == 200
    await scene.landed()
    scene.registry.down = down
    status, body = await scene.ask(BOB, OWN)
    assert (status, DATA[:50] in body) == (502 if down else 404, False)
    assert scene.store.objects.find(digest_of(DATA)) is None
    scene.registry.down = False
    assert await scene.ask(ALICE, SECRET) == (200, DATA)
    await scene.landed()
    assert (await scene.ask(BOB, OWN))[0] == 404


async def test_a_reload_while_upstream_is_asked(scene: Scene) -> None:
    assert (await scene.ask(ALICE, SECRET))[0] == 200
    await scene.landed()
    scene.cache.forget()
    before = len(scene.registry.log)

    def reload_twice() -> None:
        if len(scene.registry.log) <= before + 2:
            scene.cache.forget()

    scene.registry.on_head = reload_twice
    assert await scene.ask(ALICE, SECRET) == (200, DATA)
    assert scene.registry.log[before:] == [("HEAD", SECRET)] * 3, "until nothing changed meanwhile"


async def test_a_reload_that_opens_the_registry_while_upstream_is_asked(scene: Scene) -> None:
    assert (await scene.ask(ALICE, SECRET))[0] == 200
    await scene.landed()
    scene.cache.forget()

    def opened() -> None:
        settings = Settings(retries=0)
        scene.live.change(settings)

    scene.registry.on_head = opened
    assert await scene.ask(ALICE, SECRET) == (200, DATA)
    assert [method for method, _ in scene.registry.log].count("GET") == 1


# Tables


def test_logins_are_told_apart_by_all_their_lines() -> None:
    different = [(), ("",), ("alice",), ("", "alice"), ("alice", ""), ("alice", "bob"), ("bob", "alice"), ("bob",)]
    assert len({credentials_of(authorized(*lines)) for lines in different}) == len(different)
    assert credentials_of((("AUTHORIZATION", "alice"),)) == credentials_of(authorized("alice"))


async def test_tags_that_nobody_knows_need_not_be_remembered(scene: Scene) -> None:
    scene.cache.access.refused(tag("unknown"), authorized(BOB), 404)
    assert not scene.cache.access._gone


def test_nobody_pushes_another_registry_out() -> None:
    names: tuple[str, ...] = ("private.test/a",)
    for number in range(1000):
        names = add_repository(names, f"evil.test/{number}", 64)
    assert names == ("private.test/a", *(f"evil.test/{number}" for number in range(937, 1000)))
    for number in range(1000):
        names = add_repository(names, f"evil{number}.test/a", 64)
    assert len(names) == 64
    assert names[0] == "private.test/a"
    assert names[-1] == "evil999.test/a"
    for number in range(100):
        names = add_repository(names, f"private.test/{number}", 64)
    assert {name.partition("/")[0] for name in names} > {"private.test", "evil999.test"}
    assert add_repository(names, names[5], 64) == names
