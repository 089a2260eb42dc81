"""Remembers tags that are gone upstream, and the logins that upstream told so."""

from collections import OrderedDict

from cacheyd.cache.freshness import asked_types
from cacheyd.protocol.accept import accepted_types
from cacheyd.protocol.headers import HeaderList, credentials_of
from cacheyd.protocol.reference import Kind, Reference

MAX_GONE = 20_000

# Credentials, and a hash of the types that the client asked for.
type Told = tuple[bytes, int]


class Gone:
    """Tags that are gone, each for the logins that upstream told so: other logins may still see the tag.

    Registries hide private repositories by a 404, so a stranger's question must not take the owner's tag away. Some also
    answer 404 for a tag that has other types than the client asked for, and many clients have no login at all: so a tag is
    gone only for clients that ask for the same types.
    """

    def __init__(self, limit: int = MAX_GONE) -> None:
        self._limit = limit
        # By the hash of the tag, so that requests for other tags need no hash of their login.
        self._logins: OrderedDict[int, dict[Told, None]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, ref: Reference, headers: HeaderList) -> None:
        """Notes that upstream told this login that the tag is gone. Above the limit the oldest entries are forgotten."""
        logins = self._logins.setdefault(_tag(ref), {})
        login = _told(headers)
        self._count += login not in logins
        logins[login] = None
        while self._count > self._limit:
            oldest = next(iter(self._logins))
            self._discard(oldest, next(iter(self._logins[oldest])))

    def discard(self, ref: Reference, headers: HeaderList) -> None:
        """Notes that upstream told this login that the tag is there."""
        if (tag := _tag(ref)) in self._logins:
            self._discard(tag, _told(headers))

    def _discard(self, tag: int, login: Told) -> None:
        logins = self._logins[tag]
        if login in logins:
            del logins[login]
            self._count -= 1
        if not logins:
            del self._logins[tag]

    def has(self, ref: Reference, headers: HeaderList) -> bool:
        """Whether upstream told this login that the tag is gone."""
        logins = self._logins.get(_tag(ref))
        return logins is not None and _told(headers) in logins


def is_tag(ref: Reference) -> bool:
    """Whether `ref` names a manifest by a tag."""
    return ref.kind is Kind.MANIFEST and ref.digest is None


def _tag(ref: Reference) -> int:
    """A hash of the tag: names are long, and strangers choose them. A stranger cannot choose the hash."""
    return hash((ref.registry, ref.repository, ref.reference))


def _told(headers: HeaderList) -> Told:
    accept = tuple(value for name, value in headers if name.lower() == "accept")
    return credentials_of(headers), hash(asked_types(accepted_types(accept)))
