"""Fixtures of the tests of what is listed, removed and warmed."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cacheyd.store.store import Store
from tests.support.origin import Origin
from tests.support.snapshots import Content
from tests.support.warming import Scene


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as running:
        yield running


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path / "cache")
    await store.start()
    yield store
    await store.stop()


@pytest.fixture
def scene(store: Store, origin: Origin, tmp_path: Path) -> Scene:
    return Scene(store, origin, tmp_path)


@pytest.fixture
def content() -> Content:
    return Content()
