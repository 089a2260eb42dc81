"""All known tags, in memory. The tag that was set last is at the end."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from cacheyd.store.links import Links
from cacheyd.store.pins import Pins
from cacheyd.store.records import Stored, TagVariant


class TagTable(dict[str, tuple[TagVariant, ...]]):
    """The variants of each tag (`registry/repository:tag`). Only `put` and `forget` change the table; they leave the names in
    `changed`. `size` is the most memory that all tags take, if they share nothing (bytes).
    """

    def __init__(self, objects: Mapping[str, Stored], links: Links, pins: Pins) -> None:
        super().__init__()
        self._objects = objects
        self._links = links
        self._pins = pins
        self.size = 0
        self.changed: set[str] = set()

    def put(self, name: str, variants: Iterable[TagVariant]) -> None:
        """Sets the variants of a tag."""
        self._take_out(name)
        self[name] = known = tuple(map(self._alike, variants))
        self.size += _cost(name, known)
        self.changed.add(name)
        self._pins.add_tag(name, known)

    def forget(self, name: str) -> bool:
        """Forgets a tag; gives whether it was known."""
        self.changed.add(name)
        return self._take_out(name)

    def _take_out(self, name: str) -> bool:
        variants = self.get(name)
        if variants is None:
            return False
        self._pins.remove_tag(name, variants)
        del self[name]
        self.size -= _cost(name, variants)
        return True

    def _alike(self, variant: TagVariant) -> TagVariant:
        """The same variant, with the copies of digest and size that the object has, to save memory."""
        stored = self._objects.get(variant.digest)
        size = stored.size if stored is not None and stored.size == variant.size else variant.size
        return replace(variant, digest=self._links.one(variant.digest), size=size)


def _cost(name: str, variants: Iterable[TagVariant]) -> int:
    """The most memory that a tag takes (bytes): a text has about fifty bytes of its own, a tuple or a set some hundred."""
    return 200 + len(name) + sum(300 + sum(60 + len(one) for one in v.asked) + len(v.media_type) for v in variants)
