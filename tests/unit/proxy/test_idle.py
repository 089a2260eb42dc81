"""The watchdog of connections on which nothing happens."""

import asyncio
import time

import pytest

from cacheyd.proxy.inbound.idle import Idle
from tests.support.stores import eventually


async def test_idle_is_counted_by_a_clock_that_nobody_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    idle = Idle(0.1, lambda: ended.append(True))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with idle.disarm():
        await asyncio.sleep(0.15)
        assert not ended
    await asyncio.sleep(0.05)
    idle.register_activity()
    await asyncio.sleep(0.06)
    assert not ended
    await eventually(lambda: ended)
    idle.stop()
