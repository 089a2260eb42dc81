"""One process has the directory, and knows whether the disk takes writes."""

import asyncio
import errno
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cacheyd.protocol.digest import digest_of
from cacheyd.store.health import BROKEN_PAUSE
from cacheyd.store.lock import DirectoryInUse
from cacheyd.store.store import Store
from cacheyd.store.watch import PROBE_EVERY
from tests.support.stores import (
    LARGE,
    Clock,
    StoppableStore,
    add,
    beside,
    content,
    eventually,
    rows,
    variant,
)

DAY = 86400.0


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
    await store.upkeep.watch.keep_lock()

    assert store.upkeep.watch.lock.is_held()
    assert store.health.writable
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
        await store.upkeep.watch.keep_lock()

    assert not store.health.writable
    assert caplog.text.count("serving without keeping") == 1
    store.tags.set("docker.io", "a", "1", variant(1))
    await store.upkeep.journal.save()
    assert await store.bounds.keep() == 0
    await other.upkeep.journal.save()
    assert set(rows(other)) == {f"o:{digest_of(LARGE)}"}
    assert await store.objects.recover(digest_of(LARGE)) is not None, "what is there is served"

    await other.stop()
    await store.upkeep.watch.keep_lock()
    assert store.health.writable


async def test_rows_are_written_again_when_the_directory_came_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process made an index of its own there meanwhile."""
    shutil.rmtree(store.root)
    other = beside(store)
    await other.start(background=False)
    await store.upkeep.watch.keep_lock()
    await other.stop()
    monkeypatch.setattr("cacheyd.store.watch.LOOK_EVERY", 0.01)
    looking = asyncio.create_task(store.upkeep.watch.run())
    await eventually(lambda: not store.health.lost_directory and not store.upkeep.index.usable)
    looking.cancel()

    await add(store, LARGE)
    await store.upkeep.journal.save()
    assert set(rows(store)) == {f"o:{digest_of(LARGE)}"}


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
    monkeypatch.setattr("cacheyd.store.watch.LOOK_EVERY", 0.005)
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
    assert store.health.takes_writes, "it is not tried all the time"

    monotonic.now += PROBE_EVERY
    await eventually(lambda: not store.health.takes_writes)
    assert store.trouble == "the disk refuses writes (EROFS: Read-only file system)"
    assert not store.health.writable
    for _ in range(5):
        monotonic.now += BROKEN_PAUSE - 1
        probes = disk.probes
        await eventually(lambda: disk.probes > probes)  # noqa: B023
        assert not store.health.writable, "the pause begins anew before it ends"
    assert caplog.text.count("cannot be written") == 1
    assert store.health.write_errors == 0, "those are of what was to be kept"

    disk.error = None
    monotonic.now += BROKEN_PAUSE - 1
    await eventually(lambda: store.health.takes_writes)
    assert (store.trouble, store.health.writable) == ("", True)


async def test_a_probe_that_has_no_descriptor_says_nothing_of_the_disk(
    watched: tuple[StoppableStore, Disk], monotonic: Clock
) -> None:
    store, disk = watched
    disk.error = OSError(errno.EMFILE, "Too many open files")
    monotonic.now += PROBE_EVERY
    await eventually(lambda: disk.probes > 1)
    await asyncio.sleep(0.02)
    assert store.health.takes_writes


async def test_what_is_stored_in_the_pause_ends_it(store: Store) -> None:
    store.health.report_write_error(OSError(errno.ENOSPC, "No space left on device"))
    assert not store.health.takes_writes
    await add(store, LARGE)
    assert store.health.takes_writes


@pytest.mark.parametrize("wiped", ["", "partial", "blobs"])
def test_a_probe_leaves_nothing_behind(store: Store, wiped: str) -> None:
    shutil.rmtree(store.root / wiped)
    store.blobs.probe()
    store.blobs.probe()
    assert list((store.root / "partial").iterdir()) == []
    assert list((store.root / "blobs").glob("*/*")) == []
