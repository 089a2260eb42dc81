"""The order of eviction: roots only, the root that was not used for the longest time first."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice


class Order:
    """Digests of roots. Roots that turned out to be pinned are held apart, so that no search looks at them again and again."""

    def __init__(self) -> None:
        self._order: OrderedDict[str, None] = OrderedDict()
        self._held: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._order))

    def first(self, count: int) -> Iterator[str]:
        """The digests of the roots that would be evicted first."""
        return islice(self._order, count)

    def add(self, digest: str) -> None:
        """Adds a root as the last to be evicted."""
        self._order[digest] = None

    def discard(self, digest: str) -> None:
        """Removes a digest that is no root any more, or whose object was removed."""
        self._order.pop(digest, None)
        self._held.pop(digest, None)

    def put_first(self, digest: str) -> None:
        """Makes a root the next to be evicted."""
        self._order[digest] = None
        self._order.move_to_end(digest, last=False)

    def put_back(self, digests: list[str]) -> None:
        """Makes roots that were passed over the next to be evicted, in this order."""
        for digest in reversed(digests):
            self.put_first(digest)

    def move_to_end(self, digest: str) -> bool:
        """Makes a root the last to be evicted; gives whether the digest is a root."""
        if digest in self._held:
            del self._held[digest]
            self._order[digest] = None
        elif digest in self._order:
            self._order.move_to_end(digest)
        else:
            return False
        return True

    def hold(self, digest: str) -> None:
        """Holds a pinned root apart, so that it is not evicted."""
        del self._order[digest]
        self._held[digest] = None

    def let_go(self) -> None:
        """Puts all roots that were held apart back at the start, as each was the oldest when it was held."""
        for digest in reversed(self._held):
            self.put_first(digest)
        self._held.clear()

    def sort(self, used: Callable[[str], float]) -> None:
        """Sorts the roots by the time of their last use, after objects were added in another order."""
        self._order = OrderedDict.fromkeys(sorted(self._order, key=used))
