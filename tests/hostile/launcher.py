"""`cacheyd` with a clock that can be set (SIGUSR1: an hour back) and with constants changed.

HOSTILE_CONSTANTS is a list such as `cacheyd.proxy.link.HANDSHAKE_DEADLINE=1.5`, with semicolons between; HOSTILE_SLOW_START
delays the opening of the store (seconds).
"""

import asyncio
import importlib
import json
import os
import signal
import sys
import time
from types import FrameType
from typing import Any

HOUR = 3600.0


def main() -> int:
    """Runs the command line after the changes."""
    real, offset = time.time, 0.0

    def set_back(signum: int, frame: FrameType | None) -> None:
        nonlocal offset
        offset -= HOUR

    signal.signal(signal.SIGUSR1, set_back)
    # Before anything takes it as a default.
    time.time = lambda: real() + offset

    for change in filter(None, os.environ.get("HOSTILE_CONSTANTS", "").split(";")):
        path, _, value = change.partition("=")
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), path
        setattr(importlib.import_module(module), name, json.loads(value))
    if delay := float(os.environ.get("HOSTILE_SLOW_START", "0")):
        _delay_store(delay)

    from cacheyd.cli import main as cacheyd  # noqa: PLC0415

    return cacheyd()


def _delay_store(delay: float) -> None:
    from cacheyd.store.store import Store  # noqa: PLC0415

    start = Store.start

    async def slow_start(self: Store, **arguments: Any) -> None:
        await asyncio.sleep(delay)
        await start(self, **arguments)

    Store.start = slow_start  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
