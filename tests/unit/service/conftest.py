"""A service over registries in memory, with a real store, and clocks that the tests move."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cacheyd.settings.settings import Settings
from tests.support.site import Site, settings_in
from tests.support.stores import Clock


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """One registry in memory, whose tags hold for a minute."""
    return settings_in(tmp_path)


@pytest.fixture
async def site(settings: Settings, clock: Clock, monotonic: Clock) -> AsyncIterator[Site]:
    """A service that runs."""
    site = Site(settings, clock, monotonic)
    await site.service.start()
    yield site
    await site.stop()
