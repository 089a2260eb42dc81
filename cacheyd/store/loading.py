"""Reads the whole index into memory, some rows at a time, while the store serves already."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import batched

from cacheyd.protocol.description import describe
from cacheyd.store.blobs import BlobDir
from cacheyd.store.catalog import Catalog
from cacheyd.store.index import Index, Row
from cacheyd.store.lists import Listed, Lists, read_listed
from cacheyd.store.objects import MANIFEST_MAX
from cacheyd.store.records import Stored, TagVariant, has_own_type, read_stored, read_variants
from cacheyd.store.sights import HELD, SEEN, Sights
from cacheyd.store.threads import DiskThreads
from cacheyd.store.unread import Unread

# The most tags that are loaded at a time, before the event loop does other work.
PAGE = 500
# How many rows are read at a time. Small pages lose less memory: the freed bytes of a page lie between bytes that stay.
ROWS = 100
PAGES_TO_FREEZE = 100


class Loading:
    """Fills the catalogue, the lists and the sights of `min_age` from the index."""

    def __init__(
        self,
        index: Index,
        catalog: Catalog,
        lists: Lists,
        sights: Sights,
        unread: Unread,
        blobs: BlobDir,
        threads: DiskThreads,
    ) -> None:
        self._index = index
        self._catalog = catalog
        self._lists = lists
        self._sights = sights
        self.unread = unread
        self._blobs = blobs
        self._threads = threads

    async def load(self) -> None:
        """Reads all rows into the catalogue."""
        pages = _read_pages(self._index.pages(ROWS), self._blobs.read)
        tags: list[tuple[str, tuple[TagVariant, ...]]] = []
        lists: list[tuple[str, Listed]] = []
        count = 0
        while (page := await self._threads.run(next, pages, None)) is not None:
            for thing in page:
                if isinstance(thing, Stored):
                    self.unread.load_object(thing, thing.needs)
                elif isinstance(thing, _Renewed):
                    self.unread.load_object(thing.stored, thing.stored.needs)
                    self._catalog.changed_objects.add(thing.stored.digest)
                elif isinstance(thing[1], Listed):
                    lists.append((thing[0], thing[1]))
                elif isinstance(thing[1], dict):
                    self._sights.load(thing[0], thing[1])
                else:
                    tags.append((thing[0], thing[1]))
            if (count := count + 1) % PAGES_TO_FREEZE == 0:
                _freeze()
        # Tags come after the objects, to share their digests, and in the order in which they will be forgotten.
        await self._threads.run(_sort_by_age, tags)
        for some in batched(tags, PAGE):
            for tag in some:
                self.unread.load_tag(*tag)
            await asyncio.sleep(0)
        self._lists.load(lists)
        self.unread.finish(index_read=self._index.usable)
        self._catalog.sort()


def _freeze() -> None:
    """Keeps the loaded objects out of the garbage collector's sight: it would stop the process to look at them each time."""
    gc.collect(1)
    gc.freeze()


def _sort_by_age(tags: list[tuple[str, tuple[TagVariant, ...]]]) -> None:
    """Sorts tags by the time when upstream last confirmed them. Blocks."""
    tags.sort(key=lambda tag: max((variant.checked for variant in tag[1]), default=0.0))


@dataclass(frozen=True, slots=True)
class _Renewed:
    """An object whose row must be written again."""

    stored: Stored


type _Thing = Stored | _Renewed | tuple[str, tuple[TagVariant, ...]] | tuple[str, Listed] | tuple[str, Row]


def _read_pages(pages: Iterator[list[tuple[str, Row]]], read: Callable[[str], bytes | None]) -> Iterator[list[_Thing]]:
    """The objects, tags, lists and sights in pages of rows. Blocks."""
    for page in pages:
        found: list[_Thing] = []
        for key, row in page:
            if key.startswith("o:"):
                if (stored := read_stored(key[2:], row)) is not None:
                    found.append(stored if has_own_type(row) else _Renewed(_looked_into(stored, read)))
            elif key.startswith("t:"):
                found.append((key[2:], tuple(read_variants(row))))
            elif key.startswith("l:") and (listed := read_listed(row)) is not None:
                found.append((key[2:], listed))
            elif key.startswith((SEEN, HELD)):
                found.append((key, row))
        yield found


def _looked_into(stored: Stored, read: Callable[[str], bytes | None]) -> Stored:
    """The object of an older row (its type is an upstream's) with the type of its bytes; a blob if they are no manifest."""
    description = describe(read(stored.digest) if stored.size <= MANIFEST_MAX else None)
    return replace(stored, media_type=description.media_type, needs=description.needs if description.media_type else ())
