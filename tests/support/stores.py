"""Common parts of the tests of the store: a clock that tests move, objects to store, the rows on disk."""

import asyncio
import json
import os
import resource
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, override

from cacheyd.observe.events import Events
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from cacheyd.settings.settings import Settings
from cacheyd.store.mapped import Mapped
from cacheyd.store.records import Stored, TagVariant
from cacheyd.store.store import Store

WITHIN = "docker.io/library/nginx"
LARGE = bytes(range(256)) * 1024
MANIFEST = json.dumps({"schemaVersion": 2, "config": {}, "layers": []}).encode()
ASKED = frozenset({OCI_INDEX, OCI_MANIFEST, DOCKER_MANIFEST})


class Clock:
    """A clock that stands still until the test moves it."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The clock's time (seconds)."""
        return self.now


class Evictions(Events):
    """Records each eviction: the reason, and the number of objects."""

    def __init__(self, found: list[tuple[str, int]]) -> None:
        self._found = found

    @override
    def evicted(self, reason: str, count: int) -> None:
        self._found.append((reason, count))


class StoppableStore(Store):
    """A store that a test can stop a second time."""

    def __init__(
        self,
        root: Path,
        settings: Settings | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        super().__init__(root, settings, monotonic=monotonic, **options)
        self.monotonic = monotonic
        self._stopped = False

    async def stop(self) -> None:
        """Stops the store; does nothing the second time."""
        if not self._stopped:
            self._stopped = True
            await super().stop()


async def add(store: Store, data: bytes, media_type: str = "", within: str = WITHIN) -> Stored:
    """Stores an object in the way of a fetch."""
    partial = await store.partials.open(digest_of(data))
    await store.partials.append(partial, [data])
    assert partial.verified()
    stored = await store.commit(partial, media_type, within=within, manifest=data if media_type else None)
    store.partials.release(partial)
    assert stored is not None
    return stored


@contextmanager
def no_descriptors() -> Iterator[None]:
    """A context in which no file can be opened. Open files still work, also in other threads.

    The limit is the lowest free descriptor, because a limit below a polled descriptor would break the other threads.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def eventually(holds: Callable[[], object], seconds: float = 5.0) -> None:
    """Waits until `holds` returns true."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)


async def reopened(store: Store, **options: Any) -> Store:
    """Stops the store, and opens its directory again, like the next process."""
    await store.stop()
    again = StoppableStore(
        store.root, store.settings, clock=store.clock, **{"monotonic": getattr(store, "monotonic", time.monotonic)} | options
    )
    await again.start(background=False)
    return again


def beside(store: Store, monotonic: Callable[[], float] = time.monotonic) -> StoppableStore:
    """A second store on the same directory, like another process."""
    return StoppableStore(store.root, store.settings, monotonic=monotonic)


def content(store: Store, digest: str) -> bytes | None:
    """The bytes that a hit serves; None if the object is not stored."""
    stored = store.objects.find(digest)
    body = store.objects.body(stored) if stored else None
    return bytes(body.view(0, body.size)) if isinstance(body, Mapped) else body


def object_file(store: Store, data: bytes) -> Path:
    """The path of an object's file. The file need not exist."""
    return Path(store.blobs.path(digest_of(data)))


def replace_file(store: Store, data: bytes, other: bytes) -> Path:
    """Replaces an object's file by another file with other bytes and another time. cacheyd itself never does this."""
    path = object_file(store, data)
    path.unlink(missing_ok=True)
    path.write_bytes(other)
    return path


def rows(store: Store) -> dict[str, dict[str, Any]]:
    """The rows of objects and tags in the index on disk."""
    database = store.root / "index" / "cache.db"
    if not database.exists():
        return {}
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT key, value FROM Cache")
        return {key: json.loads(value) for key, value in found if key[:2] in ("o:", "t:")}


def variant(n: int, asked: frozenset[str] = ASKED, at: float = 1_700_000_000.0) -> TagVariant:
    """The `n`-th variant of a tag."""
    return TagVariant(asked, digest_of(str(n).encode()), OCI_INDEX, n, at)
