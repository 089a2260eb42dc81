"""The store keeps index and files consistent, on a real disk with a real diskcache."""

import asyncio
import json
import logging
import os
import resource
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from cacheyd.protocol.reference import Kind
from cacheyd.store.blobs import Mapped
from cacheyd.store.index import Index, Row
from cacheyd.store.rows import Stored, TagVariant
from cacheyd.store.shelf import BROKEN_PAUSE, SMALL
from cacheyd.store.store import Store, free_space
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


@pytest.fixture
async def store(tmp_path: Path, clock: Clock, monotonic: Clock) -> AsyncIterator[Store]:
    store = StoppableStore(tmp_path / "cache", clock=clock, monotonic=monotonic)
    await store.start(background=False)
    yield store
    await store.stop()


# Objects


@pytest.mark.parametrize("data", [b"", b"small", b"x" * SMALL, b"x" * (SMALL + 1), LARGE])
async def test_an_object_is_found_with_its_bytes(store: Store, clock: Clock, data: bytes) -> None:
    stored = await add(store, data)

    stamp = object_file(store, data).stat().st_mtime_ns
    assert stored == Stored(digest_of(data), len(data), "", clock.now, (WITHIN,), clock.now, stamp=stamp)
    assert store.find(stored.digest) == stored
    assert content(store, stored.digest) == data


async def test_what_is_not_there(store: Store) -> None:
    assert store.find(digest_of(b"other")) is None


async def test_a_manifest_is_known_by_its_media_type(store: Store) -> None:
    assert (await add(store, MANIFEST, OCI_MANIFEST)).kind is Kind.MANIFEST
    assert (await add(store, b"layer")).kind is Kind.BLOB


async def test_objects_outlive_the_process(store: Store) -> None:
    await add(store, LARGE)
    await add(store, MANIFEST, DOCKER_MANIFEST)

    again = await reopened(store)
    found = again.find(digest_of(MANIFEST))
    assert found is not None
    assert found.media_type == DOCKER_MANIFEST
    assert content(again, digest_of(LARGE)) == LARGE
    await again.stop()


async def test_objects_and_bytes_are_counted(store: Store) -> None:
    await add(store, LARGE)
    await add(store, MANIFEST, OCI_MANIFEST)
    await add(store, LARGE)

    again = await reopened(store)
    for one in (store, again):
        assert one.counts == {Kind.MANIFEST: 1, Kind.BLOB: 1}
        assert one.size == len(LARGE) + len(MANIFEST)
    await again.stop()


async def test_what_is_stored_or_removed_while_the_index_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are read by the page; what happens between two of them is newer."""
    old = [await add(store, bytes([n]) * 100) for n in range(20)]
    for tag in ("1", "2", "3"):
        store.set_tag("docker.io", "a", tag, variant(1))
    await store.stop()
    monkeypatch.setattr("cacheyd.store.upkeep.PAGE", 1)
    again, page, go_on = StoppableStore(store.root, clock=store.clock), asyncio.Event(), threading.Event()
    read_pages = again.index.pages

    def pages(size: int) -> Iterator[list[tuple[str, Row]]]:
        for found in read_pages(size):
            yield found
            loop.call_soon_threadsafe(page.set)
            assert go_on.wait(5)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(again.index, "pages", pages)
    loading = asyncio.create_task(again.start(background=False))
    await asyncio.wait_for(page.wait(), 5)

    assert not again.loaded
    assert again.find(old[-1].digest) is not None, "its row is looked up"
    new = await add(again, LARGE)
    assert await again.remove([old[-1].digest], "test") == (1, 100)
    again.set_tag("docker.io", "a", "1", variant(2))
    assert again.remove_tag("docker.io/a:2")
    go_on.set()
    await loading

    assert again.loaded
    assert set(again.catalog.objects) == {stored.digest for stored in (*old[:-1], new)}
    assert [list(again.tag_variants("docker.io", "a", tag)) for tag in ("1", "2", "3")] == [[variant(2)], [], [variant(1)]]
    await again.stop()


async def test_an_object_that_is_stored_again_is_the_one_that_was_there(store: Store, clock: Clock) -> None:
    first = await add(store, LARGE)
    inode = object_file(store, LARGE).stat().st_ino
    clock.now += 60
    second = await add(store, LARGE, within="ghcr.io/acme/app")

    assert second is first
    assert second.within == (WITHIN, "ghcr.io/acme/app")
    assert (second.created, second.used, second.hits) == (clock.now - 60, clock.now, 0)
    assert object_file(store, LARGE).stat().st_ino == inode
    assert list((store.root / "partial").iterdir()) == []
    assert (store.size, store.partial_bytes) == (len(LARGE), 0)


async def test_a_blob_that_turns_out_to_be_a_manifest_is_one(store: Store) -> None:
    await add(store, MANIFEST)
    assert (await add(store, MANIFEST, OCI_MANIFEST)).kind is Kind.MANIFEST
    assert (await add(store, MANIFEST)).kind is Kind.MANIFEST, "asked for as a blob"
    assert store.counts == {Kind.MANIFEST: 1, Kind.BLOB: 0}


async def test_objects_are_removed_wherever_they_stand(store: Store) -> None:
    await add(store, LARGE)
    await add(store, b"stays")

    assert await store.remove([digest_of(LARGE), digest_of(b"none")], "test") == (1, len(LARGE))
    assert not object_file(store, LARGE).exists()
    assert store.find(digest_of(LARGE)) is None
    assert store.size == 5


async def test_a_file_below_partial_is_adopted_if_it_has_the_digest(store: Store) -> None:
    right, wrong = store.root / "partial" / "right", store.root / "partial" / "wrong"
    right.write_bytes(MANIFEST)
    wrong.write_bytes(LARGE)

    assert await store.adopt_file(right, digest_of(MANIFEST), OCI_MANIFEST, WITHIN) is not None
    assert await store.adopt_file(wrong, digest_of(b"other"), "", WITHIN) is None
    assert await store.adopt_file(store.root / "index.json", digest_of(b"other"), "", WITHIN) is None
    assert content(store, digest_of(MANIFEST)) == MANIFEST
    assert list((store.root / "partial").iterdir()) == []
    assert (store.root / "index.json").exists()


async def test_a_snapshot_does_not_change(store: Store) -> None:
    stored = await add(store, LARGE)
    store.set_tag("docker.io", "a", "1", variant(1))
    snapshot = store.snapshot()
    await store.remove([stored.digest], "test")
    store.delete_tag("docker.io", "a", "1")

    assert [one.digest for one in snapshot.objects] == [stored.digest]
    assert snapshot.tags == {"docker.io/a:1": (variant(1),)}


async def test_large_objects_are_mapped_once_for_all_readers(store: Store) -> None:
    stored = await add(store, LARGE)

    first, second = store.body(stored), store.body(stored)
    assert isinstance(first, Mapped)
    assert first is second


async def test_small_objects_come_from_memory(store: Store) -> None:
    stored = await add(store, b"small")
    assert store.body(stored) == b"small"

    object_file(store, b"small").write_bytes(b"SMALL")
    assert store.body(stored) == b"small"


async def test_small_objects_do_not_fill_the_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheyd.store.shelf.SMALL_TOTAL", 1000)
    objects = [await add(store, bytes([i]) * 300) for i in range(10)]

    assert [store.body(stored) for stored in objects] == [bytes([i]) * 300 for i in range(10)]
    object_file(store, bytes([0]) * 300).unlink()
    assert store.body(objects[0]) is None, "it was pushed out and is read from disk again"


async def test_a_manifest_is_put_whole(store: Store) -> None:
    digest = digest_of(MANIFEST)

    stored = await store.put(digest, MANIFEST, OCI_INDEX, within=WITHIN)

    assert stored is not None
    assert stored.media_type == OCI_INDEX
    assert content(store, digest) == MANIFEST


async def test_a_manifest_is_put_over_the_remains_of_an_earlier_try(store: Store) -> None:
    digest = digest_of(MANIFEST)
    partial = await store.open_partial(digest)
    await store.append(partial, [b"something else, and longer than the manifest" * 10])
    partial.close()

    assert await store.put(digest, MANIFEST, OCI_MANIFEST, within=WITHIN) is not None
    assert content(store, digest) == MANIFEST


async def test_bytes_that_have_another_digest_are_not_put(store: Store) -> None:
    digest = digest_of(MANIFEST)

    assert await store.put(digest, b"wrong", OCI_MANIFEST, within=WITHIN) is None
    assert store.find(digest) is None
    assert not object_file(store, MANIFEST).exists()


async def test_an_object_knows_the_repositories_that_it_was_served_in(store: Store) -> None:
    stored = await add(store, LARGE)
    store.add_repository(stored, "ghcr.io/acme/app")
    store.add_repository(stored, WITHIN)
    await add(store, LARGE)

    again = await reopened(store)
    found = again.find(stored.digest)
    assert found is not None
    assert found.within == (WITHIN, "ghcr.io/acme/app")
    await again.stop()


# Appending and resuming


async def test_chunks_are_appended_in_order(store: Store) -> None:
    chunks = [LARGE[i : i + 1000] for i in range(0, len(LARGE), 1000)]
    partial = await store.open_partial(digest_of(LARGE))

    assert await store.append(partial, chunks[:7]) == 7000
    assert await store.append(partial, chunks[7:]) == len(LARGE)

    assert partial.verified()
    partial.close()


async def test_a_fetch_resumes_in_the_next_process(store: Store) -> None:
    partial = await store.open_partial(digest_of(LARGE))
    await store.append(partial, [LARGE[:100_000]])
    partial.close()

    again = await reopened(store)
    partial = await again.open_partial(digest_of(LARGE))
    assert partial.size == 100_000
    await again.append(partial, [LARGE[100_000:]])
    assert await again.commit(partial, within=WITHIN) is not None
    partial.close()
    assert content(again, digest_of(LARGE)) == LARGE
    await again.stop()


# What was lost is a miss


async def test_a_row_without_its_file_is_dropped(store: Store) -> None:
    stored = await add(store, LARGE)
    object_file(store, LARGE).unlink()

    assert store.find(stored.digest) is None
    object_file(store, LARGE).write_bytes(LARGE)
    assert store.find(stored.digest) is None, "the row went, too"


@pytest.mark.parametrize("other", [LARGE[:-1], LARGE[:-1] + b"!", LARGE])
async def test_another_file_is_not_served_until_it_was_hashed(
    store: Store, other: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    stored = await add(store, LARGE)
    path = replace_file(store, LARGE, other)

    assert store.find(stored.digest) is None
    assert "is not what was stored there" in caplog.text
    assert store.size == 0
    found = await store.recover(stored.digest)
    assert (found is not None) == path.exists() == (other == LARGE)
    assert content(store, stored.digest) == (LARGE if other == LARGE else None)


async def test_a_file_that_was_changed_in_its_place_is_not_served(store: Store) -> None:
    stored = await add(store, LARGE)
    with object_file(store, LARGE).open("r+b") as file:
        file.write(b"!")
    assert store.find(stored.digest) is None


async def test_what_changed_while_the_store_was_stopped_is_not_served(store: Store) -> None:
    stored = await add(store, LARGE)
    await store.stop()
    path = replace_file(store, LARGE, LARGE[:-1] + b"!")

    again = await reopened(store)
    assert again.find(stored.digest) is None
    assert not path.exists()
    await again.stop()


async def test_a_file_that_goes_between_find_and_body(store: Store) -> None:
    for data in (b"small", LARGE):
        stored = await add(store, data)
        object_file(store, data).unlink()
        assert store.body(stored) is None


async def test_a_small_object_that_was_wiped_does_not_come_back_from_memory(store: Store) -> None:
    stored = await add(store, b"small")
    store.body(stored)
    object_file(store, b"small").unlink()

    assert store.find(stored.digest) is None


@pytest.mark.parametrize("wiped", ["", "blobs", "blobs/sha256", "partial", "index", "oci-layout"])
async def test_the_store_works_on_after_a_wipe(store: Store, wiped: str) -> None:
    before = await add(store, b"before")
    path = store.root / wiped
    path.unlink() if path.is_file() else shutil.rmtree(path)

    store.find(before.digest)
    after = await add(store, LARGE)

    assert content(store, after.digest) == LARGE
    assert content(store, before.digest) in (None, b"before")
    again = await reopened(store)
    assert again.writable
    await eventually(lambda: content(again, after.digest) == LARGE)
    await again.stop()


@pytest.mark.parametrize("wiped", ["", "partial"])
async def test_a_wipe_while_an_object_comes_in_is_no_error(store: Store, wiped: str) -> None:
    partial = await store.open_partial(digest_of(LARGE))
    await store.append(partial, [LARGE[:100_000]])
    shutil.rmtree(store.root / wiped)
    await store.append(partial, [LARGE[100_000:]])

    assert partial.verified()
    assert await store.commit(partial, within=WITHIN) is None
    assert store.find(digest_of(LARGE)) is None
    assert store.writable
    partial.close()
    await add(store, LARGE)


async def test_a_wipe_between_verification_and_commit_of_the_target(store: Store) -> None:
    partial = await store.open_partial(digest_of(LARGE))
    await store.append(partial, [LARGE])
    shutil.rmtree(store.root / "blobs")

    assert await store.commit(partial, within=WITHIN) is not None
    partial.close()
    assert content(store, digest_of(LARGE)) == LARGE


async def test_a_wipe_while_an_object_is_read(store: Store) -> None:
    stored = await add(store, LARGE)
    body = store.body(stored)
    assert isinstance(body, Mapped)
    shutil.rmtree(store.root)

    assert bytes(body.view(0, body.size)) == LARGE
    assert store.find(stored.digest) is None


async def test_a_wipe_during_start(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    await store.start()
    shutil.rmtree(store.root)
    await asyncio.sleep(0.02)

    await add(store, LARGE)
    assert content(store, digest_of(LARGE)) == LARGE
    await store.stop()


# Orphans: the index was lost, the files are there


@pytest.mark.parametrize(
    ("content_", "media_type"),
    [
        ({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": {}, "layers": []}, DOCKER_MANIFEST),
        ({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}, OCI_INDEX),
        ({"schemaVersion": 2, "config": {}, "layers": []}, OCI_MANIFEST),
        ({"schemaVersion": 2, "manifests": []}, OCI_INDEX),
        ({"schemaVersion": 2, "mediaType": "odd\r\n/x", "manifests": []}, OCI_INDEX),
        ({"schemaVersion": 2}, ""),
        ({"schemaVersion": 1, "config": {}}, ""),
        ({"architecture": "amd64", "config": {}}, ""),
        ([1, 2], ""),
    ],
)
async def test_an_orphan_is_adopted_with_its_media_type(tmp_path: Path, content_: object, media_type: str) -> None:
    data = json.dumps(content_).encode()
    store = Store(tmp_path)
    store.blobs.prepare()
    object_file(store, data).write_bytes(data)

    await store.start()
    await eventually(lambda: store.find(digest_of(data)))

    found = store.find(digest_of(data))
    assert found is not None
    assert (found.size, found.media_type) == (len(data), media_type)
    assert content(store, digest_of(data)) == data
    await store.stop()


@pytest.mark.parametrize("data", [b"", b"{", b"{" * 100_000, b"\x1f\x8b layer", b'{"schemaVersion": 2, \xff}', LARGE])
async def test_an_orphan_that_is_no_manifest_is_a_blob(tmp_path: Path, data: bytes) -> None:
    store = Store(tmp_path)
    store.blobs.prepare()
    object_file(store, data).write_bytes(data)

    await store.start()
    await eventually(lambda: store.find(digest_of(data)))

    found = store.find(digest_of(data))
    assert found is not None
    assert found.kind is Kind.BLOB
    assert store.counts[Kind.BLOB] == 1
    await store.stop()


async def test_a_file_without_a_row_is_taken_up_when_it_is_asked_for(store: Store, clock: Clock) -> None:
    path = replace_file(store, MANIFEST, MANIFEST)
    os.utime(path, (clock.now - 500, clock.now - 500))

    found = await store.recover(digest_of(MANIFEST))

    assert found is not None
    assert (found.size, found.media_type, found.within) == (len(MANIFEST), OCI_MANIFEST, ())
    assert (found.created, found.used) == (clock.now, clock.now - 500)
    assert content(store, found.digest) == MANIFEST
    assert await store.recover(found.digest) is found


async def test_nothing_is_there_to_take_up(store: Store) -> None:
    assert await store.recover(digest_of(LARGE)) is None


async def test_a_file_that_is_not_what_its_name_says_is_removed(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    path = replace_file(store, LARGE, LARGE[:-1] + b"!")
    assert await store.recover(digest_of(LARGE)) is None
    assert not path.exists()
    assert "does not hold what its name says" in caplog.text


async def test_a_file_is_hashed_once_for_all_who_ask_for_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file(store, LARGE, LARGE)
    hashed: list[str] = []
    read = store.blobs.read

    def counted(digest: str) -> bytes | None:
        hashed.append(digest)
        return read(digest)

    monkeypatch.setattr(store.blobs, "read", counted)

    found = await asyncio.gather(*(store.recover(digest_of(LARGE)) for _ in range(10)))

    assert hashed == [digest_of(LARGE)]
    assert {one.digest for one in found if one} == {digest_of(LARGE)}
    assert None not in found


async def test_a_file_that_takes_long_to_hash_is_taken_up_later(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = await add(store, LARGE)
    store.forget(stored)
    go = threading.Event()
    hash_ = store._hash
    monkeypatch.setattr(store, "_hash", lambda *args: (go.wait(10), hash_(*args))[1])

    assert await store.recover(stored.digest, wait=0.01) is None
    assert store.find(stored.digest) is None
    go.set()
    assert await store.recover(stored.digest) is store.find(stored.digest) is not None


async def test_without_descriptors_nothing_is_removed(store: Store) -> None:
    """A file that cannot be read now is not one that is wrong."""
    path = replace_file(store, LARGE, LARGE)
    await store.recover(digest_of(b"threads are there"))
    with no_descriptors():
        assert await store.recover(digest_of(LARGE)) is None
    assert path.exists()
    assert await store.recover(digest_of(LARGE)) is not None


async def test_everything_survives_the_loss_of_the_index(store: Store) -> None:
    await add(store, LARGE)
    await add(store, MANIFEST, OCI_MANIFEST)
    await store.stop()
    shutil.rmtree(store.root / "index")

    again = Store(store.root)
    await again.start()
    await eventually(lambda: content(again, digest_of(LARGE)) == LARGE)
    await eventually(lambda: content(again, digest_of(MANIFEST)) == MANIFEST)
    await again.stop()


@pytest.mark.parametrize(
    "row",
    [
        1,
        "x",
        [],
        {},
        {"size": "many"},
        {"size": 1, "type": "", "at": None},
        {"size": 1, "type": "", "at": 1.0},
        {"size": len(LARGE), "type": OCI_INDEX, "at": 1.0, "stamp": 1, "needs": ["sha256:xyz"]},
        {"size": 1e400, "type": "", "at": 1.0, "stamp": 1},
        {"size": 1, "type": "", "at": 1.0, "stamp": 1, "in": 5},
        {"variants": 1},
        {"variants": [{}]},
    ],
)
async def test_a_row_that_makes_no_sense_is_a_miss(store: Store, row: Any) -> None:
    stored = await add(store, LARGE)
    await add(store, b"other")
    await store.stop()
    index = Index(store.root / "index")
    index.open()
    assert index.write([(f"o:{stored.digest}", row), ("o:sha256:xyz", row), ("t:docker.io/a:1", row)])
    index.close()

    again = await reopened(store)
    assert again.loaded
    assert again.tag_variants("docker.io", "a", "1") == ()
    assert set(again.catalog.objects) == {stored.digest, digest_of(b"other")}
    assert content(again, stored.digest) == LARGE
    await again.stop()


# A disk that refuses


@pytest.fixture
def _files_of_64_kib() -> Iterator[None]:
    """A real refusal of the operating system (EFBIG), for root, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_files_of_64_kib")
async def test_a_refused_write_is_an_os_error_and_counts_nothing(store: Store) -> None:
    partial = await store.open_partial(digest_of(LARGE))
    await store.append(partial, [LARGE[:1000]])

    with pytest.raises(OSError):
        await store.append(partial, [LARGE[1000:]])

    assert partial.size == 1000
    assert store.find(digest_of(LARGE)) is None
    partial.close()


@pytest.mark.usefixtures("_files_of_64_kib")
async def test_a_manifest_that_does_not_fit_begins_the_pause(store: Store) -> None:
    assert await store.put(digest_of(LARGE), LARGE, OCI_MANIFEST, within=WITHIN) is None
    assert not store.writable
    assert store.write_errors == 1
    assert store.find(digest_of(LARGE)) is None


async def test_after_a_refusal_requests_bypass_the_store_for_a_while(
    store: Store, clock: Clock, monotonic: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    assert store.writable
    with caplog.at_level(logging.ERROR, "cacheyd"):
        store.report_write_error(OSError(28, "No space left on device"))
        store.report_write_error(OSError(28, "No space left on device"))

    assert not store.writable
    assert store.write_errors == 2
    assert len(caplog.records) == 1, "one line per pause"
    assert "ENOSPC" in caplog.text
    monotonic.now += BROKEN_PAUSE - 0.01
    clock.now -= 3600
    assert not store.writable
    monotonic.now += 0.01
    assert store.writable, "whatever the clock on the wall does"


async def test_what_is_stored_is_served_while_the_disk_refuses(store: Store) -> None:
    await add(store, LARGE)
    store.report_write_error(OSError(30, "Read-only file system"))
    assert content(store, digest_of(LARGE)) == LARGE


async def test_a_store_starts_where_nothing_can_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING, "cacheyd"):
        await store.start(background=False)

    assert not store.writable
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"], "one for the directory, one for the index"
    with pytest.raises(OSError):
        await store.open_partial(digest_of(LARGE))
    assert await store.put(digest_of(MANIFEST), MANIFEST, OCI_MANIFEST, within=WITHIN) is None
    assert store.find(digest_of(LARGE)) is None
    store.set_tag("docker.io", "a", "1", TagVariant(frozenset(), digest_of(MANIFEST), OCI_MANIFEST, 1, 0.0))
    assert len(store.tag_variants("docker.io", "a", "1")) == 1
    await store.stop()


async def test_a_file_where_a_directory_should_be(store: Store) -> None:
    shutil.rmtree(store.root / "partial")
    (store.root / "partial").touch()

    assert await store.put(digest_of(MANIFEST), MANIFEST, OCI_MANIFEST, within=WITHIN) is None
    assert not store.writable


# What is known of objects


async def test_when_things_were_used_outlives_the_process(store: Store, clock: Clock) -> None:
    stored = await add(store, LARGE)
    clock.now += 100
    store.touch(stored.digest)
    store.touch(stored.digest, 3)
    again = await reopened(store)
    found = again.find(stored.digest)
    assert found is not None
    assert (found.used, found.hits) == (clock.now, 4)
    await again.stop()


async def test_what_was_used_in_the_future_was_used_now(store: Store, clock: Clock) -> None:
    """The clock was wrong, and an object would be kept until it is right again."""
    clock.now += 10 * 365 * 86400
    stored = await add(store, LARGE)
    clock.now -= 10 * 365 * 86400
    again = await reopened(store)
    found = again.find(stored.digest)
    assert found is not None
    assert found.used == clock.now
    await again.stop()


@pytest.mark.parametrize("when", ["while it runs", "while it is stopped"])
async def test_what_was_wiped_is_not_counted_and_nothing_is_taken_off_twice(store: Store, when: str) -> None:
    """The totals decide about eviction."""
    stored = await add(store, LARGE)
    await add(store, b"stays")
    if when == "while it runs":
        object_file(store, LARGE).unlink()
    else:
        await store.stop()
        object_file(store, LARGE).unlink()
        store = await reopened(store)

    for _ in range(2):
        assert store.find(stored.digest) is None

    assert store.size == 5
    assert store.counts == {Kind.MANIFEST: 0, Kind.BLOB: 1}
    await store.stop()


# Tags


async def test_a_tag_is_known_until_it_is_deleted(store: Store) -> None:
    assert store.tag_variants("docker.io", "library/nginx", "1") == ()
    store.set_tag("docker.io", "library/nginx", "1", variant(1))

    assert store.tag_variants("docker.io", "library/nginx", "1") == (variant(1),)
    assert store.tag_variants("ghcr.io", "library/nginx", "1") == ()
    assert store.tag_variants("docker.io", "library/nginx", "2") == ()
    store.delete_tag("docker.io", "library/nginx", "1")
    assert store.tag_variants("docker.io", "library/nginx", "1") == ()


async def test_a_tag_has_one_variant_per_accept_the_newest_first(store: Store) -> None:
    other = frozenset({DOCKER_MANIFEST})
    store.set_tag("docker.io", "a", "1", variant(1))
    store.set_tag("docker.io", "a", "1", variant(2, other))
    store.set_tag("docker.io", "a", "1", variant(3))

    assert store.tag_variants("docker.io", "a", "1") == (variant(3), variant(2, other))


async def test_the_variants_of_a_tag_are_bounded(store: Store) -> None:
    for i in range(30):
        store.set_tag("docker.io", "a", "1", variant(i, frozenset({f"a/{i}"})))

    found = store.tag_variants("docker.io", "a", "1")
    assert 4 <= len(found) <= 16
    assert [v.size for v in found] == list(range(29, 29 - len(found), -1)), "the newest ones"


async def test_tags_outlive_the_process(store: Store) -> None:
    store.set_tag("docker.io", "a", "1", variant(1))
    store.set_tag("docker.io", "a", "2", variant(2))
    store.delete_tag("docker.io", "a", "2")

    again = await reopened(store)
    assert again.tag_variants("docker.io", "a", "1") == (variant(1),)
    assert again.tag_variants("docker.io", "a", "2") == ()
    await again.stop()


def test_free_space_for_people(tmp_path: Path) -> None:
    assert free_space(tmp_path).endswith("iB")
    assert free_space(tmp_path / "none") == "unknown"


# Rows of earlier versions


@pytest.mark.parametrize(
    ("data", "stated", "expected"),
    [
        (MANIFEST, "application/evil+json", OCI_MANIFEST),
        (MANIFEST, OCI_INDEX, OCI_MANIFEST),
        (b"no manifest", "application/evil+json", ""),
        (LARGE, "", ""),
    ],
)
@pytest.mark.parametrize("read", [True, False], ids=["in the background", "asked for at once"])
async def test_a_type_that_some_upstream_said_is_looked_up_in_the_bytes(
    store: Store, data: bytes, stated: str, expected: str, read: bool
) -> None:
    await add(store, data, stated)
    await store.stop()
    with closing(sqlite3.connect(store.root / "index" / "cache.db", isolation_level=None)) as connection:
        ((text,),) = connection.execute("SELECT value FROM Cache WHERE key = ?", (f"o:{digest_of(data)}",))
        row = json.loads(text)
        row.pop("own", None)
        connection.execute("UPDATE Cache SET value = ? WHERE key = ?", (json.dumps(row), f"o:{digest_of(data)}"))

    again = StoppableStore(store.root, store.settings, clock=store.clock)
    if read:
        await again.start(background=False)
    else:
        await again.in_thread(again.index.open)
        assert stated == "" or again.find(digest_of(data)) is None
        await again.recover(digest_of(data))
    found = again.find(digest_of(data))
    assert found is not None
    assert found.media_type == expected
    assert not read or found.within == (WITHIN,)
    await again.stop()
    assert rows(again)[f"o:{digest_of(data)}"]["type"] == expected


# Tags of strangers


async def test_tags_have_a_bound_in_number(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheyd.store.store.MAX_TAGS", 10)
    for number in range(25):
        store.set_tag("reg.test", "a/b", f"v{number}", variant(1))
    assert list(store.catalog.tags) == [f"reg.test/a/b:v{number}" for number in range(15, 25)]


async def test_tags_have_a_bound_in_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and Accept headers are whatever a client likes: 100,000 tags with 8 long ones each were gigabytes."""
    monkeypatch.setattr("cacheyd.store.store.MAX_TAG_BYTES", 100_000)
    for number in range(200):
        asked = frozenset(f"application/{number}-{n}-{'x' * 90}" for n in range(32))
        store.set_tag("evil.test", "a/b", "x" * 100 + str(number % 100), replace(variant(1), asked=asked))
        assert store.catalog.tag_bytes <= 100_000
    assert 10 < len(store.catalog.tags) < 30
    for name in list(store.catalog.tags):
        store.remove_tag(name)
    assert store.catalog.tag_bytes == 0
