"""What waits of a body: put together, counted, and no more than the budget allows."""

import asyncio

from cacheyd.proxy.outbound.body_buffer import BUFFER, JOINED, TINY, BodyBuffer
from cacheyd.resources.budget import Budget


async def test_tiny_pieces_are_put_together() -> None:
    buffer = BodyBuffer(Budget(1 << 30))
    for _ in range(2 * JOINED // 100):
        buffer.add(bytes(100))
    assert len(buffer.chunks) <= 3
    buffer.add(bytes(TINY))
    assert len(buffer.chunks[-1]) == TINY


async def test_the_budget_counts_until_it_is_written() -> None:
    budget = Budget(1 << 30)
    buffer = BodyBuffer(budget)
    buffer.add(bytes(5000))
    assert buffer.take() == [bytes(5000)]
    buffer.add(bytes(10))
    assert budget.held == 5010
    buffer.written()
    assert budget.held == 10
    buffer.drop()
    assert budget.held == 0


async def test_the_network_waits_for_the_reader() -> None:
    buffer = BodyBuffer(Budget(1 << 30))
    await buffer.room()
    buffer.add(bytes(BUFFER))
    waiting = asyncio.create_task(buffer.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    buffer.take()
    await waiting
