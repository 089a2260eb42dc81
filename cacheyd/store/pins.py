"""Pinned images: their names match the setting `pin`, and they are never evicted."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from cacheyd.settings import values as parse
from cacheyd.store.order import Order
from cacheyd.store.records import Stored, TagVariant


class Pins:
    """The patterns, and the digests of the tags that match them."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._patterns: tuple[str, ...] = ()
        self._pinned: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def pin(self, patterns: tuple[str, ...], tags: Mapping[str, Sequence[TagVariant]]) -> None:
        """Pins images whose `registry/repository:tag` (or `registry/repository@digest`) matches: they are never evicted."""
        if patterns == self._patterns:
            return
        self._patterns = patterns
        self._pinned.clear()
        for name, variants in tags.items():
            self.add_tag(name, variants)
        self._order.let_go()

    def add_tag(self, name: str, variants: Iterable[TagVariant]) -> None:
        """Notes that a tag leads to these variants now."""
        if self._patterns and parse.matches(name, self._patterns):
            self._pinned.update(variant.digest for variant in variants)

    def remove_tag(self, name: str, variants: Iterable[TagVariant]) -> None:
        """Notes that a tag does not lead to these variants any more."""
        if self._patterns and parse.matches(name, self._patterns):
            for variant in variants:
                self._pinned[variant.digest] -= 1
                if self._pinned[variant.digest] <= 0:
                    del self._pinned[variant.digest]
            self._order.let_go()

    def match(self, stored: Stored) -> bool:
        """Whether an object is pinned itself."""
        if not self._patterns:
            return False
        if stored.digest in self._pinned:
            return True
        return bool(stored.media_type) and any(parse.matches(f"{n}@{stored.digest}", self._patterns) for n in stored.within)
