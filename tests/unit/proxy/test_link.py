"""A client's connection over a real socket pair: what it has not taken, when it is given up, and who is read."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import connection

from cacheyd.cache.bodies import BodyBroken
from cacheyd.proxy.inbound import link as link_module
from cacheyd.proxy.inbound.link import ClientLink
from cacheyd.settings.settings import Settings
from tests.support.stores import eventually

PROGRESS = 0.2
LARGE = bytes(16 << 20)


class Reader:
    """Whoever reads what the client sends."""

    behind = False


class Side:
    """One connection and its link; the handler is what the link needs of mitmproxy's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: socket.socket) -> None:
        self.client = client
        self.writer = writer
        self.cancelled: list[str] = []
        self.lost = False
        client_id = connection.Client(peername=("a", 1), sockname=("b", 2), timestamp_start=0.0)
        io = SimpleNamespace(reader=reader, writer=writer, handler=SimpleNamespace(cancel=self.cancelled.append))
        watchdog = SimpleNamespace(timeout=60, callback=None)
        handler: Any = SimpleNamespace(client=client_id, transports={client_id: io}, timeout_watchdog=watchdog)
        self.handler = handler
        self.settings = Settings(progress_timeout=PROGRESS, min_rate=1000)
        self.link = ClientLink(handler, lambda: self.settings, self.on_lost)

    def on_lost(self) -> None:
        self.lost = True


@pytest.fixture
async def side() -> AsyncIterator[Side]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=ours)
    side = Side(reader, writer, theirs)
    yield side
    theirs.close()
    writer.transport.abort()
    await eventually(lambda: side.lost)


async def test_what_is_taken_at_once_is_not_waited_for(side: Side) -> None:
    side.writer.write(b"x")
    assert not side.link.outgoing.full
    await side.link.outgoing.taken()


async def test_waits_until_all_is_taken(side: Side) -> None:
    side.writer.write(LARGE)
    assert side.link.outgoing.full
    waiting = asyncio.create_task(side.link.outgoing.taken())
    loop, left = asyncio.get_running_loop(), len(LARGE)
    while left:
        left -= len(await loop.sock_recv(side.client, left))
    await waiting
    assert not side.link.outgoing.full


async def test_who_takes_nothing_is_given_up_then_aborted(side: Side) -> None:
    side.writer.write(LARGE)
    started = time.monotonic()
    with pytest.raises(BodyBroken, match="took nothing"):
        await side.link.outgoing.taken()
    assert time.monotonic() - started >= PROGRESS
    assert not side.lost
    with pytest.raises(BodyBroken, match="took nothing"):
        await side.link.outgoing.taken()
    await eventually(lambda: side.lost)
    with pytest.raises(BodyBroken, match="has left"):
        await side.link.outgoing.taken()


async def test_where_nobody_waits_the_handler_is_ended(side: Side) -> None:
    side.writer.write(LARGE)
    await eventually(lambda: side.cancelled)
    assert side.writer.is_closing()
    await eventually(lambda: side.lost)


async def test_a_close_that_does_not_end_is_aborted(side: Side) -> None:
    side.writer.write(LARGE)
    side.link.close()
    await eventually(lambda: side.lost)
    assert side.cancelled == []


@pytest.mark.parametrize(("rate", "lasts"), [(5_000_000, True), (300, False)])
async def test_the_least_rate(side: Side, rate: int, lasts: bool) -> None:
    side.settings = Settings(progress_timeout=PROGRESS, min_rate=1_000_000)
    side.writer.write(LARGE)
    for _ in range(30):
        await asyncio.sleep(0.05)
        if side.lost:
            break
        with suppress(BlockingIOError):
            side.client.recv(rate // 20)
    assert side.lost is not lasts


async def test_a_client_that_leaves_wakes_who_waits(side: Side) -> None:
    side.writer.write(LARGE)
    waiting = asyncio.create_task(side.link.outgoing.taken())
    await asyncio.sleep(0)
    side.client.close()
    with pytest.raises(BodyBroken, match="has left"):
        await waiting


async def test_a_turn_ends_with_the_client(side: Side) -> None:
    await side.link.outgoing.turn()
    assert not side.link.outgoing.over
    side.writer.write(LARGE)
    await side.link.outgoing.turn()
    assert side.link.outgoing.over


async def test_nothing_is_read_while_the_reader_is_behind(side: Side) -> None:
    reader = Reader()
    side.link.incoming.read_by(reader)
    reader.behind = True
    reading = asyncio.create_task(side.handler.drain_writers())
    await asyncio.sleep(0.01)
    side.link.incoming.hungry()
    await asyncio.sleep(0.01)
    assert not reading.done()
    reader.behind = False
    side.link.incoming.hungry()
    await asyncio.wait_for(reading, 1)


async def test_a_handshake_that_takes_too_long_ends(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "HANDSHAKE_DEADLINE", 0.05)
    side.link.expect_handshake()
    side.link.established()
    await asyncio.sleep(0.1)
    assert side.cancelled == []
    side.link.expect_handshake()
    await eventually(lambda: side.cancelled)
