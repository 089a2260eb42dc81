"""What a flight tells those who wait for it: every change wakes all of them."""

import asyncio

import pytest

from cacheyd.cache.flight import Flight, NotKept
from cacheyd.protocol.errors import RequestError, upstream_error
from cacheyd.upstream.port import Relay, Relayed
from tests.support.flights import ASKER, DIGEST, settled

FAILURES = [upstream_error(502, "broken"), NotKept(), Relayed(Relay(404, (), b""))]


@pytest.mark.parametrize("error", FAILURES)
async def test_who_waits_for_the_opening_gets_the_failure_itself(error: RequestError | NotKept | Relayed) -> None:
    flight = Flight(DIGEST, ASKER)
    waiting = [asyncio.create_task(flight.opened()) for _ in range(3)]
    await settled()

    flight.fail(error)

    assert await asyncio.gather(*waiting, return_exceptions=True) == [error] * 3
    with pytest.raises(type(error)):
        await flight.opened()
    with pytest.raises(type(error)):
        await flight.settled(10)


async def test_opened_waits_for_upstreams_answer() -> None:
    flight = Flight(DIGEST, ASKER)
    waiting = asyncio.create_task(flight.opened())
    await settled()
    flight.body.grew(10, ())
    await settled()
    assert not waiting.done()

    flight.answered()
    await waiting
    await flight.opened()


async def test_settled_waits_for_the_end_but_not_for_ever() -> None:
    flight = Flight(DIGEST, ASKER)
    await flight.settled(0.01)
    assert not flight.over

    waiting = asyncio.create_task(flight.settled(10))
    await settled()
    flight.landed()
    await waiting


async def test_one_change_wakes_all_who_wait() -> None:
    flight = Flight(DIGEST, ASKER)
    waiting = [asyncio.create_task(flight.changed()) for _ in range(100)]
    await settled()

    flight.changes.wake()

    async with asyncio.timeout(1):
        await asyncio.gather(*waiting)


async def test_who_stops_waiting_does_not_disturb_the_others() -> None:
    flight = Flight(DIGEST, ASKER)
    gone, stays = asyncio.create_task(flight.changed()), asyncio.create_task(flight.changed())
    await settled()
    gone.cancel()
    await settled()
    flight.changes.wake()
    async with asyncio.timeout(1):
        await stays
    assert gone.cancelled()


async def test_a_reader_cancelled_as_it_is_woken_does_not_disturb_the_others() -> None:
    flight = Flight(DIGEST, ASKER)
    gone, stays = asyncio.create_task(flight.changed()), asyncio.create_task(flight.changed())
    await settled()
    flight.changes.wake()
    gone.cancel()
    async with asyncio.timeout(1):
        await stays
