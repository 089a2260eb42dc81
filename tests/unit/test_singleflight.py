"""What several wait for is done once, belongs to nobody, and is done again afterwards."""

import asyncio
import gc

import pytest

from cacheyd.singleflight import SingleFlight


async def test_all_who_ask_meanwhile_get_the_same() -> None:
    once: SingleFlight[str, str, int] = SingleFlight()
    started = 0
    release = asyncio.Event()

    async def work() -> int:
        nonlocal started
        started += 1
        await release.wait()
        return started

    asked = [once.join("key", who, work) for who in ("first", "second", "third")]
    _, other = once.join("other", "first", work)
    await asyncio.sleep(0)
    assert [who for who, _ in asked] == ["first"] * 3
    assert (started, len(once.tasks())) == (2, 2)
    release.set()
    assert set(await asyncio.gather(*(result for _, result in asked))) == {2}
    await other
    await asyncio.sleep(0)
    assert once.tasks() == []
    await once.join("key", "late", work)[1]
    assert started == 3


async def test_who_started_it_may_leave() -> None:
    once: SingleFlight[str, None, str] = SingleFlight()
    release = asyncio.Event()

    async def work() -> str:
        await release.wait()
        return "done"

    _, first = once.join("key", None, work)
    _, second = once.join("key", None, work)
    first.cancel()
    await asyncio.sleep(0)
    release.set()
    assert await second == "done"


async def test_a_failure_is_everybodys_and_is_seen_without_anybody(caplog: pytest.LogCaptureFixture) -> None:
    once: SingleFlight[str, None, None] = SingleFlight()

    async def work() -> None:
        await asyncio.sleep(0)
        raise OSError("broken")

    for _, result in [once.join("key", None, work), once.join("key", None, work)]:
        with pytest.raises(OSError, match="broken"):
            await result
    _, left = once.join("again", None, work)
    left.cancel()
    del left
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()
    assert (once.tasks(), caplog.records) == ([], [])


async def test_a_failure_that_is_over_is_not_joined() -> None:
    """asyncio runs the callbacks of a task, which take it out of the table, only after it has ended."""
    once: SingleFlight[str, int, None] = SingleFlight()
    started: list[int] = []

    async def work(number: int) -> None:
        started.append(number)
        await asyncio.sleep(0)
        if number == 1:
            raise OSError("broken")

    _, first = once.join("key", 1, lambda: work(1))
    (task,) = once.tasks()
    while not task.done():
        await asyncio.sleep(0)
    who, second = once.join("key", 2, lambda: work(2))
    assert who == 2
    with pytest.raises(OSError, match="broken"):
        await first
    assert [other for other, _ in [once.join("key", 3, lambda: work(3))]] == [2], "the new one is in the table still"
    await second
    assert started == [1, 2]
