"""Pulls images into the cache before clients need them, through the same decisions and flights as clients' pulls."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from cacheyd.admin.command import Command, telling
from cacheyd.admin.image_orders import Warm
from cacheyd.admin.reasons import Reason, told
from cacheyd.admin.referrers import Referrers
from cacheyd.admin.session import Failed, Session, close
from cacheyd.admin.tree import Tree
from cacheyd.cache.cache import Cache
from cacheyd.cache.flight import Flight, NotKept
from cacheyd.cache.flight_reader import FlightReader
from cacheyd.observe.wording import counted
from cacheyd.protocol.descriptors import Descriptor
from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.images import ImageName
from cacheyd.protocol.reference import Kind
from cacheyd.upstream.port import Transport

log = logging.getLogger(__name__)

# How often a layer's progress is told (seconds), and the number of unread events from which on it is not told.
TELL_EVERY, MAX_UNREAD = 0.2, 1000
SKIPPED = "SKIPPED"

type Event = dict[str, Any]


class Warmer:
    """Warms the images of one order, one after another, and the layers of each image in parallel. `tell` gets the events."""

    def __init__(self, cache: Cache, transport: Transport, order: Warm, tell: Callable[[Event], None]) -> None:
        self._cache = cache
        self._transport = transport
        self._order = order
        self._tell = tell
        self._turns = asyncio.Semaphore(order.layers)

    async def run(self) -> Event:
        """Warms all images. Gives their number, how many failed, and how many lack only some of their referrers."""
        failed = without = 0
        for image in self._order.images:
            outcome = await self._image(image)
            failed += outcome["event"] == "failed"
            without += "referrers_failed" in outcome
            self._tell(outcome)
        more = {"referrers_failed": without} if without else {}
        return {"images": len(self._order.images), "failed": failed, **more}

    async def _image(self, image: ImageName) -> Event:
        """Warms one image. Gives the event `done` if all of the image is in the cache now, else the event `failed`.

        If the image is complete but a referrer is missing, `done` says why. Never raises Failed.
        """
        name = str(image)
        self._tell({"event": "image", "image": name})
        session = Session(self._cache, self._transport, image, self._order.logins.get(name, ""))
        tree = Tree(session, self._order.platforms, attested=self._order.referrers)
        referrers = Referrers(session, tree)
        try:
            root = await tree.grow(image.reference)
        except Failed as error:
            return self._failed(name, str(error))
        own, count = frozenset(tree.blobs), len(tree.reasons)
        if self._order.referrers:
            await referrers.grow()
        lacks = await self._lacks(name, session, tree)
        if reasons := [*tree.reasons[:count], *(lack for lack in lacks if lack.what in own)]:
            return self._failed(name, told(reasons))
        size = sum(blob.size for blob in tree.blobs.values() if not blob.foreign)
        log.info("warmed %s: %s, %d bytes", name, root, size)
        done: Event = {"event": "done", "image": name, "digest": root, "bytes": size}
        if self._order.referrers:
            done["referrers"] = referrers.count
        if session.held:
            done["held"] = session.held
        if reasons := [*tree.reasons[count:], *(lack for lack in lacks if lack.what not in own)]:
            done["referrers_failed"] = told(reasons)
            log.warning("some referrers of %s are missing: %s", name, done["referrers_failed"])
        return done

    def _failed(self, name: str, reason: str) -> Event:
        log.warning("warming %s failed: %s", name, reason)
        return {"event": "failed", "image": name, "reason": reason}

    async def _lacks(self, name: str, session: Session, tree: Tree) -> list[Reason]:
        """The parts that are not in the cache after the fetches, and why."""
        found = await self._layers(name, session, tree.blobs)
        found += [Reason(digest, why) for digest, why in tree.doubts.items() if await session.is_manifest(digest)]
        known = {lack.what for lack in found}
        kept = [blob.digest for blob in tree.blobs.values() if not blob.foreign and blob.digest not in known]
        gone = [digest for digest in kept if not session.is_kept(digest)]
        why = f"{len(gone)} of {counted(len(tree.blobs), 'layer')} were removed again: max_size or the disk is too small"
        return [*found, *(Reason(digest, why) for digest in gone)]

    async def _layers(self, name: str, session: Session, blobs: Mapping[str, Descriptor]) -> list[Reason]:
        """Fetches configs and layers; gives a reason for each one that is not in the cache afterwards."""
        async with asyncio.TaskGroup() as group:
            tasks = {blob.digest: group.create_task(self._layer(name, session, blob)) for blob in blobs.values()}
        return [Reason(digest, why) for digest, task in tasks.items() if (why := task.result())]

    async def _layer(self, name: str, session: Session, blob: Descriptor) -> str:
        """Fetches a layer into the cache. Gives the reason if this failed, else an empty text."""
        event = {"event": "layer", "image": name, "digest": blob.digest, "size": blob.size}
        if blob.foreign:
            self._tell({**event, "event": "layer-done", "result": SKIPPED})
            return ""
        async with self._turns:
            try:
                result = await self._fetch(session, blob, lambda received: self._tell({**event, "received": received}))
            except Failed as error:
                self._tell({**event, "event": "layer-failed", "reason": str(error)})
                return str(error)
        self._tell({**event, "event": "layer-done", "result": result})
        return ""

    async def _fetch(self, session: Session, blob: Descriptor, progress: Callable[[int], None]) -> str:
        """Fetches the blob into the cache; gives the result of the answer (hit, miss and so on). Raises Failed."""
        progress(0)
        answer = await session.get(Kind.BLOB, blob.digest)
        flight = answer.source.flight if isinstance(answer.source, FlightReader) else None
        close(answer)
        if flight is not None:
            await self._follow(flight, blob, progress)
        elif answer.stored is None:
            raise Failed(self._not_kept(blob.size))
        return answer.result

    async def _follow(self, flight: Flight, blob: Descriptor, progress: Callable[[int], None]) -> None:
        """Waits until the flight has ended, with its blob verified and on the disk. Raises Failed."""
        told = time.monotonic()
        with flight.wanted():
            while not flight.ended:
                await flight.changed()
                if time.monotonic() - told >= TELL_EVERY:
                    told = time.monotonic()
                    progress(flight.received)
        if isinstance(flight.error, RequestError):
            raise Failed(flight.error.failure.message)
        if flight.error is not None and not isinstance(flight.error, NotKept):
            raise Failed(str(flight.error))
        if flight.stored is None:
            raise Failed(self._not_kept(flight.size or blob.size))

    def _not_kept(self, size: int) -> str:
        store = self._cache.store
        if not store.health.writable:
            return "not kept: the disk refuses writes"
        largest = store.settings.max_size.of(store.blobs.total())
        if largest and size > largest:
            return f"not kept: larger than max_size ({size} of {largest} bytes)"
        return "not kept: there is no room on the disk"


async def warm(cache: Cache, transport: Transport, order: Warm) -> AsyncGenerator[Event]:
    """Warms an order while the caller iterates; the last event is the summary. If the caller stops, running flights go on."""
    events: asyncio.Queue[Event | None] = asyncio.Queue()

    def tell(event: Event) -> None:
        if event["event"] != "layer" or events.qsize() < MAX_UNREAD:
            events.put_nowait(event)

    task = asyncio.create_task(Warmer(cache, transport, order, tell).run())
    task.add_done_callback(lambda _: events.put_nowait(None))
    try:
        while (event := await events.get()) is not None:
            yield event
        yield {"event": "end", **task.result()}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def warm_command(cache: Cache, transport: Transport) -> Command[Warm]:
    """The command `warm`. It sends each event as progress."""
    return telling(Warm, lambda order: warm(cache, transport, order))
