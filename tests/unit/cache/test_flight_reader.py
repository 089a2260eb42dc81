"""Readers of a growing object: at any offset, at any time, and none gets wrong bytes."""

import asyncio
import random
from pathlib import Path

import pytest

from cacheyd.cache.bodies import WINDOW, BodyBroken
from cacheyd.cache.flight import NotKept
from cacheyd.cache.flight_reader import COPY, FlightReader
from cacheyd.cache.growing import HOLD
from cacheyd.protocol.errors import RequestError, upstream_error
from cacheyd.upstream.port import Relay, Relayed
from tests.support.flights import LARGE, Growing, read_to_end, settled


async def test_a_reader_gets_all_but_the_tail_then_the_tail(growing: Growing) -> None:
    growing.stream(len(LARGE))
    growing.grow(len(LARGE))
    reader = FlightReader(growing.flight, 0, len(LARGE))

    data = bytearray()
    while len(data) < len(LARGE) - HOLD:
        data += await reader.read()
    assert len(data) == len(LARGE) - HOLD
    waiting = asyncio.create_task(read_to_end(reader))
    await settled()
    assert not waiting.done()

    growing.land()
    assert bytes(data) + await waiting == LARGE


# Reading at offsets


OFFSETS = [0, 1, HOLD, COPY - 1, COPY, WINDOW - 1, WINDOW, WINDOW + 1, len(LARGE) - HOLD, len(LARGE) - 1]


@pytest.mark.parametrize("start", OFFSETS)
async def test_readers_at_any_offset_get_the_rest(growing: Growing, start: int) -> None:
    growing.land()
    assert await read_to_end(FlightReader(growing.flight, start, len(LARGE))) == LARGE[start:]
    assert await read_to_end(FlightReader(growing.flight, start, None)) == LARGE[start:]


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 0), (5, 5), (0, 1), (10, 20), (WINDOW - 10, WINDOW + 10), (WINDOW, WINDOW + 1), (0, WINDOW), (1, len(LARGE) - 1)],
)
async def test_a_part_ends_where_it_should(growing: Growing, start: int, end: int) -> None:
    growing.land()
    assert await read_to_end(FlightReader(growing.flight, start, end)) == LARGE[start:end]


async def test_complete_windows_are_shared_and_what_is_incomplete_is_copied(growing: Growing) -> None:
    growing.stream(len(LARGE))
    growing.grow(WINDOW + 2 * COPY)
    first, second = FlightReader(growing.flight, 0, None), FlightReader(growing.flight, 0, None)

    window, same = await first.read(), await second.read()
    assert isinstance(window, memoryview)
    assert isinstance(same, memoryview)
    assert window.obj is same.obj
    assert len(window) == WINDOW
    piece = await first.read()
    assert isinstance(piece, bytes)
    assert len(piece) == COPY


async def test_a_piece_never_crosses_a_window(growing: Growing) -> None:
    growing.land()
    reader = FlightReader(growing.flight, WINDOW - 100, None)

    assert bytes(await reader.read()) == LARGE[WINDOW - 100 : WINDOW]
    assert bytes(await reader.read())[:10] == LARGE[WINDOW : WINDOW + 10]


async def test_readers_that_come_early_and_late_all_get_everything(growing: Growing) -> None:
    starts = OFFSETS[:]
    readers = [asyncio.create_task(read_to_end(FlightReader(growing.flight, start, None))) for start in starts]
    growing.stream(len(LARGE))
    steps = random.Random(2)
    at = 0
    while at < len(LARGE):
        at = min(len(LARGE), at + steps.randrange(1, 700_000))
        growing.grow(at)
        await asyncio.sleep(0)
        if steps.random() < 0.3:
            starts.append(steps.randrange(len(LARGE)))
            readers.append(asyncio.create_task(read_to_end(FlightReader(growing.flight, starts[-1], None))))
    growing.land()

    for start, data in zip(starts, await asyncio.gather(*readers), strict=True):
        assert data == LARGE[start:]


async def test_a_small_object_is_read_only_when_it_is_verified(tmp_path: Path) -> None:
    growing = Growing(tmp_path, b"small")
    growing.stream(5)
    growing.grow(5)
    reading = asyncio.create_task(read_to_end(FlightReader(growing.flight, 0, 5)))
    await settled()
    assert not reading.done()

    growing.land()
    assert await reading == b"small"
    growing.partial.close()


async def test_an_empty_object(tmp_path: Path) -> None:
    growing = Growing(tmp_path, b"")
    growing.land()
    assert await read_to_end(FlightReader(growing.flight, 0, 0)) == b""
    assert await read_to_end(FlightReader(growing.flight, 0, None)) == b""
    growing.partial.close()


async def test_what_is_committed_can_still_be_read(growing: Growing) -> None:
    reader = FlightReader(growing.flight, 0, None)
    growing.land()
    growing.blobs.commit(growing.partial)
    growing.blobs.remove(growing.flight.digest)

    assert await read_to_end(reader) == LARGE


# Failures

FAILURES = [upstream_error(502, "broken"), NotKept(), Relayed(Relay(404, (), b""))]


@pytest.mark.parametrize("error", FAILURES)
async def test_a_failure_breaks_every_reader_off(growing: Growing, error: RequestError | NotKept | Relayed) -> None:
    growing.stream(len(LARGE))
    growing.grow(WINDOW)
    readers = [asyncio.create_task(read_to_end(FlightReader(growing.flight, at, None))) for at in (0, WINDOW, len(LARGE) - 1)]
    await settled()

    growing.flight.fail(error)

    for result in await asyncio.gather(*readers, return_exceptions=True):
        assert isinstance(result, BodyBroken)
    assert growing.flight.over


async def test_a_reader_that_was_closed_reads_no_more(growing: Growing) -> None:
    growing.land()
    reader = FlightReader(growing.flight, 0, None)
    reader.close()
    with pytest.raises(BodyBroken):
        await reader.read()


async def test_a_partial_that_someone_cut_short_breaks_the_body(growing: Growing) -> None:
    growing.stream(len(LARGE))
    growing.grow(3 * COPY)
    growing.partial.path.write_bytes(b"")
    with pytest.raises(BodyBroken):
        await FlightReader(growing.flight, 0, None).read()


async def test_no_wakeup_is_lost(tmp_path: Path) -> None:
    """A reader that looks just before a change waits for exactly that change: hundreds of changes, one by one."""
    data = random.Random(3).randbytes(HOLD + 500)
    growing = Growing(tmp_path, data)
    growing.stream(len(data))
    growing.grow(HOLD)
    reader = FlightReader(growing.flight, 0, None)
    for i in range(500):
        reading = asyncio.create_task(reader.read())
        if i % 3:
            await settled()
        growing.grow(HOLD + i + 1)
        async with asyncio.timeout(1):
            assert bytes(await reading) == data[i : i + 1]
    growing.partial.close()
