"""Rows that were not read yet: after the start, each is looked up when somebody asks for it, until all of them were read."""

from collections.abc import Callable, Sequence

from cacheyd.store.catalog import Catalog
from cacheyd.store.index import Index, Row
from cacheyd.store.records import MAX_REPOSITORIES, Stored, TagVariant, has_own_type, read_stored, read_variants


class Unread:
    """How much of the index is in the catalogue, and single rows of the rest."""

    def __init__(self, index: Index, catalog: Catalog, clock: Callable[[], float]) -> None:
        self._index = index
        self._catalog = catalog
        self._clock = clock
        # Whether the catalogue is as complete as it gets.
        self.loaded = False
        # Until all rows were read, rows are also looked up one by one, but not those of objects and tags that went meanwhile.
        self.index_read = False
        self._gone: set[str] = set()
        self._gone_tags: set[str] = set()

    def find_object(self, digest: str) -> Stored | None:
        """An object by its row, before all rows were read."""
        if self.index_read or digest in self._gone or (row := self._index.get(f"o:{digest}")) is None:
            return None
        if not has_own_type(row):
            return None  # The file has to be looked into first.
        stored = read_stored(digest, row)
        if stored is not None:
            self.load_object(stored, stored.needs)
        return stored

    def find_tag(self, name: str) -> tuple[TagVariant, ...]:
        """A tag by its row, before all rows were read."""
        if self.index_read or name in self._gone_tags or (row := self._index.get(f"t:{name}")) is None:
            return ()
        variants = tuple(read_variants(row))
        self.load_tag(name, variants)
        return variants

    def find_row(self, key: str) -> Row | None:
        """A row of another kind, before all rows were read."""
        return None if self.index_read else self._index.get(key)

    def load_object(self, stored: Stored, listed: Sequence[str]) -> None:
        """Takes up an object as its row says."""
        known = self._catalog.objects.get(stored.digest)
        if known is not None and (known.size, known.stamp) == (stored.size, stored.stamp):
            # The object was taken up from its file before its row could be read.
            known.take_history(stored)
            for name in stored.within:
                self._catalog.add_repository(known, name, MAX_REPOSITORIES)
        if known is not None or stored.digest in self._gone:
            return
        stored.used_at(min(stored.used, self._clock()))
        self._catalog.add(stored, listed)
        self._catalog.changed_objects.discard(stored.digest)

    def load_tag(self, name: str, variants: tuple[TagVariant, ...]) -> None:
        """Takes up a tag as its row says."""
        if name not in self._catalog.tags and name not in self._gone_tags:
            self._catalog.tags.put(name, variants)
            self._catalog.tags.changed.discard(name)

    def object_went(self, digest: str) -> None:
        """An object does not count any more, whatever its row says."""
        if not self.index_read:
            self._gone.add(digest)

    def object_came(self, digest: str) -> None:
        """An object was stored, perhaps anew."""
        self._gone.discard(digest)

    def tag_went(self, name: str) -> None:
        """A tag was forgotten, whatever its row says."""
        if not self.index_read:
            self._gone_tags.add(name)

    def finish(self, *, index_read: bool) -> None:
        """What could be read was read; `index_read`: that was all."""
        if index_read:
            self.index_read = True
            self._gone.clear()
            self._gone_tags.clear()
        self.loaded = True
