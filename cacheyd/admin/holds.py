"""The commands about images that are younger than `min_age`: `held`, `release`."""

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from cacheyd.admin.command import Command, command, in_rows
from cacheyd.admin.control import Reply
from cacheyd.admin.orders import Held, Release
from cacheyd.cache import held_tags
from cacheyd.store.store import Store


class Holds:
    """Runs the commands about held tags."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def commands(self) -> tuple[Command[Any], ...]:
        """The commands of this module."""
        return command(Held, self._held), command(Release, self._release)

    async def _held(self, _: Held) -> AsyncIterator[Reply]:
        store = self._store
        found = [asdict(row) for row in held_tags.listed(store, store.settings, store.clock())]
        for reply in in_rows(found):
            yield reply
        # Without `min_age`, nothing is held. Then the result says how many tags other settings, which the user perhaps meant,
        # would hold.
        other = 0 if store.settings.has_min_age else sum(1 for _ in store.sights.held)
        yield {"result": {"count": len(found), "other": other}}

    async def _release(self, order: Release) -> AsyncIterator[Reply]:
        released, not_found = [], []
        for image in order.images:
            digests = held_tags.release(self._store, image, self._store.clock())
            released += [{"image": str(image), "digest": digest} for digest in digests]
            not_found += [] if digests else [str(image)]
        yield {"result": {"released": released, "not_found": not_found}}
