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

# So many tags at a time: between them the event loop does something else.
PAGE = 500
# Rows are read in smaller pages: what a page leaves between what stays is memory lost.
ROWS = 100
PAGES_TO_FREEZE = 100


class Loading:
    """Fills the catalogue, the lists and what `min_age` remembers."""

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
        # After the objects, to share their digests; in the order in which they are to be forgotten.
        await self._threads.run(_sort_by_age, tags)
        for some in batched(tags, PAGE):
            for tag in some:
                self.unread.load_tag(*tag)
            await asyncio.sleep(0)
        self._lists.load(lists)
        self.unread.finish(index_read=self._index.usable)
        self._catalog.sort()


def _freeze() -> None:
    """What was loaded stays: the garbage collector need not stop everything to look at it again and again."""
    gc.collect(1)
    gc.freeze()


def _sort_by_age(tags: list[tuple[str, tuple[TagVariant, ...]]]) -> None:
    """Blocks."""
    tags.sort(key=lambda tag: max((variant.checked for variant in tag[1]), default=0.0))


@dataclass(frozen=True, slots=True)
class _Renewed:
    """An object whose row is to be written anew."""

    stored: Stored


type _Thing = Stored | _Renewed | tuple[str, tuple[TagVariant, ...]] | tuple[str, Listed] | tuple[str, Row]


def _read_pages(pages: Iterator[list[tuple[str, Row]]], read: Callable[[str], bytes | None]) -> Iterator[list[_Thing]]:
    """Rows as what they mean. Blocks."""
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
    """An object of an older row, where the type is what somebody said. If it is no manifest, it is kept as a blob."""
    description = describe(read(stored.digest) if stored.size <= MANIFEST_MAX else None)
    return replace(stored, media_type=description.media_type, needs=description.needs if description.media_type else ())
