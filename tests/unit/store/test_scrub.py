"""Stored files are hashed again, and what does not match goes."""

import asyncio
import errno
import os
import time
from typing import Any

import pytest

from cacheyd.protocol.digest import digest_of
from cacheyd.settings.load import load
from cacheyd.settings.settings import Settings
from cacheyd.store.store import Store
from tests.support.stores import (
    LARGE,
    Clock,
    add,
    content,
    no_descriptors,
    object_file,
    reopened,
)

DAY = 86400.0


@pytest.fixture
def settings() -> Settings:
    return load(environ={}, flags={"scrub_every": "1d", "scrub_rate": "1GiB"})


# Checking what is stored


async def scrubbed(store: Store) -> int:
    """A pass of the scrub; how many bytes it read."""
    before = store.upkeep.scrub.scrubbed
    await store.upkeep.scrub.scrub()
    return store.upkeep.scrub.scrubbed - before


async def damaged(store: Store, data: bytes) -> None:
    """An object whose bytes changed on the disk, and nothing else of its file."""
    await add(store, data)
    path = object_file(store, data)
    status = path.stat()
    path.write_bytes(data[:-1] + b"!")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert store.objects.find(digest_of(data)) is not None


async def test_everything_is_checked_once_in_a_while(store: Store, clock: Clock) -> None:
    await add(store, LARGE)
    assert await scrubbed(store) == 0
    clock.now += DAY - 1
    assert await scrubbed(store) == 0
    clock.now += 1
    assert await scrubbed(store) == len(LARGE)
    assert await scrubbed(store) == 0
    clock.now += DAY - 1
    await add(store, b"new")
    clock.now += 1
    assert await scrubbed(store) == len(LARGE), "not what has just been verified"


async def test_a_clock_that_goes_back_starts_the_wait_anew(store: Store, clock: Clock) -> None:
    await add(store, LARGE)
    await scrubbed(store)
    clock.now -= 10 * DAY
    assert await scrubbed(store) == 0
    clock.now += 11 * DAY
    assert await scrubbed(store) == len(LARGE)


@pytest.mark.parametrize("flags", [{"scrub_every": "0s"}, {"scrub_every": "1d", "scrub_rate": "0"}])
async def test_it_can_be_switched_off(store: Store, clock: Clock, flags: dict[str, str]) -> None:
    store.live.change(load(environ={}, flags=flags))
    await add(store, LARGE)
    for _ in range(3):
        assert await scrubbed(store) == 0
        clock.now += 10 * DAY


async def test_it_reads_no_faster_than_it_may(store: Store, clock: Clock) -> None:
    store.live.change(load(environ={}, flags={"scrub_every": "1d", "scrub_rate": "1MiB"}))
    await add(store, LARGE)
    await scrubbed(store)
    clock.now += DAY
    started = time.monotonic()
    assert await scrubbed(store) == len(LARGE)
    assert time.monotonic() - started >= len(LARGE) / (1 << 20)


async def test_where_it_stands_outlives_the_process(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheyd.store.scrub.SAVE_EVERY", 0.0)
    digests = sorted([(await add(store, bytes([n]) * 100)).digest for n in range(5)])
    await scrubbed(store)
    clock.now += DAY
    check, third = store.upkeep.scrub.check, asyncio.Event()

    async def check_two(*args: Any) -> bool:
        if args[0].digest == digests[2]:
            third.set()
            await asyncio.sleep(60)
        return await check(*args)

    monkeypatch.setattr(store.upkeep.scrub, "check", check_two)
    passing = asyncio.create_task(store.upkeep.scrub.scrub())
    await asyncio.wait_for(third.wait(), 5)
    passing.cancel()

    again = await reopened(store)
    assert await scrubbed(again) == 300
    assert await scrubbed(again) == 0
    await again.stop()


async def test_what_does_not_match_any_more_is_dropped(store: Store, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    await damaged(store, LARGE)
    await add(store, b"stays")
    await scrubbed(store)
    clock.now += DAY
    await scrubbed(store)

    assert store.objects.find(digest_of(LARGE)) is None
    assert not object_file(store, LARGE).exists()
    assert store.upkeep.scrub.dropped == 1
    assert store.size == 5
    assert "does not hold what its name says" in caplog.text


async def test_what_cannot_be_read_is_dropped(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = await add(store, LARGE)

    def pread(fd: int, size: int, offset: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", pread)
    assert not await store.upkeep.scrub.check(stored, 1 << 30)
    assert not object_file(store, LARGE).exists()
    assert store.upkeep.scrub.dropped == 1


@pytest.mark.parametrize("rate", [0, 1 << 30])
async def test_what_cannot_be_opened_for_want_of_descriptors_stays(store: Store, rate: int) -> None:
    stored = await add(store, LARGE)
    with no_descriptors():
        assert await store.upkeep.scrub.check(stored, rate)
    assert content(store, stored.digest) == LARGE
    assert store.upkeep.scrub.dropped == 0


@pytest.mark.parametrize("rate", [0, 1 << 30])
async def test_a_wiped_file_is_no_error(store: Store, rate: int, caplog: pytest.LogCaptureFixture) -> None:
    stored = await add(store, LARGE)
    object_file(store, LARGE).unlink()

    assert await store.upkeep.scrub.check(stored, rate)
    assert store.upkeep.scrub.dropped == 0
    assert store.size == 0
    assert not caplog.records


async def test_verifying_reads_everything_now(store: Store) -> None:
    await damaged(store, LARGE)
    await add(store, b"stays")
    await add(store, b"wiped")
    object_file(store, b"wiped").unlink()
    seen: list[tuple[int, int, int]] = []

    found = await store.upkeep.scrub.verify(lambda *progress: seen.append(progress))

    assert found == {"checked": 3, "bytes": len(LARGE) + 10, "dropped": [digest_of(LARGE)]}
    assert [(done, total) for done, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[-1][2] == len(LARGE) + 10
    assert set(store.catalog.objects) == {digest_of(b"stays")}
    assert await store.upkeep.scrub.verify() == {"checked": 1, "bytes": 5, "dropped": []}
