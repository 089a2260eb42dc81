"""All tags that are known, in memory. What is set last is at the end."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from cacheyd.store.links import Links
from cacheyd.store.pins import Pins
from cacheyd.store.records import Stored, TagVariant


class TagTable(dict[str, tuple[TagVariant, ...]]):
    """What is known of each tag (`registry/repository:tag`). It is changed by `put` and `forget` only, which leave the names
    in `changed`. `size` is what all tags take in memory at the most (bytes), if nothing of them is shared.
    """

    def __init__(self, objects: Mapping[str, Stored], links: Links, pins: Pins) -> None:
        super().__init__()
        self._objects = objects
        self._links = links
        self._pins = pins
        self.size = 0
        self.changed: set[str] = set()

    def put(self, name: str, variants: Iterable[TagVariant]) -> None:
        """Sets what is known of a tag."""
        self._take_out(name)
        self[name] = known = tuple(map(self._alike, variants))
        self.size += _cost(name, known)
        self.changed.add(name)
        self._pins.add_tag(name, known)

    def forget(self, name: str) -> bool:
        """Forgets a tag; whether it was known."""
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
        """The same, with the digest and the size of the object itself."""
        stored = self._objects.get(variant.digest)
        size = stored.size if stored is not None and stored.size == variant.size else variant.size
        return replace(variant, digest=self._links.one(variant.digest), size=size)


def _cost(name: str, variants: Iterable[TagVariant]) -> int:
    """What a tag takes in memory at the most: a text has some fifty bytes of its own, a tuple or a set some hundred."""
    return 200 + len(name) + sum(300 + sum(60 + len(one) for one in v.asked) + len(v.media_type) for v in variants)
