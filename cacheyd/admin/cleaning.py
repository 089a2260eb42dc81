"""The commands that clean the store up: `rm`, `gc`, `verify`."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from itertools import batched
from typing import Any

from cacheyd.admin.command import Command, command, in_thread
from cacheyd.admin.control import Reply
from cacheyd.admin.inventory import Inventory
from cacheyd.admin.orders import Gc, Rm, Verify
from cacheyd.admin.removal import Removal, removal_of, removal_of_everything, unreferenced
from cacheyd.observe.wording import counted, shown_size
from cacheyd.protocol.reference import Kind
from cacheyd.store.store import Store

log = logging.getLogger(__name__)

# The number of objects that are removed at once, and how often progress is reported (seconds).
BATCH, TELL_EVERY = 200, 0.2
# How long a blob without a manifest must be unused before it is removed (seconds): its manifest can still be on its way.
UNREFERENCED_AGE = 3600.0


class Cleaning:
    """Runs the commands that clean a store up."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def commands(self) -> tuple[Command[Any], ...]:
        """The commands of this module."""
        return command(Rm, self._rm), command(Gc, self._gc), command(Verify, self._verify)

    async def _rm(self, order: Rm) -> AsyncIterator[Reply]:
        inventory, dry_run = Inventory(self._store.catalog.snapshot()), order.dry_run
        removal = await in_thread(
            lambda: removal_of_everything(inventory) if order.everything else removal_of(inventory, order.targets)
        )
        removed, size = (len(removal.objects), removal.bytes) if dry_run else await self._remove(removal)
        if order.everything and not dry_run:
            await self._store.partials.drop_idle()
        if removed and not dry_run:
            log.info("removed on request: %s, %s", counted(removed, "object"), shown_size(size))
        yield {
            "result": {
                "dry_run": dry_run,
                "images": removal.images,
                "stays": removal.stays,
                "tags": len(removal.tags),
                "objects": removed,
                "bytes": size,
                "kept": len(removal.objects) + removal.kept - removed,
                "not_found": removal.not_found,
            }
        }

    async def _remove(self, removal: Removal) -> tuple[int, int]:
        """Removes tags and objects; gives the number of removed objects and their bytes.

        An object stays if an image that came during the removal needs it.
        """
        store = self._store
        for name in removal.tags:
            store.tags.remove(name)
        going = set(removal.objects)
        count = size = 0
        # Manifests are removed first: so if the removal stops halfway, only blobs are left, which no client asks for.
        order = sorted(removal.objects, key=self._is_blob)
        for batch in batched(order, BATCH):
            free = [d for d in batch if d in removal.asked or going.issuperset(store.catalog.parents(d))]
            gone = await store.objects.remove(free, "removed")
            count, size = count + gone[0], size + gone[1]
        return count, size

    def _is_blob(self, digest: str) -> bool:
        stored = self._store.catalog.objects.get(digest)
        return stored is not None and stored.kind is Kind.BLOB

    async def _gc(self, order: Gc) -> AsyncIterator[Reply]:
        result: dict[str, Any] = dict(await self._store.collect())
        if order.unreferenced:
            inventory = Inventory(self._store.catalog.snapshot())
            before = self._store.clock() - UNREFERENCED_AGE
            blobs = await asyncio.to_thread(unreferenced, inventory, before)
            count, size = await self._remove(Removal(objects=blobs))
            result["unreferenced"] = count
            result["freed"] += size
            result["objects"] -= count
        yield {"result": result}

    async def _verify(self, _: Verify) -> AsyncIterator[Reply]:
        told: asyncio.Queue[Reply | None] = asyncio.Queue()
        last = 0.0

        def progress(done: int, total: int, size: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= TELL_EVERY or done == total:
                last = now
                told.put_nowait({"progress": {"done": done, "total": total, "bytes": size}})

        work = asyncio.create_task(self._store.upkeep.scrub.verify(progress))
        work.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (reply := await told.get()) is not None:
                yield reply
            yield {"result": await work}
        finally:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await work
