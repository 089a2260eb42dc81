"""Fixtures of the tests of fetches."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cacheyd.settings.load import load
from cacheyd.store.store import Store
from tests.support.fetching import Scene
from tests.support.flights import LARGE, Growing


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    # The wait before a resume is as short as its jitter allows.
    monkeypatch.setattr("cacheyd.cache.blob_fetch.random.uniform", lambda low, high: 0.0)
    store = Store(tmp_path / "cache")
    await store.start()
    yield Scene(store, load(environ={}, flags={"retries": "3", "progress_timeout": "5s"}))
    await store.stop()


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[Growing]:
    growing = Growing(tmp_path, LARGE)
    yield growing
    growing.partial.close()
