"""Rows are written when the bytes are on the disk, whatever happens to the index."""

import asyncio
import errno
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import OCI_INDEX, OCI_MANIFEST
from cacheyd.settings.load import load
from cacheyd.store.journal import REOPEN_EVERY
from cacheyd.store.store import Store
from tests.support.stores import (
    LARGE,
    MANIFEST,
    WITHIN,
    Clock,
    StoppableStore,
    add,
    beside,
    content,
    eventually,
    object_file,
    reopened,
    rows,
    variant,
)

DAY = 86400.0


# Rows


async def test_a_row_is_written_only_after_the_bytes_are_on_the_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = await add(store, LARGE)
    store.tags.set("docker.io", "a", "1", variant(1))
    await store.upkeep.journal.flush()
    assert set(rows(store)) == {"t:docker.io/a:1"}

    synced: list[str] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    await store.objects.sync()
    await store.upkeep.journal.flush()
    await store.objects.sync()

    assert synced == [store.blobs.path(stored.digest)]
    assert rows(store)[f"o:{stored.digest}"]["size"] == len(LARGE)


async def test_with_fsync_the_bytes_are_on_the_disk_before_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StoppableStore(tmp_path / "cache", load(environ={}, flags={"durability": "fsync"}))
    await store.start(background=False)
    digest = digest_of(LARGE)
    synced: list[tuple[str, bool]] = []

    def note(fd: int) -> None:
        synced.append((os.path.basename(os.readlink(f"/proc/self/fd/{fd}")), store.objects.find(digest) is not None))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", note)
        patch.setattr(os, "fsync", note)
        await add(store, LARGE)
    await store.upkeep.journal.flush()

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
    await store.upkeep.journal.save()

    assert content(store, digest_of(LARGE)) is None
    assert not object_file(store, LARGE).exists()
    assert set(rows(store)) == {f"o:{digest_of(b'stays')}"}
    assert evicted == [("io", 1)]
    assert "did not get to the disk" in caplog.text


async def test_what_was_removed_has_no_row(store: Store) -> None:
    stored = await add(store, LARGE)
    store.tags.set("docker.io", "a", "1", variant(1))
    await store.upkeep.journal.save()
    assert len(rows(store)) == 2

    await store.objects.remove([stored.digest], "test")
    store.tags.delete("docker.io", "a", "1")
    await store.upkeep.journal.save()
    assert rows(store) == {}


async def test_many_rows_are_written_in_batches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheyd.store.journal.PAGE", 10)
    for n in range(55):
        store.tags.set("docker.io", "a", str(n), variant(n))
    await store.upkeep.journal.flush()
    assert len(rows(store)) == 55


async def test_an_index_remembers_what_it_lists_before_that_is_there(store: Store) -> None:
    index = (b'{"schemaVersion": 2, "manifests": [{"digest": "%s"}]}') % digest_of(MANIFEST).encode()
    stored = await add(store, index, OCI_INDEX)
    assert stored.needs == ()

    again = await reopened(store)
    await add(again, MANIFEST, OCI_MANIFEST)
    found = again.objects.find(stored.digest)
    assert found is not None
    assert found.needs == (digest_of(MANIFEST),)
    await again.stop()


async def test_rows_reach_the_disk_without_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill costs the last seconds."""
    monkeypatch.setattr("cacheyd.store.journal.FLUSH_EVERY", 0.02)
    monkeypatch.setattr("cacheyd.store.journal.SYNC_EVERY", 0.04)
    monkeypatch.setattr("cacheyd.store.journal.SAVE_USED_EVERY", 0.06)
    store = StoppableStore(tmp_path / "cache")
    await store.start()
    stored = await add(store, LARGE)
    await eventually(lambda: rows(store).get(f"o:{stored.digest}"))
    store.objects.touch(stored.digest, 5)
    await eventually(lambda: rows(store)[f"o:{stored.digest}"]["hits"] == 5)
    await store.stop()


# The index is locked, damaged, gone


async def test_an_index_that_is_locked_at_the_start_is_read_later(
    store: Store, monotonic: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheyd.store.index.WRITE_WAIT", 0.05)
    store.tags.set("docker.io", "a", "1", variant(1))
    store.tags.set("docker.io", "a", "2", variant(1))
    store.tags.set("docker.io", "a", "3", variant(1))
    await add(store, LARGE)
    await add(store, b"gone")
    await store.stop()
    again = beside(store, monotonic)
    with closing(sqlite3.connect(store.root / "index" / "cache.db", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        await again.start(background=False)
        assert not again.upkeep.loading.unread.index_read
        assert content(again, digest_of(LARGE)) == LARGE, "the files are there"
        again.tags.set("docker.io", "a", "2", variant(2))
        again.tags.delete("docker.io", "a", "3")
        await again.objects.remove([digest_of(b"gone")], "test")
        await again.upkeep.journal.flush()
        assert not again.upkeep.loading.unread.index_read
        connection.execute("ROLLBACK")
    await again.upkeep.journal.flush()
    assert not again.upkeep.loading.unread.index_read, "not tried again at once"
    monotonic.now += REOPEN_EVERY

    await again.upkeep.journal.save()

    assert again.upkeep.loading.unread.index_read
    assert again.tags.variants("docker.io", "a", "1") == (variant(1),)
    assert again.tags.variants("docker.io", "a", "2")[0] == variant(2), "newer than its row"
    assert set(rows(again)) == {f"o:{digest_of(LARGE)}", "t:docker.io/a:1", "t:docker.io/a:2"}
    await again.stop()


async def test_what_the_rows_say_is_not_lost_when_they_are_read_later(
    store: Store, monotonic: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheyd.store.index.WRITE_WAIT", 0.05)
    await add(store, LARGE)
    store.objects.touch(digest_of(LARGE), 7)
    await store.stop()
    again = StoppableStore(store.root, clock=store.clock, monotonic=monotonic)
    with closing(sqlite3.connect(store.root / "index" / "cache.db", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        await again.start(background=False)
        connection.execute("ROLLBACK")
    monotonic.now += REOPEN_EVERY
    await again.upkeep.journal.save()

    found = again.objects.find(digest_of(LARGE))
    assert found is not None
    assert (found.within, found.hits) == ((WITHIN,), 7)
    await again.stop()


async def test_an_index_that_is_damaged_while_it_is_open_is_written_anew(store: Store, monotonic: Clock) -> None:
    for n in range(3):
        await add(store, bytes([n]) * 100)
    store.tags.set("docker.io", "a", "1", variant(1))
    await store.upkeep.journal.save()
    expected = rows(store)
    with (store.root / "index" / "cache.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 20)

    for _ in range(3):
        store.tags.set("docker.io", "a", "2", variant(2))
        await store.upkeep.journal.save()
        monotonic.now += REOPEN_EVERY

    assert set(rows(store)) == {*expected, "t:docker.io/a:2"}
    assert all(rows(store)[key] == row for key, row in expected.items())


async def test_an_index_that_was_wiped_is_written_anew(
    store: Store, monotonic: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(store, LARGE)
    await store.upkeep.journal.save()
    expected = rows(store)
    shutil.rmtree(store.root / "index")
    monkeypatch.setattr("cacheyd.store.watch.LOOK_EVERY", 0.01)
    looking = asyncio.create_task(store.upkeep.watch.run())
    await eventually(lambda: not store.upkeep.index.usable)
    looking.cancel()

    await store.upkeep.journal.save()
    assert rows(store) == expected
