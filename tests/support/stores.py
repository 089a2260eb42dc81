"""What tests of the store share: a clock to move, objects to put in, a look at the rows on disk."""

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
    """Stands still until the test moves it."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The time."""
        return self.now


class Evictions(Events):
    """Notes why how many objects went."""

    def __init__(self, found: list[tuple[str, int]]) -> None:
        self._found = found

    @override
    def evicted(self, reason: str, count: int) -> None:
        self._found.append((reason, count))


class StoppableStore(Store):
    """A store that the test may have stopped already."""

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
        """Stops it once."""
        if not self._stopped:
            self._stopped = True
            await super().stop()


async def add(store: Store, data: bytes, media_type: str = "", within: str = WITHIN) -> Stored:
    """What a fetch does."""
    partial = await store.partials.open(digest_of(data))
    await store.partials.append(partial, [data])
    assert partial.verified()
    stored = await store.commit(partial, media_type, within=within, manifest=data if media_type else None)
    store.partials.release(partial)
    assert stored is not None
    return stored


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Nothing can be opened; what is open works, also for other threads (a limit below what is polled would end those)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def eventually(holds: Callable[[], object], seconds: float = 5.0) -> None:
    """Waits until it does."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)


async def reopened(store: Store, **options: Any) -> Store:
    """The same directory in the next process."""
    await store.stop()
    again = StoppableStore(
        store.root, store.settings, clock=store.clock, **{"monotonic": getattr(store, "monotonic", time.monotonic)} | options
    )
    await again.start(background=False)
    return again


def beside(store: Store, monotonic: Callable[[], float] = time.monotonic) -> StoppableStore:
    """Another process for the same directory."""
    return StoppableStore(store.root, store.settings, monotonic=monotonic)


def content(store: Store, digest: str) -> bytes | None:
    """What a hit serves."""
    stored = store.objects.find(digest)
    body = store.objects.body(stored) if stored else None
    return bytes(body.view(0, body.size)) if isinstance(body, Mapped) else body


def object_file(store: Store, data: bytes) -> Path:
    """Where an object is, or would be."""
    return Path(store.blobs.path(digest_of(data)))


def replace_file(store: Store, data: bytes, other: bytes) -> Path:
    """Puts other bytes in the place of an object, as no cacheyd would: another file, from another time."""
    path = object_file(store, data)
    path.unlink(missing_ok=True)
    path.write_bytes(other)
    return path


def rows(store: Store) -> dict[str, dict[str, Any]]:
    """What of objects and tags is on disk."""
    database = store.root / "index" / "cache.db"
    if not database.exists():
        return {}
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT key, value FROM Cache")
        return {key: json.loads(value) for key, value in found if key[:2] in ("o:", "t:")}


def variant(n: int, asked: frozenset[str] = ASKED, at: float = 1_700_000_000.0) -> TagVariant:
    """The `n`-th meaning of a tag."""
    return TagVariant(asked, digest_of(str(n).encode()), OCI_INDEX, n, at)
