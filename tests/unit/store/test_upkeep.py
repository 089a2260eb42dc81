"""What the store does beside serving, one step at a time: rows, syncs, the directory's lock, checks of what is stored."""

import asyncio
import errno
import os
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import OCI_INDEX, OCI_MANIFEST
from cacheyd.settings.load import load
from cacheyd.settings.settings import Settings
from cacheyd.store.blobs import Partial
from cacheyd.store.lock import DirectoryInUse
from cacheyd.store.shelf import BROKEN_PAUSE
from cacheyd.store.store import Store
from cacheyd.store.upkeep import PARTIAL_AGE, PROBE_EVERY, REOPEN_EVERY, TAG_AGE, TAG_AGE_HELD
from tests.support.stores import (
    LARGE,
    MANIFEST,
    WITHIN,
    Clock,
    StoppableStore,
    add,
    content,
    eventually,
    no_descriptors,
    object_file,
    reopened,
    replace_file,
    rows,
    variant,
)

DAY = 86400.0


@pytest.fixture
def settings() -> Settings:
    return load(environ={}, flags={"scrub_every": "1d", "scrub_rate": "1GiB"})


@pytest.fixture
async def store(
    tmp_path: Path, clock: Clock, monotonic: Clock, settings: Settings, evicted: list[tuple[str, int]]
) -> AsyncIterator[Store]:
    store = StoppableStore(
        tmp_path / "cache",
        settings,
        clock=clock,
        monotonic=monotonic,
        on_evicted=lambda reason, count: evicted.append((reason, count)),
    )
    await store.start(background=False)
    yield store
    await store.stop()


def beside(store: Store) -> StoppableStore:
    """Another process for the same directory."""
    return StoppableStore(store.root, store.settings)


# Rows


async def test_a_row_is_written_only_after_the_bytes_are_on_the_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = await add(store, LARGE)
    store.set_tag("docker.io", "a", "1", variant(1))
    await store.upkeep._flush()
    assert set(rows(store)) == {"t:docker.io/a:1"}

    synced: list[str] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    await store.upkeep._sync()
    await store.upkeep._flush()
    await store.upkeep._sync()

    assert synced == [store.blobs.path(stored.digest)]
    assert rows(store)[f"o:{stored.digest}"]["size"] == len(LARGE)


async def test_with_fsync_the_bytes_are_on_the_disk_before_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StoppableStore(tmp_path / "cache", load(environ={}, flags={"durability": "fsync"}))
    await store.start(background=False)
    digest = digest_of(LARGE)
    synced: list[tuple[str, bool]] = []

    def note(fd: int) -> None:
        synced.append((os.path.basename(os.readlink(f"/proc/self/fd/{fd}")), store.find(digest) is not None))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", note)
        patch.setattr(os, "fsync", note)
        await add(store, LARGE)
    await store.upkeep._flush()

    assert synced == [(digest.replace(":", "-"), False), ("sha256", False)]
    assert set(rows(store)) == {f"o:{digest}"}
    await store.stop()


async def test_what_does_not_get_to_the_disk_is_dropped(
    store: Store, evicted: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await add(store, LARGE)
    await add(store, b"stays")

    def fdatasync(fd: int) -> None:
        if os.fstat(fd).st_size == len(LARGE):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    await store.upkeep.save()

    assert content(store, digest_of(LARGE)) is None
    assert not object_file(store, LARGE).exists()
    assert set(rows(store)) == {f"o:{digest_of(b'stays')}"}
    assert evicted == [("io", 1)]
    assert "did not get to the disk" in caplog.text


async def test_what_was_removed_has_no_row(store: Store) -> None:
    stored = await add(store, LARGE)
    store.set_tag("docker.io", "a", "1", variant(1))
    await store.upkeep.save()
    assert len(rows(store)) == 2

    await store.remove([stored.digest], "test")
    store.delete_tag("docker.io", "a", "1")
    await store.upkeep.save()
    assert rows(store) == {}


async def test_many_rows_are_written_in_batches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheyd.store.upkeep.PAGE", 10)
    for n in range(55):
        store.set_tag("docker.io", "a", str(n), variant(n))
    await store.upkeep._flush()
    assert len(rows(store)) == 55


async def test_an_index_remembers_what_it_lists_before_that_is_there(store: Store) -> None:
    index = (b'{"schemaVersion": 2, "manifests": [{"digest": "%s"}]}') % digest_of(MANIFEST).encode()
    stored = await add(store, index, OCI_INDEX)
    assert stored.needs == ()

    again = await reopened(store)
    await add(again, MANIFEST, OCI_MANIFEST)
    found = again.find(stored.digest)
    assert found is not None
    assert found.needs == (digest_of(MANIFEST),)
    await again.stop()


async def test_rows_reach_the_disk_without_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill costs the last seconds."""
    monkeypatch.setattr("cacheyd.store.upkeep.FLUSH_EVERY", 0.02)
    monkeypatch.setattr("cacheyd.store.upkeep.SYNC_EVERY", 0.04)
    monkeypatch.setattr("cacheyd.store.upkeep.SAVE_USED_EVERY", 0.06)
    store = StoppableStore(tmp_path / "cache")
    await store.start()
    stored = await add(store, LARGE)
    await eventually(lambda: rows(store).get(f"o:{stored.digest}"))
    store.touch(stored.digest, 5)
    await eventually(lambda: rows(store)[f"o:{stored.digest}"]["hits"] == 5)
    await store.stop()


# The index is locked, damaged, gone


async def test_an_index_that_is_locked_at_the_start_is_read_later(
    store: Store, monotonic: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheyd.store.index.WRITE_WAIT", 0.05)
    store.set_tag("docker.io", "a", "1", variant(1))
    store.set_tag("docker.io", "a", "2", variant(1))
    store.set_tag("docker.io", "a", "3", variant(1))
    await add(store, LARGE)
    await add(store, b"gone")
    await store.stop()
    again = beside(store)
    again.monotonic = monotonic
    with closing(sqlite3.connect(store.root / "index" / "cache.db", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        await again.start(background=False)
        assert not again.index_read
        assert content(again, digest_of(LARGE)) == LARGE, "the files are there"
        again.set_tag("docker.io", "a", "2", variant(2))
        again.delete_tag("docker.io", "a", "3")
        await again.remove([digest_of(b"gone")], "test")
        await again.upkeep._flush()
        assert not again.index_read
        connection.execute("ROLLBACK")
    await again.upkeep._flush()
    assert not again.index_read, "not tried again at once"
    monotonic.now += REOPEN_EVERY

    await again.upkeep.save()

    assert again.index_read
    assert again.tag_variants("docker.io", "a", "1") == (variant(1),)
    assert again.tag_variants("docker.io", "a", "2")[0] == variant(2), "newer than its row"
    assert set(rows(again)) == {f"o:{digest_of(LARGE)}", "t:docker.io/a:1", "t:docker.io/a:2"}
    await again.stop()


async def test_what_the_rows_say_is_not_lost_when_they_are_read_later(
    store: Store, monotonic: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheyd.store.index.WRITE_WAIT", 0.05)
    await add(store, LARGE)
    store.touch(digest_of(LARGE), 7)
    await store.stop()
    again = StoppableStore(store.root, clock=store.clock, monotonic=monotonic)
    with closing(sqlite3.connect(store.root / "index" / "cache.db", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        await again.start(background=False)
        connection.execute("ROLLBACK")
    monotonic.now += REOPEN_EVERY
    await again.upkeep.save()

    found = again.find(digest_of(LARGE))
    assert found is not None
    assert (found.within, found.hits) == ((WITHIN,), 7)
    await again.stop()


async def test_an_index_that_is_damaged_while_it_is_open_is_written_anew(store: Store, monotonic: Clock) -> None:
    for n in range(3):
        await add(store, bytes([n]) * 100)
    store.set_tag("docker.io", "a", "1", variant(1))
    await store.upkeep.save()
    expected = rows(store)
    with (store.root / "index" / "cache.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 20)

    for _ in range(3):
        store.set_tag("docker.io", "a", "2", variant(2))
        await store.upkeep.save()
        monotonic.now += REOPEN_EVERY

    assert set(rows(store)) == {*expected, "t:docker.io/a:2"}
    assert all(rows(store)[key] == row for key, row in expected.items())


async def test_an_index_that_was_wiped_is_written_anew(
    store: Store, monotonic: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(store, LARGE)
    await store.upkeep.save()
    expected = rows(store)
    shutil.rmtree(store.root / "index")
    monkeypatch.setattr("cacheyd.store.upkeep.LOOK_EVERY", 0.01)
    looking = asyncio.create_task(store.upkeep._look())
    await eventually(lambda: not store.index.usable)
    looking.cancel()

    await store.upkeep.save()
    assert rows(store) == expected


# One process per directory


async def test_a_second_process_is_told_who_has_the_directory(store: Store) -> None:
    other = beside(store)
    with pytest.raises(DirectoryInUse, match=f"in use by another cacheyd .process {os.getpid()}") as caught:
        await other.start()
    assert caught.value.pid == str(os.getpid())
    await add(store, LARGE)
    await store.stop()
    await other.start(background=False)
    assert content(other, digest_of(LARGE)) == LARGE
    await other.stop()


async def test_the_next_process_waits_for_the_last_one_to_end(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "cacheyd")
    other = beside(store)
    starting = asyncio.create_task(other.start(wait=10))
    await asyncio.sleep(0.3)
    assert not starting.done()
    await store.stop()
    await starting
    assert caplog.text.count("waiting for it to end") == 1
    await other.stop()


async def test_waiting_ends_in_time_or_when_it_is_given_up(store: Store) -> None:
    started = time.monotonic()
    with pytest.raises(DirectoryInUse):
        await beside(store).start(wait=0.25)
    assert 0.25 <= time.monotonic() - started < 3
    with pytest.raises(DirectoryInUse):
        await asyncio.wait_for(beside(store).start(wait=60, give_up=lambda: True), 3)


async def test_a_lock_that_was_wiped_is_taken_again(store: Store) -> None:
    shutil.rmtree(store.root)
    await store.upkeep._keep_lock()

    assert store.lock.is_held()
    assert store.writable
    with pytest.raises(DirectoryInUse):
        await beside(store).start()
    assert (store.root / "lock").read_text() == f"{os.getpid()}\n"


async def test_who_lost_the_directory_to_another_only_serves(
    store: Store, monotonic: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(store.root)
    other = beside(store)
    await other.start(background=False)
    await add(other, LARGE)
    for _ in range(3):
        await store.upkeep._keep_lock()

    assert not store.writable
    assert caplog.text.count("serving without keeping") == 1
    store.set_tag("docker.io", "a", "1", variant(1))
    await store.upkeep.save()
    assert await store.room.keep() == 0
    await other.upkeep.save()
    assert set(rows(other)) == {f"o:{digest_of(LARGE)}"}
    assert await store.recover(digest_of(LARGE)) is not None, "what is there is served"

    await other.stop()
    await store.upkeep._keep_lock()
    assert store.writable


async def test_rows_are_written_again_when_the_directory_came_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process made an index of its own there meanwhile."""
    shutil.rmtree(store.root)
    other = beside(store)
    await other.start(background=False)
    await store.upkeep._keep_lock()
    await other.stop()
    monkeypatch.setattr("cacheyd.store.upkeep.LOOK_EVERY", 0.01)
    looking = asyncio.create_task(store.upkeep._look())
    await eventually(lambda: not store.ousted and not store.index.usable)
    looking.cancel()

    await add(store, LARGE)
    await store.upkeep.save()
    assert set(rows(store)) == {f"o:{digest_of(LARGE)}"}


# Looking through everything


async def test_tags_without_objects_are_forgotten_after_a_while(store: Store, clock: Clock) -> None:
    stored = await add(store, MANIFEST, OCI_MANIFEST)
    store.set_tag("docker.io", "a", "kept", replace(variant(1), digest=stored.digest))
    store.set_tag("docker.io", "a", "old", variant(1))
    clock.now += TAG_AGE - 1
    store.set_tag("docker.io", "a", "new", variant(1, at=clock.now))
    assert (await store.upkeep.reconcile())["tags"] == 0
    clock.now += 1

    assert (await store.upkeep.reconcile())["tags"] == 1
    assert set(store.catalog.tags) == {"docker.io/a:kept", "docker.io/a:new"}
    clock.now -= 10 * DAY
    assert (await store.upkeep.reconcile())["tags"] == 1, "of the future"


async def test_with_min_age_they_are_known_for_longer(store: Store, clock: Clock) -> None:
    """What a tag was before is what clients get while the next one is too young."""
    store.settings = load(environ={}, flags={"min_ages": "docker.io/a=1d"})
    store.set_tag("docker.io", "a", "old", variant(1))
    clock.now += TAG_AGE_HELD - 1
    assert (await store.upkeep.reconcile())["tags"] == 0
    clock.now += 1
    assert (await store.upkeep.reconcile())["tags"] == 1


async def test_partial_files_are_swept_after_a_day_but_never_one_under_way(store: Store) -> None:
    under_way = await store.open_partial(digest_of(b"under way"))
    await store.append(under_way, [b"x"])
    paths = []
    for n in range(2):
        partial = await store.open_partial(digest_of(bytes([n])))
        await store.append(partial, [b"x" * 100])
        store.release(partial)
        paths.append(partial.path)
    for path in (under_way.path, paths[0]):
        os.utime(path, (time.time() - PARTIAL_AGE - 60,) * 2)

    assert (await store.upkeep.reconcile())["partials"] == 1

    assert sorted((store.root / "partial").iterdir()) == sorted([under_way.path, paths[1]])
    assert store.partial_bytes == 101
    store.release(under_way)


async def test_what_is_fetched_during_a_look_through_is_counted_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = await store.open_partial(digest_of(LARGE))
    await store.append(partial, [b"x" * 100])
    store.release(partial)
    await store.upkeep.reconcile()
    assert store.partial_bytes == 100

    opened: list[Partial] = []
    sweep = store.blobs.sweep_partials

    def sweep_slowly(older_than: float) -> tuple[int, dict[str, int]]:
        found = sweep(older_than)
        opened.append(asyncio.run_coroutine_threadsafe(store.open_partial(digest_of(LARGE)), loop).result(5))
        return found

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(store.blobs, "sweep_partials", sweep_slowly)
    await store.upkeep.reconcile()

    assert store.partial_bytes == 100
    assert not store.idle
    store.release(opened[0])


async def test_collecting_does_all_of_it_now(store: Store, clock: Clock) -> None:
    for n in range(5):
        await add(store, bytes([n]) * 1000)
    lost, wrong, new = bytes([0]) * 1000, bytes([1]) * 1000, b"new"
    object_file(store, lost).unlink()
    replace_file(store, wrong, b"wrong")
    replace_file(store, new, new)
    store.set_tag("docker.io", "a", "1", variant(1, at=clock.now - 2 * TAG_AGE))
    store.settings = load(environ={}, flags={"max_size": "2500", "min_free": "0"})

    counts = await store.collect()

    assert {name: counts[name] for name in ("adopted", "tags", "objects", "evicted")} == {
        "adopted": 1,
        "tags": 1,
        "objects": 3,
        "evicted": 1,
    }
    assert counts["lost"] == 2
    assert store.size == 2003
    assert counts["freed"] == 5000 - 2003
    assert set(rows(store)) == {f"o:{digest}" for digest in store.catalog.objects}


# Checking what is stored


async def scrubbed(store: Store) -> int:
    """A pass of the scrub; how many bytes it read."""
    before = store.upkeep.scrubbed
    await store.upkeep._scrub_pass()
    return store.upkeep.scrubbed - before


async def damaged(store: Store, data: bytes) -> None:
    """An object whose bytes changed on the disk, and nothing else of its file."""
    await add(store, data)
    path = object_file(store, data)
    status = path.stat()
    path.write_bytes(data[:-1] + b"!")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert store.find(digest_of(data)) is not None


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
    store.settings = load(environ={}, flags=flags)
    await add(store, LARGE)
    for _ in range(3):
        assert await scrubbed(store) == 0
        clock.now += 10 * DAY


async def test_it_reads_no_faster_than_it_may(store: Store, clock: Clock) -> None:
    store.settings = load(environ={}, flags={"scrub_every": "1d", "scrub_rate": "1MiB"})
    await add(store, LARGE)
    await scrubbed(store)
    clock.now += DAY
    started = time.monotonic()
    assert await scrubbed(store) == len(LARGE)
    assert time.monotonic() - started >= len(LARGE) / (1 << 20)


async def test_where_it_stands_outlives_the_process(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheyd.store.upkeep.SAVE_USED_EVERY", 0.0)
    digests = sorted([(await add(store, bytes([n]) * 100)).digest for n in range(5)])
    await scrubbed(store)
    clock.now += DAY
    check, third = store.upkeep.check, asyncio.Event()

    async def check_two(*args: Any) -> bool:
        if args[0].digest == digests[2]:
            third.set()
            await asyncio.sleep(60)
        return await check(*args)

    monkeypatch.setattr(store.upkeep, "check", check_two)
    passing = asyncio.create_task(store.upkeep._scrub_pass())
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

    assert store.find(digest_of(LARGE)) is None
    assert not object_file(store, LARGE).exists()
    assert store.upkeep.dropped == 1
    assert store.size == 5
    assert "does not hold what its name says" in caplog.text


async def test_what_cannot_be_read_is_dropped(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = await add(store, LARGE)

    def pread(fd: int, size: int, offset: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", pread)
    assert not await store.upkeep.check(stored, 1 << 30)
    assert not object_file(store, LARGE).exists()
    assert store.upkeep.dropped == 1


@pytest.mark.parametrize("rate", [0, 1 << 30])
async def test_what_cannot_be_opened_for_want_of_descriptors_stays(store: Store, rate: int) -> None:
    stored = await add(store, LARGE)
    with no_descriptors():
        assert await store.upkeep.check(stored, rate)
    assert content(store, stored.digest) == LARGE
    assert store.upkeep.dropped == 0


@pytest.mark.parametrize("rate", [0, 1 << 30])
async def test_a_wiped_file_is_no_error(store: Store, rate: int, caplog: pytest.LogCaptureFixture) -> None:
    stored = await add(store, LARGE)
    object_file(store, LARGE).unlink()

    assert await store.upkeep.check(stored, rate)
    assert store.upkeep.dropped == 0
    assert store.size == 0
    assert not caplog.records


async def test_verifying_reads_everything_now(store: Store) -> None:
    await damaged(store, LARGE)
    await add(store, b"stays")
    await add(store, b"wiped")
    object_file(store, b"wiped").unlink()
    seen: list[tuple[int, int, int]] = []

    found = await store.verify(lambda *progress: seen.append(progress))

    assert found == {"checked": 3, "bytes": len(LARGE) + 10, "dropped": [digest_of(LARGE)]}
    assert [(done, total) for done, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[-1][2] == len(LARGE) + 10
    assert set(store.catalog.objects) == {digest_of(b"stays")}
    assert await store.verify() == {"checked": 1, "bytes": 5, "dropped": []}


# A disk that refuses writes


class Disk:
    """What a probe meets."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: OSError | None = None
        self.probes = 0
        monkeypatch.setattr(store.blobs, "probe", self.probe)

    def probe(self) -> None:
        self.probes += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
async def watched(
    tmp_path: Path, monotonic: Clock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[StoppableStore, Disk]]:
    """A store whose background work looks very often."""
    monkeypatch.setattr("cacheyd.store.upkeep.LOOK_EVERY", 0.005)
    store = StoppableStore(tmp_path / "watched", monotonic=monotonic)
    disk = Disk(store, monkeypatch)
    await store.start()
    yield store, disk
    await store.stop()


async def test_a_disk_that_turns_read_only_is_noticed_without_traffic(
    watched: tuple[StoppableStore, Disk], monotonic: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store, disk = watched
    assert disk.probes == 1, "at the start"
    disk.error = OSError(errno.EROFS, "Read-only file system")
    await asyncio.sleep(0.05)
    assert store.takes_writes, "it is not tried all the time"

    monotonic.now += PROBE_EVERY
    await eventually(lambda: not store.takes_writes)
    assert store.trouble == "the disk refuses writes (EROFS: Read-only file system)"
    assert not store.writable
    for _ in range(5):
        monotonic.now += BROKEN_PAUSE - 1
        probes = disk.probes
        await eventually(lambda: disk.probes > probes)  # noqa: B023
        assert not store.writable, "the pause begins anew before it ends"
    assert caplog.text.count("cannot be written") == 1
    assert store.write_errors == 0, "those are of what was to be kept"

    disk.error = None
    monotonic.now += BROKEN_PAUSE - 1
    await eventually(lambda: store.takes_writes)
    assert (store.trouble, store.writable) == ("", True)


async def test_a_probe_that_has_no_descriptor_says_nothing_of_the_disk(
    watched: tuple[StoppableStore, Disk], monotonic: Clock
) -> None:
    store, disk = watched
    disk.error = OSError(errno.EMFILE, "Too many open files")
    monotonic.now += PROBE_EVERY
    await eventually(lambda: disk.probes > 1)
    await asyncio.sleep(0.02)
    assert store.takes_writes


async def test_what_is_stored_in_the_pause_ends_it(store: Store) -> None:
    store.report_write_error(OSError(errno.ENOSPC, "No space left on device"))
    assert not store.takes_writes
    await add(store, LARGE)
    assert store.takes_writes


@pytest.mark.parametrize("wiped", ["", "partial", "blobs"])
def test_a_probe_leaves_nothing_behind(store: Store, wiped: str) -> None:
    shutil.rmtree(store.root / wiped)
    store.blobs.probe()
    store.blobs.probe()
    assert list((store.root / "partial").iterdir()) == []
    assert list((store.root / "blobs").glob("*/*")) == []
