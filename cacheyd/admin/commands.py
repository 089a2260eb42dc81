"""What the tools' commands do, on the side of the process that has the cache directory."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict
from itertools import batched
from typing import Any

from cacheyd.admin.control import CommandError, Reply, closable
from cacheyd.admin.inventory import Ambiguous, Inventory, Removal, Target, parse_target
from cacheyd.cache.held_tags import listed, release
from cacheyd.observe.wording import counted, shown_size
from cacheyd.protocol.images import parse_image
from cacheyd.protocol.reference import Kind
from cacheyd.store.store import Store

log = logging.getLogger(__name__)

type Handler = Callable[[dict[str, Any]], AsyncIterator[Reply]]

# Rows in a line, objects that go at once, and how often progress is told (seconds).
ROWS, BATCH, TELL_EVERY = 500, 200, 0.2
# A cache that has just been started is waited for until its index is read, but no longer than this (seconds).
LOAD_WAIT = 60.0
# Blobs without a manifest are left alone for so long (seconds): the manifest may be on its way.
UNREFERENCED_AGE = 3600.0


def plain(handler: Handler) -> Handler:
    """A command of one that gives bare values and refuses with ValueError: each value is told as progress."""

    async def adapted(args: dict[str, Any]) -> AsyncIterator[Reply]:
        try:
            async with contextlib.aclosing(closable(handler(args))) as values:
                async for value in values:
                    yield {"progress": value}
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(str(error) if isinstance(error, ValueError) else "the command has not what it needs") from error
        yield {"result": {}}

    return adapted


class Commands:
    """Each command is an async generator of replies, the last of which has the result; raises CommandError.

    `extra` are further commands; `running` gives the counters of the process that serves, where it does.
    """

    def __init__(
        self,
        store: Store,
        extra: Mapping[str, Handler] | None = None,
        *,
        running: Callable[[], Mapping[str, object]] | None = None,
    ) -> None:
        self._store = store
        self._running = running
        self._handlers: dict[str, Handler] = {
            "ls": self._ls,
            "du": self._du,
            "rm": self._rm,
            "gc": self._gc,
            "verify": self._verify,
            "stats": self._stats,
            "held": self._held,
            "release": self._release,
            **(extra or {}),
        }

    async def run(self, command: str, args: dict[str, Any]) -> AsyncIterator[Reply]:
        """Carries a command out."""
        handler = self._handlers.get(command)
        if handler is None:
            raise CommandError(f"there is no command {command!r}; known: {', '.join(self._handlers)}")
        deadline = time.monotonic() + LOAD_WAIT
        while not self._store.loaded and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        async with contextlib.aclosing(closable(handler(args))) as replies:
            async for reply in replies:
                yield reply

    def _look(self, pinned: tuple[str, ...] = ()) -> Inventory:
        return Inventory(self._store.snapshot(), self._store.blobs.read, pinned)

    # Looking

    async def _ls(self, args: dict[str, Any]) -> AsyncIterator[Reply]:
        targets = _targets(args, "patterns")
        inventory = self._look(self._store.settings.pin)
        rows = inventory.blobs(targets) if args.get("blobs") else inventory.images(targets)
        found = await _in_thread(lambda: list(batched(rows, ROWS)))
        for batch in found:
            yield {"rows": batch}
        yield {"result": {"count": sum(map(len, found))}}

    async def _du(self, args: dict[str, Any]) -> AsyncIterator[Reply]:
        inventory = self._look()
        yield {"result": await asyncio.to_thread(inventory.usage)}

    async def _stats(self, args: dict[str, Any]) -> AsyncIterator[Reply]:
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
            "index_bytes": await store.in_thread(store.index.size),
            "partial_files": len(store.idle) + len(store.open_partials),
            "partial_bytes": store.partial_bytes,
        }
        yield {"result": {"store": result, "server": dict(self._running()) if self._running is not None else None}}

    # What waits for its min_age

    async def _held(self, args: dict[str, Any]) -> AsyncIterator[Reply]:
        store = self._store
        found = [asdict(row) for row in listed(store, store.settings, store.clock())]
        for batch in batched(found, ROWS):
            yield {"rows": batch}
        # Where no settings say so, nothing is held; but others may have been meant.
        other = 0 if store.settings.has_min_age else sum(1 for _ in store.sights.held)
        yield {"result": {"count": len(found), "other": other}}

    async def _release(self, args: dict[str, Any]) -> AsyncIterator[Reply]:
        released, not_found = [], []
        for name in _names(args, "images"):
            try:
                image = parse_image(name)
            except ValueError as error:
                raise CommandError(str(error)) from None
            digests = release(self._store, image, self._store.clock())
            released += [{"image": str(image), "digest": digest} for digest in digests]
            not_found += [] if digests else [str(image)]
        yield {"result": {"released": released, "not_found": not_found}}

    # Cleaning up

    async def _rm(self, args: dict[str, Any]) -> AsyncIterator[Reply]:
        targets = _targets(args, "targets")
        inventory = self._look()
        removal = await _in_thread(inventory.everything if args.get("all") else lambda: inventory.removal(targets))
        dry_run = bool(args.get("dry_run"))
        removed, size = (len(removal.objects), removal.bytes) if dry_run else await self._remove(removal)
        if args.get("all") and not dry_run:
            await self._store.room.drop_idle()
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
        """Objects and bytes that went. What an image needs that came meanwhile stays."""
        store = self._store
        for name in removal.tags:
            store.remove_tag(name)
        going = set(removal.objects)
        count = size = 0
        # Manifests first: what is left of an image that is removed halfway is blobs that nobody asks for.
        order = sorted(removal.objects, key=self._is_blob)
        for batch in batched(order, BATCH):
            free = [d for d in batch if d in removal.asked or going.issuperset(store.catalog.parents(d))]
            gone = await store.remove(free, "removed")
            count, size = count + gone[0], size + gone[1]
        return count, size

    def _is_blob(self, digest: str) -> bool:
        stored = self._store.catalog.objects.get(digest)
        return stored is not None and stored.kind is Kind.BLOB

    async def _gc(self, args: dict[str, Any]) -> AsyncIterator[Reply]:
        result: dict[str, Any] = dict(await self._store.collect())
        if args.get("unreferenced"):
            inventory = self._look()
            before = self._store.clock() - UNREFERENCED_AGE
            blobs = await asyncio.to_thread(inventory.unreferenced, before)
            count, size = await self._remove(Removal(objects=blobs))
            result["unreferenced"] = count
            result["freed"] += size
            result["objects"] -= count
        yield {"result": result}

    async def _verify(self, args: dict[str, Any]) -> AsyncIterator[Reply]:
        told: asyncio.Queue[Reply | None] = asyncio.Queue()
        last = 0.0

        def progress(done: int, total: int, size: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= TELL_EVERY or done == total:
                last = now
                told.put_nowait({"progress": {"done": done, "total": total, "bytes": size}})

        work = asyncio.create_task(self._store.verify(progress))
        work.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (reply := await told.get()) is not None:
                yield reply
            yield {"result": await work}
        finally:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await work


async def _in_thread[T](look: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(look)
    except Ambiguous as error:
        raise CommandError(str(error)) from None


def _names(args: dict[str, Any], key: str) -> list[str]:
    given = args.get(key, [])
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise CommandError(f"{key} is not a list of names")
    return given


def _targets(args: dict[str, Any], key: str) -> list[Target]:
    try:
        return [parse_target(text) for text in _names(args, key)]
    except ValueError as error:
        raise CommandError(str(error)) from None
