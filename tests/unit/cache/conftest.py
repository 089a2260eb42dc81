"""The scenes of the cache's unit tests."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from cacheyd.settings.load import load
from cacheyd.store.store import Store
from tests.support.cache_scene import Scene
from tests.support.memory_store import MemoryStore
from tests.support.stores import Clock


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr("cacheyd.cache.fetch.random.uniform", lambda low, high: 0.0)
    clock = Clock()
    store = Store(tmp_path / "cache", clock=clock)
    await store.start()
    scene = Scene(store, clock)
    scene.registry.stock()
    yield scene
    await scene.fetcher.stop()
    await store.stop()


@pytest.fixture
async def tight() -> AsyncIterator[Scene]:
    """A cache in memory that has no room for `BLOB`."""
    clock = Clock()
    store = MemoryStore(load(environ={}, flags={"max_size": "100kB"}), clock=clock)
    scene = Scene(cast(Store, store), clock)
    scene.registry.stock()
    yield scene
    await scene.fetcher.stop()
    await store.stop()
