"""What the store itself takes, in a process of its own: `inside.py times|memory DIRECTORY` prints figures as JSON.

`times` changes the directory: it stores images and evicts others.
"""

import asyncio
import gc
import json
import random
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from cacheyd.settings.settings import Settings
from cacheyd.settings.values import Size
from cacheyd.store.records import TagVariant
from cacheyd.store.store import Store
from tests.bench.population import ASKED, REGISTRY, Image, images
from tests.bench.results import (
    COMMIT,
    EVICT,
    EVICT_STALL,
    FIND,
    HIT,
    HIT_FILE,
    LOAD_STALL,
    RECONCILE_STALL,
    SAVE_STALL,
    TAG,
    TRACED,
)

SAMPLE = 500
NEW_IMAGES = 60
# So many objects go at most, and half of a small store.
MAX_EVICTED = 10_000
TICK = 0.0005
LINES = 14


@dataclass(slots=True)
class Stall:
    """The longest that the event loop had no turn for others (seconds)."""

    longest: float = 0.0


@asynccontextmanager
async def ticking() -> AsyncIterator[Stall]:
    """Watches the event loop meanwhile."""
    stall = Stall()

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(TICK)
            now = time.perf_counter()
            stall.longest = max(stall.longest, now - last - TICK)
            last = now

    task = asyncio.create_task(tick())
    await asyncio.sleep(0.02)
    stall.longest = 0.0
    try:
        yield stall
        await asyncio.sleep(0.002)
    finally:
        task.cancel()


def _each(function: Callable[[str], object], keys: list[str]) -> float:
    """Microseconds for each key."""
    started = time.perf_counter()
    for key in keys:
        function(key)
    return (time.perf_counter() - started) / len(keys) * 1e6


def _hit(store: Store, digest: str) -> None:
    stored = store.objects.find(digest)
    if stored is None or store.objects.body(stored) is None:
        raise RuntimeError(f"{digest} is not there")
    store.objects.touch(digest)


def _tag_hit(store: Store, name: str) -> None:
    repository, _, tag = name.removeprefix(f"{REGISTRY}/").rpartition(":")
    variants = store.tags.variants(REGISTRY, repository, tag)
    if store.objects.find(variants[0].digest) is None:
        raise RuntimeError(f"{name} is not there")


async def _store_image(store: Store, image: Image) -> int:
    """As a pull does it, from the index down; how many objects."""
    now, within = time.time(), f"{REGISTRY}/{image.repository}"
    for thing in image.things:
        if thing.media_type:
            if await store.put(thing.digest, thing.data, thing.media_type, within=within) is None:
                raise RuntimeError(f"{thing.digest} could not be stored")
        else:
            partial = await store.partials.open(thing.digest)
            await store.partials.append(partial, [thing.data])
            await store.commit(partial, within=within)
            store.partials.release(partial)
    for asked in ASKED:
        index = image.index
        store.tags.set(REGISTRY, image.repository, image.tag, TagVariant(asked, index.digest, index.media_type, 1, now))
    return len(image.things)


async def times(directory: Path) -> dict[str, float]:
    """Hits, commits and evictions (microseconds each), and the longest stall of each kind of work (milliseconds)."""
    figures: dict[str, float] = {}
    store = Store(directory, Settings(max_size=Size(0), min_free=Size(0)))
    async with ticking() as stall:
        await store.start(background=False)
    figures[LOAD_STALL] = stall.longest * 1e3
    async with ticking() as stall:
        await store.upkeep.reconciliation.reconcile()
    figures[RECONCILE_STALL] = stall.longest * 1e3
    numbers = random.Random(4)
    sample = numbers.sample(sorted(store.catalog.objects), SAMPLE)
    tags = numbers.choices(sorted(store.catalog.tags), k=SAMPLE)
    figures[FIND] = _each(store.objects.find, sample)
    figures[HIT_FILE] = _each(lambda digest: _hit(store, digest), sample)
    figures[HIT] = min(_each(lambda digest: _hit(store, digest), sample) for _ in range(5))
    figures[TAG] = min(_each(lambda name: _tag_hit(store, name), tags) for _ in range(5))
    new = list(islice(images(seed=9), NEW_IMAGES))
    started = time.perf_counter()
    count = sum([await _store_image(store, image) for image in new])
    figures[COMMIT] = (time.perf_counter() - started) / count * 1e6
    await store.upkeep.journal.save()
    store.catalog.used_objects.update(store.catalog.objects)
    async with ticking() as stall:
        await store.upkeep.journal.save()
    figures[SAVE_STALL] = stall.longest * 1e3
    await _evict(store, figures)
    await store.stop()
    return figures


async def _evict(store: Store, figures: dict[str, float]) -> None:
    before = len(store.catalog.objects)
    kept = 1 - min(0.5, MAX_EVICTED / before)
    store.live.change(replace(store.settings, max_size=Size(store.size - 1), low_watermark=Size(share=kept)))
    started = time.perf_counter()
    async with ticking() as stall:
        await store.bounds.keep()
    figures[EVICT] = (time.perf_counter() - started) / (before - len(store.catalog.objects)) * 1e6
    figures[EVICT_STALL] = stall.longest * 1e3


async def memory(directory: Path) -> dict[str, float]:
    """What tracemalloc counts for the catalogue, in bytes: all of it, and the lines that take most."""
    store = Store(directory, Settings(max_size=Size(0), min_free=Size(0)))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    await store.start(background=False)
    gc.collect()
    figures = {TRACED: float(tracemalloc.get_traced_memory()[0] - before)}
    for line in tracemalloc.take_snapshot().statistics("lineno")[:LINES]:
        frame = line.traceback[0]
        figures[f"{Path(frame.filename).name}:{frame.lineno}"] = float(line.size)
    tracemalloc.stop()
    await store.stop()
    return figures


def main(what: str, directory: str) -> None:
    """Prints the figures."""
    measure = {"times": times, "memory": memory}[what]
    json.dump(asyncio.run(measure(Path(directory))), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
