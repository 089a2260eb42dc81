"""The commands that show the store: `ls`, `du`, `stats`."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from cacheyd.admin.command import Command, command, in_rows, in_thread
from cacheyd.admin.control import Reply
from cacheyd.admin.inventory import Inventory
from cacheyd.admin.listing import Listing
from cacheyd.admin.orders import Du, Ls, Stats
from cacheyd.admin.usage import disk_usage
from cacheyd.protocol.reference import Kind
from cacheyd.store.store import Store


class Looking:
    """Runs the commands that show a store. `running` gives the counters of the process that serves, None if there is none."""

    def __init__(self, store: Store, running: Callable[[], Mapping[str, object]] | None = None) -> None:
        self._store = store
        self._running = running

    def commands(self) -> tuple[Command[Any], ...]:
        """The commands of this module."""
        return command(Ls, self._ls), command(Du, self._du), command(Stats, self._stats)

    async def _ls(self, order: Ls) -> AsyncIterator[Reply]:
        store = self._store
        listing = Listing(Inventory(store.catalog.snapshot()), store.blobs.read, store.settings.pin)
        rows = listing.blobs(order.patterns) if order.blobs else listing.images(order.patterns)
        found = await in_thread(lambda: list(in_rows(rows)))
        for reply in found:
            yield reply
        yield {"result": {"count": sum(len(reply["rows"]) for reply in found)}}

    async def _du(self, _: Du) -> AsyncIterator[Reply]:
        inventory = Inventory(self._store.catalog.snapshot())
        yield {"result": await asyncio.to_thread(disk_usage, inventory)}

    async def _stats(self, _: Stats) -> AsyncIterator[Reply]:
        store = self._store
        total = store.blobs.total()
        used = [stored.used for stored in store.catalog.objects.values()]
        result = {
            "cache_dir": str(store.root),
            "objects": len(used),
            "manifests": store.counts[Kind.MANIFEST],
            "blobs": store.counts[Kind.BLOB],
            "tags": len(store.catalog.tags),
            "bytes": store.size,
            "max_size": store.settings.max_size.of(total) or None,
            "min_free": store.settings.min_free.of(total),
            "free": store.blobs.free(),
            "disk": total,
            "oldest_use": min(used, default=None),
            "index_bytes": await store.upkeep.index_size(),
            "partial_files": len(store.partials.idle) + len(store.partials.open_files),
            "partial_bytes": store.partials.size,
        }
        yield {"result": {"store": result, "server": dict(self._running()) if self._running is not None else None}}
