"""Rows that were not read yet: after the start the store looks up requested rows one by one, until it has read all."""

from collections.abc import Callable, Sequence

from cacheyd.store.catalog import Catalog
from cacheyd.store.index import Index, Row
from cacheyd.store.records import MAX_REPOSITORIES, Stored, TagVariant, has_own_type, read_stored, read_variants


class Unread:
    """Knows whether the whole index is in the catalogue, and looks up single rows until it is."""

    def __init__(self, index: Index, catalog: Catalog, clock: Callable[[], float]) -> None:
        self._index = index
        self._catalog = catalog
        self._clock = clock
        # Whether all rows that can be read are in the catalogue.
        self.loaded = False
        # Whether all rows were read. Until then rows are also looked up one by one, but not those of objects and tags removed
        # since the start.
        self.index_read = False
        self._gone: set[str] = set()
        self._gone_tags: set[str] = set()

    def find_object(self, digest: str) -> Stored | None:
        """An object from its row, before all rows were read; None if there is none."""
        if self.index_read or digest in self._gone or (row := self._index.get(f"o:{digest}")) is None:
            return None
        if not has_own_type(row):
            return None  # The type has to be read from the file first.
        stored = read_stored(digest, row)
        if stored is not None:
            self.load_object(stored, stored.needs)
        return stored

    def find_tag(self, name: str) -> tuple[TagVariant, ...]:
        """The variants of a tag from its row, before all rows were read."""
        if self.index_read or name in self._gone_tags or (row := self._index.get(f"t:{name}")) is None:
            return ()
        variants = tuple(read_variants(row))
        self.load_tag(name, variants)
        return variants

    def find_row(self, key: str) -> Row | None:
        """A row of another kind, before all rows were read."""
        return None if self.index_read else self._index.get(key)

    def load_object(self, stored: Stored, listed: Sequence[str]) -> None:
        """Takes up an object from its row."""
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
        """Takes up a tag from its row."""
        if name not in self._catalog.tags and name not in self._gone_tags:
            self._catalog.tags.put(name, variants)
            self._catalog.tags.changed.discard(name)

    def object_went(self, digest: str) -> None:
        """Notes that an object does not count any more, although it may still have a row."""
        if not self.index_read:
            self._gone.add(digest)

    def object_came(self, digest: str) -> None:
        """Notes that an object was stored, perhaps again."""
        self._gone.discard(digest)

    def tag_went(self, name: str) -> None:
        """Notes that a tag was forgotten, although it may still have a row."""
        if not self.index_read:
            self._gone_tags.add(name)

    def finish(self, *, index_read: bool) -> None:
        """Notes that all readable rows were read; `index_read`: no row is missing."""
        if index_read:
            self.index_read = True
            self._gone.clear()
            self._gone_tags.clear()
        self.loaded = True
