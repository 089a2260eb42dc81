"""Room in the store for one blob on its way in."""

from cacheyd.store.store import Store


class Claim:
    """What a blob may displace, and what was promised to it: its flight does not run out of room on its way."""

    def __init__(self, store: Store, registry: str) -> None:
        self._store = store
        self._registry = registry
        # What it may displace beyond what any stranger may (bytes).
        self._credit = 0
        # What it is still to bring of the bytes for which room was made.
        self._promised = 0

    def begin(self) -> None:
        """Its registry is asked for it now: what that has delivered so far counts."""
        self._credit = self._store.bounds.credit(self._registry)

    async def accept(self, size: int) -> bool:
        """Whether there is room for what the head of a response promises.

        A stranger promises what he likes: his room is made as bytes come. For a registry that has delivered something it is
        made now, at the price of as much, and kept: its flights do not run out of it on their way.
        """
        if not self._credit:
            return self._store.bounds.can_take(size)
        if not await self._store.bounds.make(size, unverified=True, credit=self._credit):
            return False
        self._promise(size)
        return True

    async def use(self, more: int) -> bool:
        """Whether so many bytes may be written now."""
        if self._promised >= more:
            self._promise(self._promised - more)
            return True
        return await self._store.bounds.make(more, unverified=True, credit=self._credit)

    def drop(self) -> None:
        """Nothing more is to come."""
        self._promise(0)

    def _promise(self, size: int) -> None:
        self._store.partials.reservations.promise(size - self._promised)
        self._promised = size
