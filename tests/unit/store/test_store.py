"""The store keeps index and files consistent, on a real disk with a real diskcache."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from cacheyd.protocol.reference import Kind
from cacheyd.store.index import Row
from cacheyd.store.mapped import Mapped
from cacheyd.store.objects import SMALL
from cacheyd.store.records import Stored
from cacheyd.store.store import Store
from tests.support.stores import (
    LARGE,
    MANIFEST,
    WITHIN,
    Clock,
    StoppableStore,
    add,
    content,
    object_file,
    reopened,
    variant,
)

# Objects


@pytest.mark.parametrize("data", [b"", b"small", b"x" * SMALL, b"x" * (SMALL + 1), LARGE])
async def test_an_object_is_found_with_its_bytes(store: Store, clock: Clock, data: bytes) -> None:
    stored = await add(store, data)

    stamp = object_file(store, data).stat().st_mtime_ns
    assert stored == Stored(digest_of(data), len(data), "", clock.now, (WITHIN,), clock.now, stamp=stamp)
    assert store.objects.find(stored.digest) == stored
    assert content(store, stored.digest) == data


async def test_what_is_not_there(store: Store) -> None:
    assert store.objects.find(digest_of(b"other")) is None


async def test_a_manifest_is_known_by_its_media_type(store: Store) -> None:
    assert (await add(store, MANIFEST, OCI_MANIFEST)).kind is Kind.MANIFEST
    assert (await add(store, b"layer")).kind is Kind.BLOB


async def test_objects_outlive_the_process(store: Store) -> None:
    await add(store, LARGE)
    await add(store, MANIFEST, DOCKER_MANIFEST)

    again = await reopened(store)
    found = again.objects.find(digest_of(MANIFEST))
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
        store.tags.set("docker.io", "a", tag, variant(1))
    await store.stop()
    monkeypatch.setattr("cacheyd.store.loading.PAGE", 1)
    monkeypatch.setattr("cacheyd.store.reconcile.PAGE", 1)
    again, page, go_on = StoppableStore(store.root, clock=store.clock), asyncio.Event(), threading.Event()
    read_pages = again.upkeep.index.pages

    def pages(size: int) -> Iterator[list[tuple[str, Row]]]:
        for found in read_pages(size):
            yield found
            loop.call_soon_threadsafe(page.set)
            assert go_on.wait(5)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(again.upkeep.index, "pages", pages)
    loading = asyncio.create_task(again.start(background=False))
    await asyncio.wait_for(page.wait(), 5)

    assert not again.loaded
    assert again.objects.find(old[-1].digest) is not None, "its row is looked up"
    new = await add(again, LARGE)
    assert await again.objects.remove([old[-1].digest], "test") == (1, 100)
    again.tags.set("docker.io", "a", "1", variant(2))
    assert again.tags.remove("docker.io/a:2")
    go_on.set()
    await loading

    assert again.loaded
    assert set(again.catalog.objects) == {stored.digest for stored in (*old[:-1], new)}
    assert [list(again.tags.variants("docker.io", "a", tag)) for tag in ("1", "2", "3")] == [[variant(2)], [], [variant(1)]]
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
    assert (store.size, store.partials.size) == (len(LARGE), 0)


async def test_a_blob_that_turns_out_to_be_a_manifest_is_one(store: Store) -> None:
    await add(store, MANIFEST)
    assert (await add(store, MANIFEST, OCI_MANIFEST)).kind is Kind.MANIFEST
    assert (await add(store, MANIFEST)).kind is Kind.MANIFEST, "asked for as a blob"
    assert store.counts == {Kind.MANIFEST: 1, Kind.BLOB: 0}


async def test_objects_are_removed_wherever_they_stand(store: Store) -> None:
    await add(store, LARGE)
    await add(store, b"stays")

    assert await store.objects.remove([digest_of(LARGE), digest_of(b"none")], "test") == (1, len(LARGE))
    assert not object_file(store, LARGE).exists()
    assert store.objects.find(digest_of(LARGE)) is None
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
    store.tags.set("docker.io", "a", "1", variant(1))
    snapshot = store.catalog.snapshot()
    await store.objects.remove([stored.digest], "test")
    store.tags.delete("docker.io", "a", "1")

    assert [one.digest for one in snapshot.objects] == [stored.digest]
    assert snapshot.tags == {"docker.io/a:1": (variant(1),)}


async def test_large_objects_are_mapped_once_for_all_readers(store: Store) -> None:
    stored = await add(store, LARGE)

    first, second = store.objects.body(stored), store.objects.body(stored)
    assert isinstance(first, Mapped)
    assert first is second


async def test_small_objects_come_from_memory(store: Store) -> None:
    stored = await add(store, b"small")
    assert store.objects.body(stored) == b"small"

    object_file(store, b"small").write_bytes(b"SMALL")
    assert store.objects.body(stored) == b"small"


async def test_small_objects_do_not_fill_the_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheyd.store.objects.SMALL_TOTAL", 1000)
    objects = [await add(store, bytes([i]) * 300) for i in range(10)]

    assert [store.objects.body(stored) for stored in objects] == [bytes([i]) * 300 for i in range(10)]
    object_file(store, bytes([0]) * 300).unlink()
    assert store.objects.body(objects[0]) is None, "it was pushed out and is read from disk again"


async def test_a_manifest_is_put_whole(store: Store) -> None:
    digest = digest_of(MANIFEST)

    stored = await store.put(digest, MANIFEST, OCI_INDEX, within=WITHIN)

    assert stored is not None
    assert stored.media_type == OCI_INDEX
    assert content(store, digest) == MANIFEST


async def test_a_manifest_is_put_over_the_remains_of_an_earlier_try(store: Store) -> None:
    digest = digest_of(MANIFEST)
    partial = await store.partials.open(digest)
    await store.partials.append(partial, [b"something else, and longer than the manifest" * 10])
    partial.close()

    assert await store.put(digest, MANIFEST, OCI_MANIFEST, within=WITHIN) is not None
    assert content(store, digest) == MANIFEST


async def test_bytes_that_have_another_digest_are_not_put(store: Store) -> None:
    digest = digest_of(MANIFEST)

    assert await store.put(digest, b"wrong", OCI_MANIFEST, within=WITHIN) is None
    assert store.objects.find(digest) is None
    assert not object_file(store, MANIFEST).exists()


async def test_an_object_knows_the_repositories_that_it_was_served_in(store: Store) -> None:
    stored = await add(store, LARGE)
    store.objects.add_repository(stored, "ghcr.io/acme/app")
    store.objects.add_repository(stored, WITHIN)
    await add(store, LARGE)

    again = await reopened(store)
    found = again.objects.find(stored.digest)
    assert found is not None
    assert found.within == (WITHIN, "ghcr.io/acme/app")
    await again.stop()


# Appending and resuming


async def test_chunks_are_appended_in_order(store: Store) -> None:
    chunks = [LARGE[i : i + 1000] for i in range(0, len(LARGE), 1000)]
    partial = await store.partials.open(digest_of(LARGE))

    assert await store.partials.append(partial, chunks[:7]) == 7000
    assert await store.partials.append(partial, chunks[7:]) == len(LARGE)

    assert partial.verified()
    partial.close()


async def test_a_fetch_resumes_in_the_next_process(store: Store) -> None:
    partial = await store.partials.open(digest_of(LARGE))
    await store.partials.append(partial, [LARGE[:100_000]])
    partial.close()

    again = await reopened(store)
    partial = await again.partials.open(digest_of(LARGE))
    assert partial.size == 100_000
    await again.partials.append(partial, [LARGE[100_000:]])
    assert await again.commit(partial, within=WITHIN) is not None
    partial.close()
    assert content(again, digest_of(LARGE)) == LARGE
    await again.stop()


# What is known of objects


async def test_when_things_were_used_outlives_the_process(store: Store, clock: Clock) -> None:
    stored = await add(store, LARGE)
    clock.now += 100
    store.objects.touch(stored.digest)
    store.objects.touch(stored.digest, 3)
    again = await reopened(store)
    found = again.objects.find(stored.digest)
    assert found is not None
    assert (found.used, found.hits) == (clock.now, 4)
    await again.stop()


async def test_what_was_used_in_the_future_was_used_now(store: Store, clock: Clock) -> None:
    """The clock was wrong, and an object would be kept until it is right again."""
    clock.now += 10 * 365 * 86400
    stored = await add(store, LARGE)
    clock.now -= 10 * 365 * 86400
    again = await reopened(store)
    found = again.objects.find(stored.digest)
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
        assert store.objects.find(stored.digest) is None

    assert store.size == 5
    assert store.counts == {Kind.MANIFEST: 0, Kind.BLOB: 1}
    await store.stop()
