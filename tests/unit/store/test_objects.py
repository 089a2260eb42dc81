"""What was lost is a miss, and what is there without a row is taken up."""

import asyncio
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from cacheyd.protocol.reference import Kind
from cacheyd.store.index import Index
from cacheyd.store.mapped import Mapped
from cacheyd.store.store import Store
from tests.support.stores import (
    LARGE,
    MANIFEST,
    WITHIN,
    Clock,
    add,
    content,
    eventually,
    no_descriptors,
    object_file,
    reopened,
    replace_file,
)

# What was lost is a miss


async def test_a_row_without_its_file_is_dropped(store: Store) -> None:
    stored = await add(store, LARGE)
    object_file(store, LARGE).unlink()

    assert store.objects.find(stored.digest) is None
    object_file(store, LARGE).write_bytes(LARGE)
    assert store.objects.find(stored.digest) is None, "the row went, too"


@pytest.mark.parametrize("other", [LARGE[:-1], LARGE[:-1] + b"!", LARGE])
async def test_another_file_is_not_served_until_it_was_hashed(
    store: Store, other: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    stored = await add(store, LARGE)
    path = replace_file(store, LARGE, other)

    assert store.objects.find(stored.digest) is None
    assert "is not what was stored there" in caplog.text
    assert store.size == 0
    found = await store.objects.recover(stored.digest)
    assert (found is not None) == path.exists() == (other == LARGE)
    assert content(store, stored.digest) == (LARGE if other == LARGE else None)


async def test_a_file_that_was_changed_in_its_place_is_not_served(store: Store) -> None:
    stored = await add(store, LARGE)
    with object_file(store, LARGE).open("r+b") as file:
        file.write(b"!")
    assert store.objects.find(stored.digest) is None


async def test_what_changed_while_the_store_was_stopped_is_not_served(store: Store) -> None:
    stored = await add(store, LARGE)
    await store.stop()
    path = replace_file(store, LARGE, LARGE[:-1] + b"!")

    again = await reopened(store)
    assert again.objects.find(stored.digest) is None
    assert not path.exists()
    await again.stop()


async def test_a_file_that_goes_between_find_and_body(store: Store) -> None:
    for data in (b"small", LARGE):
        stored = await add(store, data)
        object_file(store, data).unlink()
        assert store.objects.body(stored) is None


async def test_a_small_object_that_was_wiped_does_not_come_back_from_memory(store: Store) -> None:
    stored = await add(store, b"small")
    store.objects.body(stored)
    object_file(store, b"small").unlink()

    assert store.objects.find(stored.digest) is None


@pytest.mark.parametrize("wiped", ["", "blobs", "blobs/sha256", "partial", "index", "oci-layout"])
async def test_the_store_works_on_after_a_wipe(store: Store, wiped: str) -> None:
    before = await add(store, b"before")
    path = store.root / wiped
    path.unlink() if path.is_file() else shutil.rmtree(path)

    store.objects.find(before.digest)
    after = await add(store, LARGE)

    assert content(store, after.digest) == LARGE
    assert content(store, before.digest) in (None, b"before")
    again = await reopened(store)
    assert again.health.writable
    await eventually(lambda: content(again, after.digest) == LARGE)
    await again.stop()


@pytest.mark.parametrize("wiped", ["", "partial"])
async def test_a_wipe_while_an_object_comes_in_is_no_error(store: Store, wiped: str) -> None:
    partial = await store.partials.open(digest_of(LARGE))
    await store.partials.append(partial, [LARGE[:100_000]])
    shutil.rmtree(store.root / wiped)
    await store.partials.append(partial, [LARGE[100_000:]])

    assert partial.verified()
    assert await store.commit(partial, within=WITHIN) is None
    assert store.objects.find(digest_of(LARGE)) is None
    assert store.health.writable
    partial.close()
    await add(store, LARGE)


async def test_a_wipe_between_verification_and_commit_of_the_target(store: Store) -> None:
    partial = await store.partials.open(digest_of(LARGE))
    await store.partials.append(partial, [LARGE])
    shutil.rmtree(store.root / "blobs")

    assert await store.commit(partial, within=WITHIN) is not None
    partial.close()
    assert content(store, digest_of(LARGE)) == LARGE


async def test_a_wipe_while_an_object_is_read(store: Store) -> None:
    stored = await add(store, LARGE)
    body = store.objects.body(stored)
    assert isinstance(body, Mapped)
    shutil.rmtree(store.root)

    assert bytes(body.view(0, body.size)) == LARGE
    assert store.objects.find(stored.digest) is None


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
    await eventually(lambda: store.objects.find(digest_of(data)))

    found = store.objects.find(digest_of(data))
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
    await eventually(lambda: store.objects.find(digest_of(data)))

    found = store.objects.find(digest_of(data))
    assert found is not None
    assert found.kind is Kind.BLOB
    assert store.counts[Kind.BLOB] == 1
    await store.stop()


async def test_a_file_without_a_row_is_taken_up_when_it_is_asked_for(store: Store, clock: Clock) -> None:
    path = replace_file(store, MANIFEST, MANIFEST)
    os.utime(path, (clock.now - 500, clock.now - 500))

    found = await store.objects.recover(digest_of(MANIFEST))

    assert found is not None
    assert (found.size, found.media_type, found.within) == (len(MANIFEST), OCI_MANIFEST, ())
    assert (found.created, found.used) == (clock.now, clock.now - 500)
    assert content(store, found.digest) == MANIFEST
    assert await store.objects.recover(found.digest) is found


async def test_nothing_is_there_to_take_up(store: Store) -> None:
    assert await store.objects.recover(digest_of(LARGE)) is None


async def test_a_file_that_is_not_what_its_name_says_is_removed(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    path = replace_file(store, LARGE, LARGE[:-1] + b"!")
    assert await store.objects.recover(digest_of(LARGE)) is None
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

    found = await asyncio.gather(*(store.objects.recover(digest_of(LARGE)) for _ in range(10)))

    assert hashed == [digest_of(LARGE)]
    assert {one.digest for one in found if one} == {digest_of(LARGE)}
    assert None not in found


async def test_a_file_that_takes_long_to_hash_is_taken_up_later(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = await add(store, LARGE)
    store.objects.forget(stored)
    go = threading.Event()
    hash_ = store.objects._hash
    monkeypatch.setattr(store.objects, "_hash", lambda *args: (go.wait(10), hash_(*args))[1])

    assert await store.objects.recover(stored.digest, wait=0.01) is None
    assert store.objects.find(stored.digest) is None
    go.set()
    assert await store.objects.recover(stored.digest) is store.objects.find(stored.digest) is not None


async def test_without_descriptors_nothing_is_removed(store: Store) -> None:
    """A file that cannot be read now is not one that is wrong."""
    path = replace_file(store, LARGE, LARGE)
    await store.objects.recover(digest_of(b"threads are there"))
    with no_descriptors():
        assert await store.objects.recover(digest_of(LARGE)) is None
    assert path.exists()
    assert await store.objects.recover(digest_of(LARGE)) is not None


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
    assert again.tags.variants("docker.io", "a", "1") == ()
    assert set(again.catalog.objects) == {stored.digest, digest_of(b"other")}
    assert content(again, stored.digest) == LARGE
    await again.stop()
