"""Follows a request through the code: records which function of which module it enters, in order."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType

from cacheyd.settings.values import Size
from tests.support.images import make_image
from tests.support.site import HOST, Site, settings_in
from tests.support.stores import Clock

PACKAGE = Path(__file__).parents[2] / "cacheyd"
# The wings whose rooms a request walks through. The others have the words and the tools that every room uses.
WINGS = ("service", "cache", "store", "upstream")
# Small, so that it is written and hashed without a race of two threads.
IMAGE = make_image(layers=1, layer_size=20_000)
TAG, BLOB = "/v2/lab/app/manifests/1.0", f"/v2/lab/app/blobs/{IMAGE.layers[0].digest}"


class Walk:
    """Records each function that is called from another module, once, in the order of the first calls."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self._known: dict[CodeType, str | None] = {}
        # What ran before the request did: the upkeep of the store.
        self._others = asyncio.all_tasks() - {asyncio.current_task()}

    def _step(self, code: CodeType) -> str | None:
        """The step for a function, like `store/objects.py:Objects.find`. None for a function outside of WINGS, or hidden."""
        if code not in self._known:
            path, name = Path(code.co_filename), code.co_qualname
            inside = path.is_relative_to(PACKAGE) and path.relative_to(PACKAGE).parts[0] in WINGS
            hidden = "<" in name or name.rpartition(".")[2].startswith("__")
            self._known[code] = f"{path.relative_to(PACKAGE)}:{name}" if inside and not hidden else None
        return self._known[code]

    def see(self, frame: FrameType, event: str, argument: object) -> None:
        """Records a call; sys.setprofile calls this."""
        if event != "call" or (step := self._step(frame.f_code)) is None or step in self.steps:
            return
        caller = frame.f_back
        if caller is not None and caller.f_code.co_filename == frame.f_code.co_filename:
            return
        if threading.current_thread() is threading.main_thread() and asyncio.current_task() in self._others:
            return
        self.steps.append(step)


@contextmanager
def followed() -> Iterator[Walk]:
    """A context that records the calls of all code in the block, in every thread."""
    walk = Walk()
    threading.setprofile_all_threads(walk.see)
    try:
        yield walk
    finally:
        threading.setprofile_all_threads(None)


async def hit(site: Site) -> list[str]:
    """The steps for a blob that is stored."""
    await site.ask(BLOB)
    return await _steps(lambda: site.ask(BLOB), "HIT")


async def miss(site: Site) -> list[str]:
    """The steps for a blob that no client has asked for."""
    await site.ask(TAG)
    return await _steps(lambda: site.ask(BLOB), "MISS")


async def revalidation(site: Site) -> list[str]:
    """The steps for a tag that is no longer fresh."""
    await site.ask(TAG)
    site.clock.now += 61
    site.monotonic.now += 61
    return await _steps(lambda: site.ask(TAG), "REVALIDATED")


async def eviction(site: Site) -> list[str]:
    """The steps for a blob for which another blob must be evicted."""
    registry = site.transport.registry(HOST)
    blobs = [f"/v2/lab/app/blobs/{registry.add_blob('lab/app', bytes([n]) * 20_000)}" for n in range(3)]
    for blob in blobs[:2]:
        site.clock.now += 1
        await site.ask(blob)
    site.service.reload(replace(site.service.live.settings, max_size=Size(50_000)))
    return await _steps(lambda: site.ask(blobs[2]), "MISS")


async def _steps(ask: Callable[[], Awaitable[tuple[object, bytes]]], result: str) -> list[str]:
    with followed() as walk:
        answer, _ = await ask()
    assert getattr(answer, "result", "") == result
    return walk.steps


WALKS: Mapping[str, Callable[[Site], Awaitable[list[str]]]] = {
    "hit": hit, "miss": miss, "revalidation": revalidation, "eviction": eviction,
}  # fmt: skip


async def walked(name: str, directory: Path) -> list[str]:
    """The steps of one walk, in a new service with its files in `directory`."""
    site = Site(settings_in(directory), Clock(1_700_000_000.0), Clock(1000.0))
    site.transport.push(HOST, "lab/app", "1.0", IMAGE)
    await site.service.start()
    while not site.service.components.store.loaded:
        await asyncio.sleep(0.001)
    try:
        return await WALKS[name](site)
    finally:
        await site.stop()
