"""Connections that are kept: which are used again, and how many there may be."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from cacheyd.proxy.outbound.pool import MAX_IDLE, MAX_IDLE_IN_ALL, Pool
from cacheyd.proxy.outbound.trust import Origin


class Connection:
    """What a pool needs of a fetch connection."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.alive = True
        self.idle_since = 0.0

    def rest(self, now: float) -> None:
        self.idle_since = now

    def close(self) -> None:
        self.alive = False


def origin(name: str = "reg.test") -> Origin:
    return Origin("https", name, 443)


def exchange(*, complete: bool = True) -> Any:
    return SimpleNamespace(complete=complete, over=lambda: None)


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    connect: Any = Connection
    pool = Pool(connect)
    yield pool
    pool.close()
    reapers = [task for task in asyncio.all_tasks() if task.get_name() == "idle upstream connections"]
    for task in reapers:
        task.cancel()
    await asyncio.gather(*reapers, return_exceptions=True)


async def test_a_connection_is_used_again_after_a_whole_response(pool: Pool) -> None:
    conn = pool.take(origin(), fresh=False)
    pool.release(conn, exchange())
    assert pool.take(origin(), fresh=True) is not conn
    assert pool.take(origin("other.test"), fresh=False) is not conn
    assert pool.take(origin(), fresh=False) is conn


async def test_a_connection_ends_with_a_response_that_broke_off(pool: Pool) -> None:
    conn = pool.take(origin(), fresh=False)
    pool.release(conn, exchange(complete=False))
    assert not conn.alive


async def test_a_connection_that_died_meanwhile_is_not_taken(pool: Pool) -> None:
    conn = pool.take(origin(), fresh=False)
    pool.release(conn, exchange())
    conn.close()
    assert pool.take(origin(), fresh=False) is not conn


async def test_nothing_of_before_is_used_after_a_change(pool: Pool) -> None:
    idle, busy = pool.take(origin(), fresh=False), pool.take(origin(), fresh=False)
    pool.release(idle, exchange())
    pool.renew()
    assert not idle.alive
    assert busy.alive
    pool.release(busy, exchange())
    assert not busy.alive


async def test_so_many_are_kept(pool: Pool) -> None:
    conns = [pool.take(origin(), fresh=True) for _ in range(MAX_IDLE + 2)]
    for conn in conns:
        pool.release(conn, exchange())
    assert sum(conn.alive for conn in conns) == MAX_IDLE
    others = [pool.take(origin(f"{n}.test"), fresh=True) for n in range(MAX_IDLE_IN_ALL)]
    for conn in others:
        pool.release(conn, exchange())
    assert sum(conn.alive for conn in [*conns, *others]) == MAX_IDLE_IN_ALL
    assert others[-1].alive
