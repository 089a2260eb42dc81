"""The bounds of the store: what goes when there is too much, and what happens when nothing may go."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import OCI_INDEX, OCI_MANIFEST
from cacheyd.protocol.reference import Kind
from cacheyd.settings.load import load
from cacheyd.store.fullness import FULL_PAUSE
from cacheyd.store.mapped import Mapped
from cacheyd.store.partial import Partial
from cacheyd.store.records import Stored
from cacheyd.store.space import RESERVE
from cacheyd.store.store import Store
from tests.support.stores import Clock, Evictions, StoppableStore, add, content, eventually, object_file, variant

DAY = 86400.0


@pytest.fixture
async def store(tmp_path: Path, clock: Clock, monotonic: Clock, evicted: list[tuple[str, int]]) -> AsyncIterator[Store]:
    """A cache of 1 MB."""
    store = StoppableStore(
        tmp_path / "cache",
        clock=clock,
        monotonic=monotonic,
        events=Evictions(evicted),
    )
    configure(store, max_size="1MB", pin="docker.io/library/*:1.*")
    await store.start(background=False)
    yield store
    await store.stop()


def configure(store: Store, **flags: str) -> None:
    store.live.change(load(environ={}, flags={"min_free": "0"} | flags))


def blob(n: int) -> bytes:
    return bytes([n]) * 200_000


async def fill(store: Store, clock: Clock, numbers: range) -> None:
    for n in numbers:
        clock.now += 1
        await add(store, blob(n))


def left(store: Store) -> list[int]:
    found = [n for n in range(20) if object_file(store, blob(n)).exists()]
    assert [n for n in range(20) if store.objects.find(digest_of(blob(n)))] == found
    return found


class Disk:
    """A file system of 100 MB, with so much on it that is not the store's."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch, others: int = 0) -> None:
        self.store, self.others = store, others
        monkeypatch.setattr(store.blobs, "total", lambda: 100_000_000)
        monkeypatch.setattr(store.blobs, "free", self.free)

    def free(self) -> int:
        files = (path for path in self.store.root.rglob("*") if path.is_file() and path.parent.name != "index")
        return max(0, 100_000_000 - self.others - sum(path.stat().st_size for path in files))


# max_size


async def test_the_least_recently_used_go_down_to_the_low_watermark(
    store: Store, clock: Clock, evicted: list[tuple[str, int]]
) -> None:
    await fill(store, clock, range(5))
    assert await store.bounds.keep() == 0, "full is not too full"
    store.objects.touch(digest_of(blob(0)))
    await fill(store, clock, range(5, 6))

    assert await store.bounds.keep() == 2
    assert left(store) == [0, 3, 4, 5]
    assert (store.size, store.counts[Kind.BLOB]) == (800_000, 4)
    assert evicted == [("size", 2)]


@pytest.mark.parametrize(("mark", "expected"), [("100%", 5), ("80%", 4), ("50%", 2)])
async def test_how_low_the_low_watermark_is(store: Store, clock: Clock, mark: str, expected: int) -> None:
    configure(store, max_size="1MB", low_watermark=mark)
    await fill(store, clock, range(6))
    await store.bounds.keep()
    assert len(left(store)) == expected


async def test_the_low_watermark_is_reached_however_many_objects_have_to_go(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheyd.store.eviction.BATCH", 1)
    configure(store, max_size="1MB", low_watermark="50%")
    await fill(store, clock, range(6))
    await store.bounds.keep()
    assert left(store) == [4, 5]


async def test_who_waits_for_room_does_not_wait_for_the_low_watermark(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheyd.store.eviction.BATCH", 1)
    configure(store, max_size="1MB", low_watermark="50%")
    await fill(store, clock, range(5))
    assert await store.bounds.make(200_000)
    assert left(store) == [1, 2, 3, 4]

    await fill(store, clock, range(5, 6))
    await store.bounds.keep()
    assert left(store) == [4, 5]


async def test_room_is_made_for_what_comes(store: Store, clock: Clock, evicted: list[tuple[str, int]]) -> None:
    await fill(store, clock, range(5))
    assert await store.bounds.make(100_000)
    assert left(store) == [1, 2, 3, 4]
    assert evicted == [("room", 1)]
    assert await store.bounds.make(1_000_000)
    assert left(store) == []


async def test_an_object_larger_than_the_whole_cache_has_no_room_and_nothing_goes(store: Store, clock: Clock) -> None:
    await fill(store, clock, range(5))
    assert not await store.bounds.make(1_000_001)
    assert len(left(store)) == 5
    assert not store.bounds.full


async def test_what_has_come_counts_and_what_is_promised_does_not(store: Store, clock: Clock) -> None:
    await fill(store, clock, range(4))
    partial = await store.partials.open(digest_of(blob(9)))
    assert await store.bounds.make(200_000)
    assert len(left(store)) == 4
    await store.partials.append(partial, [blob(9)[:150_000]])
    assert await store.bounds.make(50_000)
    assert len(left(store)) == 4
    assert await store.bounds.make(50_001)
    assert len(left(store)) == 3
    store.partials.release(partial)


async def test_what_is_pinned_or_on_its_way_stays(store: Store, clock: Clock) -> None:
    manifest = json.dumps({"schemaVersion": 2, "config": {}, "layers": [{"digest": digest_of(blob(0))}]}).encode()
    index = json.dumps({"schemaVersion": 2, "manifests": [{"digest": digest_of(manifest)}]}).encode()
    for data, media_type in ((index, OCI_INDEX), (manifest, OCI_MANIFEST)):
        await add(store, data, media_type)
    store.tags.set("docker.io", "library/nginx", "1.27", replace(variant(1), digest=digest_of(index)))
    store.partials.reservations.expect(digest_of(blob(1)))
    await fill(store, clock, range(7))

    await store.bounds.keep()
    assert left(store)[:2] == [0, 1]
    assert store.size <= 900_000
    assert content(store, digest_of(manifest)) == manifest


async def test_eviction_breaks_no_reader(store: Store, clock: Clock) -> None:
    await fill(store, clock, range(1))
    body = store.objects.body(store.catalog.objects[digest_of(blob(0))])
    assert isinstance(body, Mapped)
    await fill(store, clock, range(1, 6))
    await store.bounds.keep()
    assert left(store)[0] == 0, "what is read now goes last"
    configure(store, max_size="100kB")
    await store.bounds.keep()

    assert left(store) == []
    assert bytes(body.view(0, body.size)) == blob(0)


async def test_bounds_are_kept_without_being_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheyd.store.bounds.EVICT_EVERY", 0.01)
    store = StoppableStore(tmp_path / "cache", load(environ={}, flags={"max_size": "1MB", "min_free": "0"}))
    await store.start()
    for n in range(6):
        await add(store, blob(n))
    await eventually(lambda: store.size <= 900_000)
    await store.stop()


# Partial files


async def leave_partial(store: Store, n: int, size: int) -> Path:
    partial = await store.partials.open(digest_of(blob(n)))
    await store.partials.append(partial, [blob(n)[:size]])
    store.partials.release(partial)
    return partial.path


async def test_partial_files_count_and_go_first(store: Store, clock: Clock) -> None:
    path = await leave_partial(store, 10, 100_000)
    assert store.partials.size == 100_000
    await fill(store, clock, range(5))

    assert await store.bounds.keep() == 1
    assert not path.exists()
    assert store.partials.size == 0
    assert len(left(store)) == 5


async def test_a_partial_file_that_a_fetch_has_does_not_go(store: Store, clock: Clock) -> None:
    await leave_partial(store, 10, 100_000)
    partial = await store.partials.open(digest_of(blob(10)))
    await fill(store, clock, range(5))
    await store.bounds.keep()
    assert partial.is_linked()
    assert store.partials.size == 100_000
    assert store.size == 1_000_000, "what is not verified displaces no fifth of the store"
    store.partials.release(partial)


async def test_a_partial_file_is_counted_as_long_as_it_is_there(store: Store) -> None:
    path = await leave_partial(store, 1, 100)
    partial = await store.partials.open(digest_of(blob(1)))
    assert (partial.path, store.partials.size) == (path, 100)
    await store.partials.append(partial, [blob(1)[100:]])
    assert store.partials.size == 200_000
    await store.commit(partial, within="a/b")
    store.partials.release(partial)
    assert store.partials.size == 0

    empty = await store.partials.open(digest_of(b"empty"))
    store.partials.release(empty)
    wrong = await store.partials.open(digest_of(b"wrong"))
    await store.partials.append(wrong, [b"x"])
    await store.partials.discard(wrong)
    assert store.partials.size == 0
    assert not list((store.root / "partial").iterdir())


# What is not verified yet


def piece(n: int, size: int = 10_000) -> bytes:
    return n.to_bytes(4) * (size // 4)


async def fill_with_pieces(store: Store, clock: Clock, numbers: range) -> None:
    for n in numbers:
        clock.now += 1
        await add(store, piece(n))


def pieces(store: Store) -> int:
    assert store.size == 10_000 * len(store.catalog.objects)
    return len(store.catalog.objects)


async def pour(store: Store, n: int, most: int, step: int = 5_000) -> Partial:
    """Bytes of nobody knows what, until there is no room for them."""
    partial = await store.partials.open(digest_of(b"never %d" % n), "evil.test")
    while partial.size < most and await store.bounds.make(step, unverified=True):
        await store.partials.append(partial, [bytes(step)])
        await store.bounds.keep()
    return partial


async def test_a_promise_evicts_nothing(store: Store, clock: Clock) -> None:
    """A head with `Content-Length: 990000`, and no body."""
    await fill_with_pieces(store, clock, range(100))
    assert not store.bounds.can_take(990_000)
    assert store.bounds.can_take(100_000)
    assert pieces(store) == 100


async def test_bytes_without_an_end_evict_a_tenth(store: Store, clock: Clock) -> None:
    await fill_with_pieces(store, clock, range(100))
    partial = await pour(store, 0, 10_000_000)
    assert partial.size == 100_000
    assert pieces(store) == 90
    assert not store.bounds.full
    assert [store.objects.find(digest_of(piece(n))) is not None for n in (9, 10)] == [False, True], (
        "those not used for longest"
    )
    store.partials.release(partial)


@pytest.mark.parametrize("keep", [True, False], ids=["idle", "discarded"])
async def test_the_next_flood_evicts_no_other_tenth(store: Store, clock: Clock, keep: bool) -> None:
    await fill_with_pieces(store, clock, range(100))
    for n in range(5):
        partial = await pour(store, n, 10_000_000)
        assert partial.size == 100_000
        store.partials.release(partial, keep=keep)
    assert pieces(store) == 90


async def test_many_floods_at_once_evict_a_tenth_together(store: Store, clock: Clock) -> None:
    await fill_with_pieces(store, clock, range(100))
    partials = await asyncio.gather(*(pour(store, n, 50_000) for n in range(20)))
    assert sum(partial.size for partial in partials) <= 100_000 + 20 * 5_000, "a piece each too many"
    assert pieces(store) >= 90
    for partial in partials:
        store.partials.release(partial, keep=False)
    await pour(store, 99, 10_000_000)
    assert pieces(store) == 90


async def test_a_full_store_goes_on_taking_what_is_verified_in_the_end(store: Store, clock: Clock) -> None:
    await fill_with_pieces(store, clock, range(100))
    for n in range(100, 400):
        clock.now += 1
        assert store.bounds.can_take(10_000)
        partial = await store.partials.open(digest_of(piece(n)))
        for _ in range(2):
            assert await store.bounds.make(5_000, unverified=True)
            await store.partials.append(partial, [piece(n)[:5_000]])
        await store.commit(partial, within="a/b")
        store.partials.release(partial)
    assert [store.objects.find(digest_of(piece(n))) is not None for n in (250, 399)] == [False, True]
    assert 90 <= pieces(store) <= 100


async def test_what_is_larger_than_a_tenth_needs_room_that_is_there(store: Store, clock: Clock) -> None:
    await fill_with_pieces(store, clock, range(50))
    assert store.bounds.can_take(500_000)
    assert not store.bounds.can_take(500_001), "nothing has to go as long as half of it is empty"
    await fill_with_pieces(store, clock, range(50, 98))
    assert store.bounds.can_take(100_000)
    assert not store.bounds.can_take(100_001)
    assert await store.bounds.make(200_000), "for what is verified"
    assert pieces(store) <= 80
    assert store.bounds.can_take(200_000)


async def test_of_an_image_that_is_larger_than_what_may_go_a_part_goes(store: Store, clock: Clock) -> None:
    needs = [{"digest": digest_of(piece(n))} for n in range(40)]
    manifest = json.dumps({"schemaVersion": 2, "config": {}, "layers": needs}).encode()
    await add(store, manifest, OCI_MANIFEST)
    await fill_with_pieces(store, clock, range(98))
    for _ in range(3):
        partial = await pour(store, 1, 60_000)
        assert partial.size == 60_000
        await store.partials.discard(partial)
    assert store.objects.find(digest_of(manifest)) is not None
    assert len(store.catalog.objects) >= 91


async def test_on_a_disk_without_max_size_a_tenth_of_what_could_be_stored_counts(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(store, max_size="", min_free="0")
    monkeypatch.setattr("cacheyd.store.space.RESERVE", 0)
    await fill_with_pieces(store, clock, range(100))
    disk = Disk(store, monkeypatch)
    disk.others = disk.free()
    assert store.bounds.space.capacity() == 1_000_000
    assert not store.bounds.can_take(100_001)
    partial = await pour(store, 0, 10_000_000)
    assert partial.size == 100_000
    assert pieces(store) == 90
    store.partials.release(partial)


async def test_nothing_goes_for_what_is_not_verified_before_it_is_known_what_there_is(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill_with_pieces(store, clock, range(100))
    monkeypatch.setattr(store.upkeep.loading.unread, "loaded", False)
    assert not store.bounds.can_take(1)
    assert not await store.bounds.make(1, unverified=True)
    assert not store.bounds.full


async def test_what_others_filled_the_disk_with_and_took_away_again_costs_nothing(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The aim of a time when there was no room is none any more."""
    configure(store, max_size="", min_free="0")
    monkeypatch.setattr("cacheyd.store.space.RESERVE", 1_000_000)
    await fill(store, clock, range(5))
    disk = Disk(store, monkeypatch)
    disk.others = 100_000_000
    await store.bounds.keep()
    assert store.bounds.full
    assert left(store) == []
    await store.bounds.keep()
    disk.others = 0
    await fill(store, clock, range(10, 15))
    for _ in range(3):
        await store.bounds.keep()
    assert left(store) == list(range(10, 15))
    assert not store.bounds.full


# max_age


async def test_what_nobody_used_for_long_goes(store: Store, clock: Clock, evicted: list[tuple[str, int]]) -> None:
    configure(store, max_age="30d")
    await fill(store, clock, range(3))
    clock.now += 30 * DAY - 2
    store.objects.touch(digest_of(blob(0)))
    assert await store.bounds.keep() == 0
    clock.now += 3

    assert await store.bounds.keep() == 2
    assert left(store) == [0]
    assert evicted == [("age", 2)]


async def test_pinned_images_have_no_age(store: Store, clock: Clock) -> None:
    configure(store, max_age="30d", pin="docker.io/library/*:1.*")
    manifest = b'{"schemaVersion": 2, "config": {}, "layers": []}'
    await add(store, manifest, OCI_MANIFEST)
    store.tags.set("docker.io", "library/nginx", "1.27", replace(variant(1), digest=digest_of(manifest)))
    clock.now += 300 * DAY
    assert await store.bounds.keep() == 0
    assert content(store, digest_of(manifest)) == manifest


# min_free


async def test_so_much_stays_free(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(store, min_free="20MB")
    disk = Disk(store, monkeypatch)
    await fill(store, clock, range(20))
    assert await store.bounds.keep() == 0
    disk.others = 76_500_000
    await store.bounds.keep()
    assert disk.free() >= 22_000_000
    assert left(store) == list(range(13, 20)), "and no more than has to go"


async def test_a_little_always_stays_free(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(store)
    disk = Disk(store, monkeypatch)
    assert await store.bounds.make(disk.free() - RESERVE)
    assert not await store.bounds.make(disk.free() - RESERVE + 1)


async def test_a_disk_that_others_filled_costs_one_line(
    store: Store, clock: Clock, monotonic: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    configure(store, min_free="50MB")
    disk = Disk(store, monkeypatch, others=99_000_000)
    caplog.set_level(logging.INFO, "cacheyd")
    for _ in range(20):
        assert not await store.bounds.make(1000)
        await store.bounds.keep()
        monotonic.now += FULL_PAUSE
    assert store.bounds.full
    assert len(caplog.records) == 1
    assert "no more objects can be evicted" in caplog.text

    disk.others = 0
    assert await store.bounds.make(1000)
    assert not store.bounds.full
    assert "has room again" in caplog.text


async def test_a_disk_that_others_filled_gets_the_room_of_the_cache_and_that_is_said_once(
    store: Store, clock: Clock, monotonic: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    configure(store, min_free="50MB")
    await fill(store, clock, range(5))
    Disk(store, monkeypatch, others=99_000_000)
    for _ in range(10):
        await store.bounds.keep()
        assert not await store.bounds.make(1000)
        monotonic.now += FULL_PAUSE
    assert left(store) == []
    assert caplog.text.count("is full") == 1


async def test_what_cannot_go_is_not_tried_all_the_time(
    store: Store, clock: Clock, monotonic: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(store, clock, range(5))
    for n in range(5):
        store.partials.reservations.expect(digest_of(blob(n)))
    tried: list[int] = []
    take = store.catalog.take_oldest

    def counted(size: int, limit: int, in_use: Callable[[str], bool], *, most: int | None = None) -> list[Stored]:
        tried.append(size)
        return take(size, limit, in_use, most=most)

    monkeypatch.setattr(store.catalog, "take_oldest", counted)
    assert not await store.bounds.make(100_000)
    often = len(tried)
    for _ in range(20):
        assert not await store.bounds.make(100_000)
    assert len(tried) == often
    monotonic.now += FULL_PAUSE
    for n in range(5):
        store.partials.reservations.expect_no_more(digest_of(blob(n)))
    assert await store.bounds.make(100_000)


async def test_many_who_need_room_at_once_evict_once(store: Store, clock: Clock) -> None:
    await fill(store, clock, range(5))
    assert await asyncio.gather(*(store.bounds.make(50_000) for _ in range(20))) == [True] * 20
    assert len(left(store)) == 4


async def test_the_room_of_a_file_that_somebody_has_open_is_waited_for(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(store, min_free="50MB")
    await fill(store, clock, range(5))
    disk = Disk(store, monkeypatch, others=49_300_000)
    remove = store.blobs.remove

    def remove_open_file(digest: str, known: tuple[int, int] | None = None) -> None:
        remove(digest, known)
        disk.others += len(blob(0))

    monkeypatch.setattr(store.blobs, "remove", remove_open_file)
    asyncio.get_running_loop().call_later(0.12, lambda: setattr(disk, "others", 49_300_000))
    assert await store.bounds.make(len(blob(0)))
    assert not store.bounds.full
