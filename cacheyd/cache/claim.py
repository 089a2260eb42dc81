"""Gets room in the store for one blob on its way in."""

from cacheyd.store.store import Store


class Claim:
    """The bytes that a blob may displace, and the room that was promised to it: so its flight does not run out of room."""

    def __init__(self, store: Store, registry: str) -> None:
        self._store = store
        self._registry = registry
        # The bytes that the blob may displace beyond those that an unknown registry's blob may.
        self._credit = 0
        # The bytes that have not come yet of those for which room was made.
        self._promised = 0

    def begin(self) -> None:
        """Notes that the registry is asked for the blob now: the bytes that it has delivered so far count."""
        self._credit = self._store.bounds.credit(self._registry)

    async def accept(self, size: int) -> bool:
        """Whether there is room for the `size` bytes that the head of a response promises.

        An unknown registry can promise anything: the store makes room for its bytes only as they come. For a registry that
        has delivered bytes before, the store makes the room now, displaces at most as many bytes for it, and reserves it: so
        the registry's flights do not run out of room.
        """
        if not self._credit:
            return self._store.bounds.can_take(size)
        if not await self._store.bounds.make(size, unverified=True, credit=self._credit):
            return False
        self._promise(size)
        return True

    async def use(self, more: int) -> bool:
        """Whether `more` bytes may be written now."""
        if self._promised >= more:
            self._promise(self._promised - more)
            return True
        return await self._store.bounds.make(more, unverified=True, credit=self._credit)

    def drop(self) -> None:
        """Gives back the rest of the promised room: no more bytes come."""
        self._promise(0)

    def _promise(self, size: int) -> None:
        self._store.partials.reservations.promise(size - self._promised)
        self._promised = size
