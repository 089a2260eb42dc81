"""`cacheyd` with a clock that can be set (SIGUSR1: an hour back) and with constants changed.

HOSTILE_CONSTANTS is a list such as `cacheyd.proxy.inbound.link.HANDSHAKE_DEADLINE=1.5`, with semicolons between;
HOSTILE_SLOW_START delays the opening of the store (seconds); HOSTILE_NAMES names a domain all of whose hosts are at
127.0.0.1; HOSTILE_FAULTS is a list of functions such as `cacheyd.proxy.outbound.connection.FetchConnection._start_tls`:
the one that is named in the file HOSTILE_FAULT_FILE raises.
"""

import asyncio
import importlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
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
    if domain := os.environ.get("HOSTILE_NAMES"):
        _resolve(domain)
    for path in filter(None, os.environ.get("HOSTILE_FAULTS", "").split(";")):
        _break(path)
    if delay := float(os.environ.get("HOSTILE_SLOW_START", "0")):
        _delay_store(delay)

    from cacheyd.cli import main as cacheyd  # noqa: PLC0415

    return cacheyd()


def _resolve(domain: str) -> None:
    real = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **more: Any) -> Any:
        inside = isinstance(host, str) and host.rstrip(".").endswith(f".{domain}")
        return real("127.0.0.1" if inside else host, *arguments, **more)

    socket.getaddrinfo = look_up


def _break(path: str) -> None:
    """What raises is chosen by a file: each test has one of its own."""
    owner, _, name = path.rpartition(".")
    module, _, cls = owner.rpartition(".")
    try:
        holder = getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError):
        holder = importlib.import_module(owner)
    real = getattr(holder, name)
    chosen = Path(os.environ["HOSTILE_FAULT_FILE"])

    def check() -> None:
        if chosen.is_file() and chosen.read_text() == path:
            raise ZeroDivisionError("injected")

    def call(*arguments: Any, **more: Any) -> Any:
        check()
        return real(*arguments, **more)

    async def call_async(*arguments: Any, **more: Any) -> Any:
        check()
        return await real(*arguments, **more)

    setattr(holder, name, call_async if asyncio.iscoroutinefunction(real) else call)


def _delay_store(delay: float) -> None:
    from cacheyd.store.store import Store  # noqa: PLC0415

    start = Store.start

    async def slow_start(self: Store, **arguments: Any) -> None:
        await asyncio.sleep(delay)
        await start(self, **arguments)

    Store.start = slow_start  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
