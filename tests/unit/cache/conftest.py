"""The scenes of the cache's unit tests."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import pytest

from cacheyd.settings.load import load
from cacheyd.store.store import Store
from tests.support import cache_scene, fetching
from tests.support.flights import LARGE, Growing
from tests.support.memory_store import MemoryStore
from tests.support.stores import Clock


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[cache_scene.Scene]:
    """A whole cache, with a registry that is played."""
    monkeypatch.setattr("cacheyd.cache.blob_fetch.random.uniform", lambda low, high: 0.0)
    clock = Clock()
    store = Store(tmp_path / "cache", clock=clock)
    await store.start()
    scene = cache_scene.Scene(store, clock)
    scene.registry.stock()
    yield scene
    await scene.fetcher.stop()
    await store.stop()


@pytest.fixture
async def tight() -> AsyncIterator[cache_scene.Scene]:
    """A cache in memory that has no room for `BLOB`."""
    clock = Clock()
    store = MemoryStore(load(environ={}, flags={"max_size": "100kB"}), clock=clock)
    scene = cache_scene.Scene(cast(Store, store), clock)
    scene.registry.stock()
    yield scene
    await scene.fetcher.stop()
    await store.stop()


@pytest.fixture(name="fetching")
async def a_fetcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[fetching.Scene]:
    """A fetcher alone, with an upstream that follows a script."""
    # The wait before a resume is as short as its jitter allows.
    monkeypatch.setattr("cacheyd.cache.blob_fetch.random.uniform", lambda low, high: 0.0)
    store = Store(tmp_path / "cache")
    await store.start()
    yield fetching.Scene(store, load(environ={}, flags={"retries": "3", "progress_timeout": "5s"}))
    await store.stop()


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[Growing]:
    """A flight whose file grows."""
    growing = Growing(tmp_path, LARGE)
    yield growing
    growing.partial.close()
