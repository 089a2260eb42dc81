"""A store on a real disk, for the tests of its parts."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cacheyd.settings.settings import Settings
from cacheyd.store.store import Store
from tests.support.stores import Clock, Evictions, StoppableStore


@pytest.fixture
def settings() -> Settings:
    """The settings of `store`."""
    return Settings()


@pytest.fixture
async def store(
    tmp_path: Path, clock: Clock, monotonic: Clock, settings: Settings, evicted: list[tuple[str, int]]
) -> AsyncIterator[Store]:
    """Everything is read when it has started; there is no background work."""
    store = StoppableStore(
        tmp_path / "cache",
        settings,
        clock=clock,
        monotonic=monotonic,
        events=Evictions(evicted),
    )
    await store.start(background=False)
    yield store
    await store.stop()
