"""The store keeps index and files consistent, on a real disk with a real diskcache."""

import asyncio
import json
import logging
import resource
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cacheyd.config import load
from cacheyd.reference import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Kind
from cacheyd.store.blobs import Mapped, digest_of
from cacheyd.store.index import Index
from cacheyd.store.rows import Stored, TagVariant
from cacheyd.store.store import BROKEN_PAUSE, SMALL, Store, free_space

WITHIN = "docker.io/library/nginx"
LARGE = bytes(range(256)) * 1024
MANIFEST = json.dumps({"schemaVersion": 2, "config": {}, "layers": []}).encode()


class Clock:
    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class StoppableStore(Store):
    """A store that the test may have stopped already."""

    _stopped = False

    async def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            await super().stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    store = await started(StoppableStore(tmp_path / "cache", clock=clock))
    yield store
    await store.stop()


async def add(store: Store, data: bytes, media_type: str = "") -> Stored:
    """What a fetch does."""
    partial = await store.open_partial(digest_of(data))
    await store.append(partial, [data])
    assert partial.verified()
    stored = await store.commit(partial, media_type, within=WITHIN)
    partial.close()
    assert stored is not None
    return stored


async def eventually(holds: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)


async def started(store: Store) -> Store:
    """Started, and done with looking at what is there."""
    swept = threading.Event()
    sweep = store.blobs.sweep_partials

    def sweep_and_tell(older_than: float) -> int:
        try:
            return sweep(older_than)
        finally:
            swept.set()

    store.blobs.sweep_partials = sweep_and_tell  # type: ignore[method-assign]
    await store.start()
    await eventually(swept.is_set)
    return store


async def reopened(store: Store) -> Store:
    await store.stop()
    again = Store(store.root)
    await again.start()
    return again


def content(store: Store, digest: str) -> bytes | None:
    """What a hit serves."""
    stored = store.find(digest)
    body = store.body(stored) if stored else None
    return bytes(body.view(0, body.size)) if isinstance(body, Mapped) else body


def object_file(store: Store, data: bytes) -> Path:
    return Path(store.blobs.path(digest_of(data)))


# Objects


@pytest.mark.parametrize("data", [b"", b"small", b"x" * SMALL, b"x" * (SMALL + 1), LARGE])
async def test_an_object_is_found_with_its_bytes(store: Store, clock: Clock, data: bytes) -> None:
    stored = await add(store, data)

    assert stored == Stored(digest_of(data), len(data), "", clock.now, (WITHIN,))
    found = store.find(stored.digest)
    assert found is not None
    assert replace(found, used=0.0) == stored
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

    assert store.objects == {Kind.MANIFEST: 1, Kind.BLOB: 1}
    assert store.bytes == len(LARGE) + len(MANIFEST)
    again = await reopened(store)
    await eventually(lambda: again.bytes == len(LARGE) + len(MANIFEST))
    assert again.objects == {Kind.MANIFEST: 1, Kind.BLOB: 1}
    await again.stop()


async def test_what_is_stored_while_the_start_still_counts_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "cache")
    scan, scanned, go_on = store.blobs.scan, threading.Event(), threading.Event()

    def slow_scan() -> Iterator[tuple[str, int]]:
        found = list(scan())
        scanned.set()
        go_on.wait(5)
        yield from found

    monkeypatch.setattr(store.blobs, "scan", slow_scan)
    starting = asyncio.create_task(started(store))
    await eventually(scanned.is_set)
    await add(store, LARGE)
    go_on.set()
    await starting

    assert store.bytes == len(LARGE)
    assert store.objects[Kind.BLOB] == 1
    await store.stop()


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
    monkeypatch.setattr("cacheyd.store.store.SMALL_TOTAL", 1000)
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


async def test_two_stores_on_one_directory_do_not_disturb_each_other(store: Store) -> None:
    other = Store(store.root)
    await other.start()
    mine, theirs = await store.open_partial(digest_of(LARGE)), await other.open_partial(digest_of(LARGE))
    await store.append(mine, [LARGE])
    await other.append(theirs, [LARGE])

    assert await store.commit(mine, within=WITHIN)
    assert await other.commit(theirs, within=WITHIN)
    assert content(store, digest_of(LARGE)) == content(other, digest_of(LARGE)) == LARGE
    mine.close()
    theirs.close()
    await other.stop()


# What was lost is a miss


async def test_a_row_without_its_file_is_dropped(store: Store) -> None:
    stored = await add(store, LARGE)
    object_file(store, LARGE).unlink()

    assert store.find(stored.digest) is None
    object_file(store, LARGE).write_bytes(LARGE)
    assert store.find(stored.digest) is None, "the row went, too"


async def test_a_file_of_another_length_is_not_served(store: Store) -> None:
    stored = await add(store, LARGE)
    object_file(store, LARGE).unlink()
    object_file(store, LARGE).write_bytes(LARGE[:-1])

    assert store.find(stored.digest) is None


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
    await eventually(lambda: store.objects[Kind.BLOB] == 1)
    await store.stop()


async def test_an_orphan_that_is_not_what_its_name_says_is_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.blobs.prepare()
    object_file(store, LARGE).write_bytes(LARGE[:-1] + b"!")

    await store.start()
    await eventually(lambda: not object_file(store, LARGE).exists())

    assert store.find(digest_of(LARGE)) is None
    await store.stop()


async def test_a_file_that_was_cut_short_is_removed_at_the_next_start(store: Store) -> None:
    stored = await add(store, LARGE)
    await store.stop()
    object_file(store, LARGE).unlink()
    object_file(store, LARGE).write_bytes(LARGE[:1000])

    again = Store(store.root)
    await again.start()
    await eventually(lambda: not object_file(again, LARGE).exists())
    assert again.find(stored.digest) is None
    await again.stop()


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


@pytest.mark.parametrize("row", [None, 1, "x", [], {}, {"size": "many"}, {"size": 1, "type": "", "at": None}, {"variants": 1}])
async def test_a_row_that_makes_no_sense_is_a_miss(store: Store, row: object) -> None:
    stored = await add(store, LARGE)
    await store.stop()
    index = Index(store.root / "index")
    index.open()
    index.put(f"o:{stored.digest}", row)  # type: ignore[arg-type]
    index.put("t:docker.io/a:1", row)  # type: ignore[arg-type]
    index.close()

    again = Store(store.root)
    await again.start()
    assert again.tag_variants("docker.io", "a", "1") == []
    await eventually(lambda: content(again, stored.digest) == LARGE)
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
    store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    assert store.writable
    with caplog.at_level(logging.ERROR, "cacheyd"):
        store.report_write_error(OSError(28, "No space left on device"))
        store.report_write_error(OSError(28, "No space left on device"))

    assert not store.writable
    assert store.write_errors == 2
    assert len(caplog.records) == 1, "one line per pause"
    assert "ENOSPC" in caplog.text
    clock.now += BROKEN_PAUSE - 0.01
    assert not store.writable
    clock.now += 0.01
    assert store.writable


async def test_what_is_stored_is_served_while_the_disk_refuses(store: Store) -> None:
    await add(store, LARGE)
    store.report_write_error(OSError(30, "Read-only file system"))
    assert content(store, digest_of(LARGE)) == LARGE


async def test_a_store_starts_where_nothing_can_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "cache")
    with caplog.at_level(logging.ERROR, "cacheyd"):
        await store.start()

    assert not store.writable
    assert len(caplog.records) == 1
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


async def test_room_is_what_is_free_beside_what_is_on_its_way_in(store: Store) -> None:
    free = store.blobs.free()
    assert free is not None
    assert store.has_room(1)
    assert not store.has_room(free)
    store.incoming = lambda: free
    assert not store.has_room(1)
    assert not await store.make_room(1)


async def test_an_object_larger_than_the_whole_cache_has_no_room(tmp_path: Path) -> None:
    store = Store(tmp_path, load(environ={}, flags={"max_size": "1MiB"}))
    assert store.has_room(1 << 20)
    assert not store.has_room((1 << 20) + 1)


# Eviction


@pytest.fixture
async def small_store(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    """A cache of 1 MB whose eviction looks often."""
    monkeypatch.setattr("cacheyd.store.store.EVICT_EVERY", 0.01)
    settings = load(environ={}, flags={"max_size": "1MB", "min_free": "0", "pin": "docker.io/library/*:1.*"})
    store = await started(Store(tmp_path / "cache", settings, clock=clock))
    yield store
    await store.stop()


def blob(n: int) -> bytes:
    return bytes([n]) * 200_000


async def test_the_least_recently_used_go_down_to_the_low_watermark(small_store: Store, clock: Clock) -> None:
    for n in range(5):
        await add(small_store, blob(n))
        clock.now += 1
    await asyncio.sleep(0.05)
    assert small_store.bytes == 1_000_000, "full is not too full"
    small_store.find(digest_of(blob(0)))
    clock.now += 1
    await add(small_store, blob(5))

    def left() -> list[int]:
        return [n for n in range(6) if object_file(small_store, blob(n)).exists()]

    await eventually(lambda: len(left()) == 4)
    assert left() == [0, 3, 4, 5]
    assert [n for n in range(6) if small_store.find(digest_of(blob(n)))] == left()
    assert small_store.bytes == 800_000
    assert small_store.objects[Kind.BLOB] == 4


async def test_what_is_pinned_or_on_its_way_stays(small_store: Store, clock: Clock) -> None:
    manifest = json.dumps({"schemaVersion": 2, "config": {}, "layers": [{"digest": digest_of(blob(0))}]}).encode()
    index = json.dumps({"schemaVersion": 2, "manifests": [{"digest": digest_of(manifest)}]}).encode()
    for data, media_type in ((index, OCI_INDEX), (manifest, OCI_MANIFEST)):
        await add(small_store, data, media_type)
    small_store.set_tag("docker.io", "library/nginx", "1.27", TagVariant(ASKED, digest_of(index), OCI_INDEX, 1, 1.0))
    small_store.busy = lambda digest: digest == digest_of(blob(1))
    for n in range(7):
        clock.now += 1
        await add(small_store, blob(n))

    await eventually(lambda: small_store.bytes <= 900_000)
    assert [n for n in range(7) if object_file(small_store, blob(n)).exists()][:2] == [0, 1]
    assert content(small_store, digest_of(manifest)) == manifest


async def test_eviction_breaks_no_reader(small_store: Store, clock: Clock) -> None:
    stored = await add(small_store, blob(0))
    body = small_store.body(stored)
    assert isinstance(body, Mapped)
    for n in range(1, 7):
        clock.now += 1
        await add(small_store, blob(n))
    await eventually(lambda: not object_file(small_store, blob(0)).exists())

    assert bytes(body.view(0, body.size)) == blob(0)


async def test_when_things_were_used_outlives_the_process(store: Store, clock: Clock) -> None:
    stored = await add(store, LARGE)
    clock.now += 100
    store.find(stored.digest)
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
        again = Store(store.root)
        await again.start()
        await eventually(lambda: again.bytes == 5)
        store = again

    for _ in range(2):
        assert store.find(stored.digest) is None

    assert store.bytes == 5
    assert store.objects == {Kind.MANIFEST: 0, Kind.BLOB: 1}
    await store.stop()


# Tags

ASKED = frozenset({OCI_INDEX, OCI_MANIFEST})


def variant(n: int, asked: frozenset[str] = ASKED, at: float = 1.5) -> TagVariant:
    return TagVariant(asked, digest_of(str(n).encode()), OCI_INDEX, n, at)


async def test_a_tag_is_known_until_it_is_deleted(store: Store) -> None:
    assert store.tag_variants("docker.io", "library/nginx", "1") == []
    store.set_tag("docker.io", "library/nginx", "1", variant(1))

    assert store.tag_variants("docker.io", "library/nginx", "1") == [variant(1)]
    assert store.tag_variants("ghcr.io", "library/nginx", "1") == []
    assert store.tag_variants("docker.io", "library/nginx", "2") == []
    store.delete_tag("docker.io", "library/nginx", "1")
    assert store.tag_variants("docker.io", "library/nginx", "1") == []


async def test_a_tag_has_one_variant_per_accept_the_newest_first(store: Store) -> None:
    other = frozenset({DOCKER_MANIFEST})
    store.set_tag("docker.io", "a", "1", variant(1))
    store.set_tag("docker.io", "a", "1", variant(2, other))
    store.set_tag("docker.io", "a", "1", variant(3))

    assert store.tag_variants("docker.io", "a", "1") == [variant(3), variant(2, other)]


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
    assert again.tag_variants("docker.io", "a", "1") == [variant(1)]
    assert again.tag_variants("docker.io", "a", "2") == []
    await again.stop()


async def test_rows_reach_the_disk_without_a_stop(store: Store) -> None:
    """A kill loses half a second of rows at most."""
    store.set_tag("docker.io", "a", "1", variant(1))
    database = store.root / "index" / "cache.db"

    def written() -> bool:
        files = [database, database.with_name("cache.db-wal")]
        return any(b"docker.io/a:1" in file.read_bytes() for file in files if file.exists())

    await eventually(written)


def test_free_space_for_people(tmp_path: Path) -> None:
    assert free_space(tmp_path).endswith("iB")
    assert free_space(tmp_path / "none") == "unknown"
