"""Tag lists and lists of referrers as upstream sent them, bounded in size; above the bound the oldest are dropped first."""

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from cacheyd.protocol.headers import HeaderList
from cacheyd.store.index import Row

# The largest list that is kept; the most bytes of all lists with their names.
LIST_MAX, LISTS_TOTAL = 2 << 20, 16 << 20
# The memory of an entry beside its texts (bytes).
ENTRY = 1 << 10


@dataclass(frozen=True, slots=True)
class Listed:
    """An answer about a list: 200, or a 404 if a registry does not know such lists. `who` identifies the login."""

    status: int
    headers: HeaderList
    body: bytes
    who: str
    checked: float

    @property
    def empty(self) -> bool:
        """Whether the list has no referrer: each referrer has a digest."""
        return self.status == 404 or b'"sha' not in self.body

    def cost(self, name: str) -> int:
        """The memory that the list takes (bytes)."""
        return ENTRY + len(name) + len(self.body) + sum(len(key) + len(value) for key, value in self.headers)


class Lists:
    """Answers by name: `registry/path?query`, followed by a space and the login if the list is for one login only.

    Each change leaves its name in `changed`. Above the bound, the registry with the most bytes loses its oldest lists.
    """

    def __init__(self, total: int = LISTS_TOTAL) -> None:
        self._total = total
        self._lists: dict[str, Listed] = {}
        self.bytes = 0
        self._bytes_of: Counter[str] = Counter()
        self._personal = 0
        self.changed: set[str] = set()

    def __len__(self) -> int:
        return len(self._lists)

    def get(self, name: str) -> Listed | None:
        """Upstream's last answer; None if there is none."""
        return self._lists.get(name)

    def set(self, name: str, listed: Listed) -> None:
        """Keeps upstream's answer; the lists that were confirmed longest ago make room for it."""
        self.discard(name)
        self._lists[name] = listed
        self._count(name, listed.cost(name))
        self._personal += " " in name
        self.changed.add(name)
        while self.bytes > self._total:
            most = max(self._bytes_of, key=self._bytes_of.__getitem__)
            self.discard(next(name for name in self._lists if _registry(name) == most))

    def _count(self, name: str, size: int) -> None:
        self.bytes += size
        self._bytes_of[_registry(name)] += size
        if not self._bytes_of[_registry(name)]:
            del self._bytes_of[_registry(name)]

    def discard(self, name: str) -> None:
        """Forgets a list."""
        if (listed := self._lists.pop(name, None)) is not None:
            self._count(name, -listed.cost(name))
            self._personal -= " " in name
            self.changed.add(name)

    def drop_personal(self, prefix: str = "", who: str = "") -> None:
        """Forgets lists for single logins: those below a name, those of one login, or all."""
        if self._personal:
            for name in [name for name in self._lists if name.startswith(prefix) and " " in name and name.endswith(who)]:
                self.discard(name)

    def load(self, found: Iterable[tuple[str, Listed]]) -> None:
        """Takes up lists from their rows, except lists of which a newer answer is known."""
        newer, self._lists, self.bytes = self._lists, {}, 0
        self._bytes_of.clear()
        self._personal = 0
        changed, self.changed = self.changed, set()
        for name, listed in (*sorted(found, key=lambda pair: pair[1].checked), *newer.items()):
            self.set(name, listed)
        # The rows of lists that found no room must be deleted.
        self.changed = changed | {name for name in self.changed if name not in self._lists}

    def touch_all(self) -> None:
        """Marks all lists as changed, so that all rows are written again."""
        self.changed.update(self._lists)

    def row(self, name: str) -> Row | None:
        """The row of a list; None if it is not kept any more."""
        listed = self._lists.get(name)
        if listed is None:
            return None
        return {
            "status": listed.status, "headers": [list(pair) for pair in listed.headers],
            "body": listed.body.decode(), "who": listed.who, "at": listed.checked,
        }  # fmt: skip


def _registry(name: str) -> str:
    return name.partition("/")[0]


def read_listed(row: Row) -> Listed | None:
    """The list of a row; None if the row is not a list's."""
    try:
        headers = tuple((sys.intern(str(name)), str(value)) for name, value in row["headers"])
        body = str(row["body"]).encode()
        listed = Listed(int(row["status"]), headers, body, str(row["who"]), float(row["at"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return listed if listed.status in (200, 404) and len(body) <= LIST_MAX else None
