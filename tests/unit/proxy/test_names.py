"""Lookups of host names: whoever never answers costs others nothing."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from aiohappyeyeballs import AddrInfoType

from cacheyd.proxy.outbound.names import FRESH, PER_ZONE, STALE, Names, system_look_up, zone_of

PORT = 443


def answer(address: str) -> list[AddrInfoType]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, PORT))]


class Server:
    """Name servers: those of hosts that begin with `dead` never answer before the test ends."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.address = "192.0.2.1"
        self.failing = False
        self.ended = threading.Event()

    def look_up(self, host: str, port: int) -> list[AddrInfoType]:
        self.asked.append(host)
        if host.startswith("dead"):
            self.ended.wait(20)
        if self.failing:
            raise OSError("no answer")
        return answer(self.address)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.ended.set()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def names(server: Server, clock: Clock | None = None) -> AsyncIterator[Names]:
    found = Names(server.look_up, clock or Clock())
    try:
        yield found
    finally:
        server.ended.set()
        found.close()


async def test_a_name_that_never_resolves_holds_up_nobody(server: Server) -> None:
    async with names(server) as found:
        waiting = [asyncio.create_task(found.addresses(f"dead{n}.evil{n % 5}.test", PORT)) for n in range(20)]
        await asyncio.sleep(0.05)
        async with asyncio.timeout(1):
            assert await found.addresses("good.test", PORT) == answer("192.0.2.1")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_one_zone_has_few_threads(server: Server) -> None:
    async with names(server) as found:
        waiting = [asyncio.create_task(found.addresses(f"dead{n}.evil.test", PORT)) for n in range(PER_ZONE + 3)]
        await asyncio.sleep(0.05)
        assert len(server.asked) == PER_ZONE
        server.ended.set()
        assert len(await asyncio.gather(*waiting)) == PER_ZONE + 3
        assert len(server.asked) == PER_ZONE + 3


async def test_an_address_is_nothing_to_look_up(server: Server) -> None:
    found = Names()
    assert (await found.addresses("127.0.0.1", PORT))[0][4] == ("127.0.0.1", PORT)
    assert (await found.addresses("::1", PORT))[0][4][0] == "::1"


async def test_a_failure_is_told_to_all_and_not_kept(server: Server) -> None:
    async with names(server) as found:
        server.failing = True
        for _ in range(2):
            with pytest.raises(OSError, match="no answer"):
                await found.addresses("good.test", PORT)
        server.failing = False
        assert await found.addresses("good.test", PORT)


async def test_a_host_is_looked_up_once_for_all(server: Server) -> None:
    async with names(server) as found:
        assert len(await asyncio.gather(*(found.addresses("good.test", PORT) for _ in range(50)))) == 50
        assert await found.addresses("good.test", PORT)
        assert server.asked == ["good.test"]


async def test_who_leaves_takes_nobody_elses_answer_away(server: Server) -> None:
    async with names(server) as found:
        first = asyncio.create_task(found.addresses("dead.test", PORT))
        second = asyncio.create_task(found.addresses("dead.test", PORT))
        await asyncio.sleep(0.05)
        first.cancel()
        server.ended.set()
        assert await second == answer("192.0.2.1")


async def test_an_answer_gets_old(server: Server) -> None:
    clock = Clock()
    async with names(server, clock) as found:
        await found.addresses("good.test", PORT)
        server.address = "192.0.2.2"
        clock.now += FRESH
        assert await found.addresses("good.test", PORT) == answer("192.0.2.2")


async def test_the_old_answer_serves_while_there_is_no_new_one(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheyd.proxy.outbound.names.LATE", 0.05)
    clock = Clock()
    async with names(server, clock) as found:
        await found.addresses("good.test", PORT)
        server.failing = True
        clock.now += FRESH
        assert await found.addresses("good.test", PORT) == answer("192.0.2.1")
        clock.now += STALE
        with pytest.raises(OSError, match="no answer"):
            await found.addresses("good.test", PORT)


@pytest.mark.parametrize("host", ["\ud800.test", "a" * 70 + ".test", "..", "\x00"])
def test_what_is_no_name(host: str) -> None:
    with pytest.raises(OSError, match=r".*"):
        system_look_up(host, PORT)


@pytest.mark.parametrize(
    ("host", "zone"),
    [("a.b.example.com", "example.com"), ("example.com.", "example.com"), ("localhost", "localhost"), ("::1", "::1")],
)
def test_zones(host: str, zone: str) -> None:
    assert zone_of(host) == zone
