"""The order in which images would go: roots only, the one that was not used for longest first."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice


class Order:
    """Digests of roots. Those that turned out to be pinned are held apart, so that nobody looks at them again and again."""

    def __init__(self) -> None:
        self._order: OrderedDict[str, None] = OrderedDict()
        self._held: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._order))

    def first(self, count: int) -> Iterator[str]:
        """The digests of those that would go first."""
        return islice(self._order, count)

    def add(self, digest: str) -> None:
        """A root is the last to go."""
        self._order[digest] = None

    def discard(self, digest: str) -> None:
        """It is no root any more, or is gone."""
        self._order.pop(digest, None)
        self._held.pop(digest, None)

    def put_first(self, digest: str) -> None:
        """A root is the next to go."""
        self._order[digest] = None
        self._order.move_to_end(digest, last=False)

    def put_back(self, digests: list[str]) -> None:
        """Roots that were passed over are the next to go, in this order."""
        for digest in reversed(digests):
            self.put_first(digest)

    def move_to_end(self, digest: str) -> bool:
        """A root is the last to go now; whether it is one."""
        if digest in self._held:
            del self._held[digest]
            self._order[digest] = None
        elif digest in self._order:
            self._order.move_to_end(digest)
        else:
            return False
        return True

    def hold(self, digest: str) -> None:
        """A root is pinned: it does not go."""
        del self._order[digest]
        self._held[digest] = None

    def let_go(self) -> None:
        """What was held as pinned is looked at again; it was the oldest when it was."""
        for digest in reversed(self._held):
            self.put_first(digest)
        self._held.clear()

    def sort(self, used: Callable[[str], float]) -> None:
        """Puts the order right by when things were used, after objects were added in another order."""
        self._order = OrderedDict.fromkeys(sorted(self._order, key=used))
