"""Fixtures of the tests of the store."""

import pytest

from tests.support.stores import Clock


@pytest.fixture
def clock() -> Clock:
    """The time of day."""
    return Clock()


@pytest.fixture
def monotonic() -> Clock:
    """The clock that never jumps."""
    return Clock(1000.0)


@pytest.fixture
def evicted() -> list[tuple[str, int]]:
    """Reason and number of objects of each eviction."""
    return []
