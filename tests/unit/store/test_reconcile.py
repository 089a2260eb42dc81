"""Files, rows, partial files and old tags are brought together."""

import asyncio
import os
import time
from dataclasses import replace

import pytest

from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import OCI_MANIFEST
from cacheyd.settings.load import load
from cacheyd.store.partial import Partial
from cacheyd.store.reconcile import PARTIAL_AGE, TAG_AGE, TAG_AGE_HELD
from cacheyd.store.store import Store
from tests.support.stores import (
    LARGE,
    MANIFEST,
    Clock,
    add,
    object_file,
    replace_file,
    rows,
    variant,
)

DAY = 86400.0


# Looking through everything


async def test_tags_without_objects_are_forgotten_after_a_while(store: Store, clock: Clock) -> None:
    stored = await add(store, MANIFEST, OCI_MANIFEST)
    store.tags.set("docker.io", "a", "kept", replace(variant(1), digest=stored.digest))
    store.tags.set("docker.io", "a", "old", variant(1))
    clock.now += TAG_AGE - 1
    store.tags.set("docker.io", "a", "new", variant(1, at=clock.now))
    assert (await store.upkeep.reconciliation.reconcile())["tags"] == 0
    clock.now += 1

    assert (await store.upkeep.reconciliation.reconcile())["tags"] == 1
    assert set(store.catalog.tags) == {"docker.io/a:kept", "docker.io/a:new"}
    clock.now -= 10 * DAY
    assert (await store.upkeep.reconciliation.reconcile())["tags"] == 1, "of the future"


async def test_with_min_age_they_are_known_for_longer(store: Store, clock: Clock) -> None:
    """What a tag was before is what clients get while the next one is too young."""
    store.live.change(load(environ={}, flags={"min_ages": "docker.io/a=1d"}))
    store.tags.set("docker.io", "a", "old", variant(1))
    clock.now += TAG_AGE_HELD - 1
    assert (await store.upkeep.reconciliation.reconcile())["tags"] == 0
    clock.now += 1
    assert (await store.upkeep.reconciliation.reconcile())["tags"] == 1


async def test_partial_files_are_swept_after_a_day_but_never_one_under_way(store: Store) -> None:
    under_way = await store.partials.open(digest_of(b"under way"))
    await store.partials.append(under_way, [b"x"])
    paths = []
    for n in range(2):
        partial = await store.partials.open(digest_of(bytes([n])))
        await store.partials.append(partial, [b"x" * 100])
        store.partials.release(partial)
        paths.append(partial.path)
    for path in (under_way.path, paths[0]):
        os.utime(path, (time.time() - PARTIAL_AGE - 60,) * 2)

    assert (await store.upkeep.reconciliation.reconcile())["partials"] == 1

    assert sorted((store.root / "partial").iterdir()) == sorted([under_way.path, paths[1]])
    assert store.partials.size == 101
    store.partials.release(under_way)


async def test_what_is_fetched_during_a_look_through_is_counted_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = await store.partials.open(digest_of(LARGE))
    await store.partials.append(partial, [b"x" * 100])
    store.partials.release(partial)
    await store.upkeep.reconciliation.reconcile()
    assert store.partials.size == 100

    opened: list[Partial] = []
    sweep = store.partials.directory.sweep

    def sweep_slowly(older_than: float) -> tuple[int, dict[str, int]]:
        found = sweep(older_than)
        opened.append(asyncio.run_coroutine_threadsafe(store.partials.open(digest_of(LARGE)), loop).result(5))
        return found

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(store.partials.directory, "sweep", sweep_slowly)
    await store.upkeep.reconciliation.reconcile()

    assert store.partials.size == 100
    assert not store.partials.idle
    store.partials.release(opened[0])


async def test_collecting_does_all_of_it_now(store: Store, clock: Clock) -> None:
    for n in range(5):
        await add(store, bytes([n]) * 1000)
    lost, wrong, new = bytes([0]) * 1000, bytes([1]) * 1000, b"new"
    object_file(store, lost).unlink()
    replace_file(store, wrong, b"wrong")
    replace_file(store, new, new)
    store.tags.set("docker.io", "a", "1", variant(1, at=clock.now - 2 * TAG_AGE))
    store.live.change(load(environ={}, flags={"max_size": "2500", "min_free": "0"}))

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
