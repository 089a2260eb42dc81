"""Turns for fetches: bounded, no registry with more than half, fair."""

import asyncio

import pytest

from cacheyd.resources.slots import Slots


async def enter(slots: Slots, registry: str, order: list[str]) -> None:
    await slots.enter(registry)
    order.append(registry)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_registry_takes_more_than_half() -> None:
    slots = Slots(8)
    assert [slots.try_enter("a") for _ in range(6)] == [True] * 4 + [False] * 2
    assert [slots.try_enter("b") for _ in range(6)] == [True] * 4 + [False] * 2
    assert slots.full
    assert not slots.try_enter("c")


@pytest.mark.parametrize(("limit", "most"), [(1, 1), (2, 2), (3, 2), (4, 2), (6, 3)])
async def test_few_turns(limit: int, most: int) -> None:
    slots = Slots(limit)
    assert sum(slots.try_enter("a") for _ in range(10)) == most


async def test_the_registry_with_the_fewest_turns_is_next() -> None:
    slots, order = Slots(4), list[str]()
    for registry in ("a", "a", "b", "b"):
        assert slots.try_enter(registry)
    waiting = [asyncio.create_task(enter(slots, registry, order)) for registry in ("a", "a", "b", "c")]
    await settle()
    assert order == []
    slots.leave("b")
    await settle()
    assert order == ["c"]
    slots.leave("a")
    await settle()
    assert order == ["c", "a"]
    slots.leave("b")
    await settle()
    assert order == ["c", "a", "b"]
    slots.leave("a")
    await asyncio.gather(*waiting)


async def test_within_a_registry_who_came_first() -> None:
    slots, order = Slots(2), list[int]()

    async def wait(number: int) -> None:
        await slots.enter("a")
        order.append(number)

    assert slots.try_enter("a")
    assert slots.try_enter("a")
    waiting = [asyncio.create_task(wait(number)) for number in range(4)]
    await settle()
    assert not slots.try_enter("a"), "nobody passes those who wait"
    for _ in range(4):
        slots.leave("a")
        await settle()
    assert order == [0, 1, 2, 3]
    await asyncio.gather(*waiting)


async def test_who_leaves_the_queue_takes_no_turn() -> None:
    slots = Slots(2)
    assert slots.try_enter("a")
    assert slots.try_enter("b")
    first, second = (asyncio.create_task(slots.enter("c")) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    slots.leave("a")
    await second
    assert (slots.taken("a"), slots.taken("b"), slots.taken("c")) == (0, 1, 1)


async def test_who_leaves_with_his_turn_just_given_gives_it_on() -> None:
    slots = Slots(2)
    assert slots.try_enter("a")
    assert slots.try_enter("b")
    first, second = (asyncio.create_task(slots.enter("c")) for _ in range(2))
    await settle()
    slots.leave("a")
    first.cancel()
    async with asyncio.timeout(1):
        await second
    assert slots.taken("c") == 1
