"""A growing object and its readers: what may be read when, and that every change wakes every reader."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheyd.cache.bodies import WINDOW, BodyBroken, MappedReader, MultipartReader
from cacheyd.cache.flight import COPY, HOLD, Flight, FlightReader, FlightTable, NotKept
from cacheyd.cache.requester import Requester
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.errors import RequestError, upstream_error
from cacheyd.protocol.ranges import Part
from cacheyd.store.blobs import BlobDir
from cacheyd.store.partial_dir import PartialDir
from cacheyd.upstream.port import Relay, Relayed

DIGEST = digest_of(b"a")
ASKER = Requester("reg.example", "lab/img", b"alice")
LARGE = random.Random(1).randbytes(WINDOW + WINDOW // 2)


class Growing:
    """A flight and what a fetch does to it."""

    def __init__(self, root: Path, data: bytes) -> None:
        self.blobs = BlobDir(root)
        self.blobs.prepare()
        self.data = data
        self.flight = Flight(digest_of(data), ASKER)
        self.partial = self.flight.partial = PartialDir(self.blobs).open(digest_of(data))

    def stream(self, size: int | None) -> None:
        self.flight.size = size
        self.flight.streaming = True
        self.flight.notify()

    def grow(self, end: int) -> None:
        piece = self.data[self.partial.size : end]
        self.partial.write([piece])
        self.partial.hash([piece])
        self.flight.received = self.partial.advance(len(piece))
        self.flight.notify()

    def land(self) -> None:
        self.grow(len(self.data))
        assert self.partial.verified()
        self.flight.size = len(self.data)
        self.flight.verified = True
        self.flight.notify()


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[Growing]:
    growing = Growing(tmp_path, LARGE)
    yield growing
    growing.partial.close()


async def read_to_end(reader: FlightReader | MappedReader) -> bytes:
    data = bytearray()
    while piece := await reader.read():
        data += piece
    return bytes(data)


async def settled() -> None:
    """Lets everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


# How much may be read


@pytest.mark.parametrize(
    ("received", "size", "verified", "readable"),
    [
        (0, None, False, 0),
        (0, 10, False, 0),
        (10, 10, False, 0),
        (HOLD, 10 * HOLD, False, 0),
        (HOLD + 1, 10 * HOLD, False, 1),
        (10 * HOLD, 10 * HOLD, False, 9 * HOLD),
        (10 * HOLD, None, False, 9 * HOLD),
        (10 * HOLD + 5, 10 * HOLD, False, 9 * HOLD),
        (10 * HOLD, 10 * HOLD, True, 10 * HOLD),
        (5, 5, True, 5),
        (0, 0, True, 0),
    ],
)
def test_the_tail_is_held_back_until_the_digest_is_verified(
    received: int, size: int | None, verified: bool, readable: int
) -> None:
    flight = Flight(DIGEST, ASKER)
    flight.received, flight.size, flight.verified = received, size, verified
    assert flight.readable == readable


@given(st.integers(0, 1 << 40), st.one_of(st.none(), st.integers(0, 1 << 40)))
def test_nobody_has_the_whole_object_before_it_is_verified(received: int, size: int | None) -> None:
    flight = Flight(DIGEST, ASKER)
    flight.received, flight.size = received, size

    assert 0 <= flight.readable <= received
    if size:
        assert flight.readable < size


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


# Waiting


async def test_opened_waits_for_upstreams_answer() -> None:
    flight = Flight(DIGEST, ASKER)
    waiting = asyncio.create_task(flight.opened())
    flight.received = 10
    await settled()
    flight.notify()
    await settled()
    assert not waiting.done()

    flight.streaming = True
    flight.notify()
    await waiting
    await flight.opened()


async def test_settled_waits_for_the_end_but_not_for_ever() -> None:
    flight = Flight(DIGEST, ASKER)
    await flight.settled(0.01)
    assert not flight.over

    waiting = asyncio.create_task(flight.settled(10))
    await settled()
    flight.verified = True
    flight.notify()
    await waiting


async def test_one_change_wakes_all_who_wait() -> None:
    flight = Flight(DIGEST, ASKER)
    waiting = [asyncio.create_task(flight.changed()) for _ in range(100)]
    await settled()

    flight.notify()

    async with asyncio.timeout(1):
        await asyncio.gather(*waiting)


async def test_who_stops_waiting_does_not_disturb_the_others() -> None:
    flight = Flight(DIGEST, ASKER)
    gone, stays = asyncio.create_task(flight.changed()), asyncio.create_task(flight.changed())
    await settled()
    gone.cancel()
    await settled()
    flight.notify()
    async with asyncio.timeout(1):
        await stays
    assert gone.cancelled()


async def test_a_reader_cancelled_as_it_is_woken_does_not_disturb_the_others() -> None:
    flight = Flight(DIGEST, ASKER)
    gone, stays = asyncio.create_task(flight.changed()), asyncio.create_task(flight.changed())
    await settled()
    flight.notify()
    gone.cancel()
    async with asyncio.timeout(1):
        await stays


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


# Stored objects


@pytest.mark.parametrize(("start", "end"), [(0, len(LARGE)), (5, 10), (WINDOW - 5, WINDOW + 5), (7, 7), (1, len(LARGE) - 1)])
async def test_a_stored_object_goes_out_in_windows_of_its_mapping(growing: Growing, start: int, end: int) -> None:
    growing.land()
    growing.blobs.commit(growing.partial)
    mapped = growing.blobs.map(growing.flight.digest)
    assert mapped is not None

    reader = MappedReader(mapped, start, end)
    pieces = [piece for _ in range(5) if (piece := await reader.read())]

    assert b"".join(pieces) == LARGE[start:end]
    assert all(len(piece) <= WINDOW for piece in pieces)
    reader.close()


async def test_several_parts_go_out_one_after_another_without_a_copy(growing: Growing) -> None:
    growing.land()
    growing.blobs.commit(growing.partial)
    mapped = growing.blobs.map(growing.flight.digest)
    assert mapped is not None
    parts = (Part(5, 10), Part(100, 100 + WINDOW + 1))

    reader = MultipartReader(mapped.view, parts, len(LARGE), "a/b")
    pieces = []
    while piece := await reader.read():
        pieces.append(piece)

    body = b"".join(pieces)
    assert len(body) == reader.length
    assert [len(piece) for piece in pieces if isinstance(piece, memoryview)] == [5, WINDOW, 1]
    for part in parts:
        head = f"Content-Type: a/b\r\nContent-Range: {part.content_range(len(LARGE))}\r\n\r\n".encode()
        assert head + LARGE[part.start : part.end] + b"\r\n--" in body
    assert body.startswith(f"--{reader.boundary}\r\n".encode())
    assert body.endswith(f"--{reader.boundary}--\r\n".encode())


# Whose failure is whose


@pytest.mark.parametrize(
    ("other", "error", "shared"),
    [
        (ASKER, Relayed(Relay(401, (), b"")), True),
        (Requester("reg.example", "lab/img", b"bob"), Relayed(Relay(401, (), b"")), False),
        (Requester("reg.example", "lab/img", b"bob"), Relayed(Relay(404, (), b"")), False),
        (Requester("reg.example", "lab/img", b"bob"), Relayed(Relay(429, (), b"")), False),
        (Requester("reg.example", "lab/other", b"alice"), Relayed(Relay(404, (), b"")), False),
        (Requester("reg.example", "lab/img", b"bob"), Relayed(Relay(503, (), b"")), True),
        (Requester("reg.example", "lab/img", b"bob"), upstream_error(502, "broken"), True),
        (Requester("other.example", "lab/img", b"alice"), upstream_error(502, "broken"), False),
        (Requester("other.example", "lab/img", b"alice"), Relayed(Relay(503, (), b"")), False),
    ],
)
def test_a_failure_is_shared_only_where_it_would_be_the_same(
    other: Requester, error: Relayed | RequestError, shared: bool
) -> None:
    assert ASKER.shares(other, error) is shared


# The table


def test_the_table_keeps_flights_single() -> None:
    table = FlightTable()
    flight = Flight(DIGEST, ASKER)
    assert table.get(ASKER.registry, DIGEST) is None

    table.add(flight)
    assert table.get(ASKER.registry, DIGEST) is flight
    assert len(table) == 1
    with pytest.raises(AssertionError):
        table.add(Flight(DIGEST, ASKER))

    table.remove(flight)
    table.remove(flight)
    assert (table.get(ASKER.registry, DIGEST), len(table)) == (None, 0)


def test_removing_an_old_flight_leaves_its_successor_alone() -> None:
    table = FlightTable()
    old, new = Flight(DIGEST, ASKER), Flight(DIGEST, ASKER)
    table.add(old)
    table.remove(old)
    table.add(new)

    table.remove(old)
    assert table.get(ASKER.registry, DIGEST) is new
