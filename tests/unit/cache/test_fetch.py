"""Blobs against a scripted upstream and a real store: once for all, each in its turn."""

import asyncio
import gc
import os
import random
from contextlib import suppress
from pathlib import Path

import pytest

from cacheyd.cache.growing import HOLD
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.errors import RequestError
from cacheyd.settings.load import load
from cacheyd.upstream.port import Relayed, UpstreamRequest
from tests.support.fetching import (
    ACCEPT,
    BLOB,
    BOB,
    Scene,
    Script,
    blob_ref,
    landed,
    read,
    refusal,
    until,
    whole,
)
from tests.support.stores import eventually

# Blobs


async def test_a_blob_is_fetched_once_for_all_and_kept(fetching: Scene) -> None:
    upstream = Script(whole(BLOB, *[BLOB[i : i + 50_000] for i in range(0, len(BLOB), 50_000)]))
    fetcher = fetching.fetcher(upstream)

    bodies = await asyncio.gather(*(read(fetcher.flight(blob_ref(BLOB), ACCEPT), start) for start in (0, 5, 299_999)))

    assert bodies == [BLOB, BLOB[5:], BLOB[299_999:]]
    assert upstream.requests == [UpstreamRequest(blob_ref(BLOB), "GET", ACCEPT)]
    await landed(fetcher)
    assert fetching.on_disk(BLOB) == BLOB


async def test_who_comes_late_joins_the_same_flight(fetching: Scene) -> None:
    more = asyncio.Event()
    upstream = Script(whole(BLOB, BLOB[:200_000], more, BLOB[200_000:]))
    fetcher = fetching.fetcher(upstream)
    first = fetcher.flight(blob_ref(BLOB), ACCEPT)
    await until(first, 200_000)

    late = fetcher.flight(blob_ref(BLOB), BOB)
    assert late is first
    reading = asyncio.create_task(read(late))
    more.set()

    assert await reading == BLOB
    assert len(upstream.requests) == 1


async def test_a_flight_needs_no_client_to_complete(fetching: Scene) -> None:
    fetcher = fetching.fetcher(Script(whole(BLOB)))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)
    reading = asyncio.create_task(read(flight))
    await asyncio.sleep(0)
    reading.cancel()

    await landed(fetcher)
    assert fetching.on_disk(BLOB) == BLOB


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("data", [b"", b"small", BLOB])
async def test_blobs_of_any_size(fetching: Scene, data: bytes, algorithm: str) -> None:
    fetcher = fetching.fetcher(Script(whole(data)))
    flight = fetcher.flight(blob_ref(data, algorithm), ACCEPT)
    assert await read(flight) == data
    await landed(fetcher)
    assert fetching.store.objects.find(digest_of(data, algorithm)) is not None


async def test_the_length_may_be_unknown_until_the_end(fetching: Scene) -> None:
    fetcher = fetching.fetcher(Script(whole(BLOB, length=False)))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)

    assert await read(flight) == BLOB
    assert flight.size == len(BLOB)


async def test_responses_are_closed(fetching: Scene) -> None:
    reply, missing = whole(BLOB), refusal(404)
    fetcher = fetching.fetcher(Script(reply, missing))
    await read(fetcher.flight(blob_ref(BLOB), ACCEPT))
    with pytest.raises(Relayed):
        await fetcher.flight(blob_ref(b"other"), ACCEPT).opened()

    assert reply.closed
    assert missing.closed


def open_files(folder: Path) -> list[str]:
    """The files below `folder` that this process has open, wherever they were moved or removed to."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(os.readlink(descriptor))
    return [path for path in found if path.startswith(f"{folder}/")]


async def test_no_descriptor_stays_open(fetching: Scene) -> None:
    async def fetch(n: int) -> None:
        data = random.Random(n).randbytes(HOLD + n)
        fetcher = fetching.fetcher(Script(whole(data)))
        flight = fetcher.flight(blob_ref(data), ACCEPT)
        assert await read(flight) == data
        await landed(fetcher)

    for n in range(6):
        await fetch(n)
    gc.collect()
    # Of this store's files only: what tests before this one left to the collector comes and goes.
    assert open_files(fetching.store.root / "partial") + open_files(fetching.store.root / "blobs") == []


# How many at once


async def test_what_is_on_its_way_in_is_left_alone_until_its_flight_has_ended(fetching: Scene) -> None:
    more = asyncio.Event()
    fetcher = fetching.fetcher(Script(whole(BLOB, BLOB[:100_000], more, BLOB[100_000:])))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)
    expected = fetching.store.partials.reservations.expected
    assert set(expected()) == {flight.digest}, "before the fetch has begun"
    await until(flight, 100_000)
    assert set(expected()) == {flight.digest}

    more.set()
    assert await read(flight) == BLOB
    await eventually(lambda: not expected())


async def test_more_flights_than_allowed_wait_their_turn(fetching: Scene) -> None:
    fetching.settings = load(environ={}, flags={"max_flights": "1"})
    more = asyncio.Event()
    upstream = Script(whole(BLOB, BLOB[:100_000], more, BLOB[100_000:]), whole(b"small"))
    fetcher = fetching.fetcher(upstream)
    first, second = fetcher.flight(blob_ref(BLOB), ACCEPT), fetcher.flight(blob_ref(b"small"), ACCEPT)
    await until(first, 100_000)
    assert len(upstream.requests) == 1
    assert set(fetching.store.partials.reservations.expected()) == {first.digest, second.digest}

    more.set()
    assert [await read(first), await read(second)] == [BLOB, b"small"]


async def test_who_waits_for_too_long_is_sent_on(fetching: Scene) -> None:
    fetching.settings = load(environ={}, flags={"max_flights": "1", "head_timeout": "20ms"})
    more = asyncio.Event()
    fetcher = fetching.fetcher(Script(whole(BLOB, BLOB[:100_000], more, BLOB[100_000:]), whole(b"small")))
    first = fetcher.flight(blob_ref(BLOB), ACCEPT)
    with pytest.raises(RequestError) as caught:
        await fetcher.flight(blob_ref(b"small"), ACCEPT).opened()
    assert caught.value.failure.status == 503

    more.set()
    assert await read(first) == BLOB
    await landed(fetcher)
    assert await read(fetcher.flight(blob_ref(b"small"), ACCEPT)) == b"small"
