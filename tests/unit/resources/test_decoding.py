"""Where codings are undone: turns, registries one after the other, and what is counted."""

import asyncio
import gzip

import pytest

from cacheyd.protocol.codings import BadCoding
from cacheyd.resources.budget import FLOOR, Budget, HeldBody
from cacheyd.resources.decoding import MAX_WAITING, DecodingQueue, NoTurn, undo


async def test_registries_have_their_turns_one_after_the_other() -> None:
    turns, order = DecodingQueue(), list[str]()

    async def take(registry: str) -> None:
        async with turns.turn(registry):
            order.append(registry)
            await asyncio.sleep(0)

    await asyncio.gather(*(take(registry) for registry in "xaaabbc"))
    assert order == list("xabcaba")


async def test_too_many_of_one_registry_are_refused_and_who_leaves_makes_room() -> None:
    turns = DecodingQueue()
    async with turns.turn("a"):
        waiting = [asyncio.ensure_future(turns._enter("a")) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(NoTurn):
            await turns._enter("a")
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(1), turns.turn("a"):
        pass


async def test_all_that_is_counted_is_given_back() -> None:
    budget = Budget(1 << 20)
    assert await undo("a", gzip.compress(b"x" * 1000), ["gzip"], 1000, budget) == b"x" * 1000
    with pytest.raises(BadCoding):
        await undo("a", b"no gzip", ["gzip"], 1000, budget)
    assert await undo("a", b"no gzip", ["gzip"], 1000, budget, is_right=lambda data: True) == b"no gzip"
    assert budget.held == 0


async def test_a_body_counts_once_until_the_last_one_has_it() -> None:
    budget, body = Budget(3 * FLOOR), bytes(2 * FLOOR + 1)
    first, second = HeldBody(body, budget), HeldBody(body, budget)
    assert budget.held == len(body)
    assert budget.has_room_for(body)
    assert not budget.has_room_for(bytes(2 * FLOOR))
    assert [len(await first.read()) for _ in range(4)] == [FLOOR, FLOOR, 1, 0]
    first.close()
    first.close()
    assert budget.held == len(body)
    del second
    assert budget.held == 0
