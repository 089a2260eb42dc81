"""What upstreams told which login: `access = "verify"`, and tags that are gone.

Under a registry that verifies two things are needed for a hit: these credentials may read this repository (asked upstream
by HEAD, the answer kept for `access_ttl`, keyed by a hash), and the registry serves this digest in this repository (kept
with the object), so that nobody gets at a digest of one repository by naming another one, or another registry.

A registry's word counts for what it has itself delivered, byte for byte, through a flight of its own: anybody can run a
registry that answers every HEAD with 200. So a HEAD adds a repository to an object only where another repository of the
same registry delivered it; else the object is fetched from there, too.

What an open registry delivered is everybody's, under all open registries: it has the bytes, and gives them to whoever
asks. That this may be a stranger's registry takes nothing away, as he could hand the same bytes out himself. Under a
registry that verifies each login needs that registry's permission all the same.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

from cacheyd.cache import freshness as policy
from cacheyd.cache.fetch import Fetcher
from cacheyd.protocol.accept import accepted_types
from cacheyd.protocol.digest import DIGEST
from cacheyd.protocol.errors import upstream_error
from cacheyd.protocol.headers import HeaderList, content_length, credentials_of, header
from cacheyd.protocol.media_types import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, SCHEMA_1, SCHEMA_1_SIGNED
from cacheyd.protocol.ranges import parse_content_range
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.settings.settings import Settings
from cacheyd.store.rows import Stored
from cacheyd.store.store import Store
from cacheyd.upstream.port import Relayed, UpstreamResponse

# Names are kept as hashes, so that a grant takes 250 bytes and what is gone 600 at most.
MAX_GRANTS = 50_000
MAX_GONE = 20_000
NO_HEAD = frozenset({404, 405, 501})
# A CDN's URLs are signed for GET, and its refusal of a HEAD says nothing: one byte decides.
REFUSED_ELSEWHERE = frozenset({400, 403})
ONE_BYTE = ("Range", "bytes=0-0")
MANIFEST_TYPES = frozenset({DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, SCHEMA_1, SCHEMA_1_SIGNED})
# Of no bytes there is not even one (RFC 9110 section 15.5.17).
EMPTY = frozenset(f"{name}:{hashlib.new(name).hexdigest()}" for name in ("sha256", "sha512"))
REFUSED = frozenset({401, 403})


# Credentials, and the types that were asked for.
type Told = tuple[bytes, int]


class Access:
    """Remembers what upstreams allowed, and what they hid."""

    def __init__(self, store: Store, fetcher: Fetcher, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._fetcher = fetcher
        self._clock = clock
        self._grants: OrderedDict[bytes, float] = OrderedDict()
        self._gone = Gone()
        self._generation = 0
        self._looked_at: Settings | None = None
        self._careful = False

    def forget(self) -> None:
        """After a change of settings: nothing that was told before counts, nor what is being asked now."""
        self._generation += 1
        self._grants.clear()
        self._gone = Gone()

    def verifies(self, ref: Reference) -> bool:
        """Whether this needs upstream's permission for the client's own login."""
        return ref.kind in (Kind.MANIFEST, Kind.BLOB) and self._fetcher.settings.registry(ref.registry).access == "verify"

    def granted(self, ref: Reference, headers: HeaderList) -> bool:
        """Whether the request may be answered from what is here, without asking upstream. Never awaits."""
        if not self.verifies(ref):
            return ref.digest is None or (stored := self._find(ref)) is None or self.may_serve(ref, stored)
        until = self._grants.get(_login(ref, headers))
        if until is None or self._clock() >= until:
            return False
        return ref.digest is None or self._belongs(ref)

    def _find(self, ref: Reference) -> Stored | None:
        # Without a registry that verifies there is nothing to be careful with, and nothing to look for.
        return self._store.find(ref.digest) if ref.digest and self._is_careful() else None

    def _is_careful(self) -> bool:
        """Whether any registry verifies; looked up once for each set of settings."""
        settings = self._fetcher.settings
        if self._looked_at is not settings:
            rows = [settings.defaults, *settings.registries.values()]
            self._looked_at, self._careful = settings, any(row.access == "verify" for row in rows)
        return self._careful

    def may_serve(self, ref: Reference, stored: Stored) -> bool:
        """Whether an object may be served under this registry at all: it, or an open one, delivered the bytes.

        Else anybody could get at it by naming a registry that does not verify. Of what was found without a row (an index
        that was lost) nobody knows where it is from, so it is fetched.
        """
        if not self._is_careful():
            return True
        settings = self._fetcher.settings
        registries = _delivered(stored)
        return ref.registry in registries or any(settings.registry(name).access == "open" for name in registries)

    def has(self, ref: Reference) -> bool:
        """Whether the object is here, and known to be in this repository."""
        stored = self._store.find(ref.digest) if ref.digest else None
        return stored is not None and ref.name in stored.within

    def _belongs(self, ref: Reference) -> bool:
        """Whether the digest is known to be in this repository, or is nothing that could be given away."""
        assert ref.digest
        if self._store.find(ref.digest) is not None:
            return self.has(ref)
        return self._fetcher.flights.get(ref.registry, ref.digest) is None

    async def check(self, ref: Reference, headers: HeaderList) -> bool:
        """Asks upstream where it is not known and this registry verifies; whether it was asked, and allowed it.

        Raises Relayed with upstream's refusal, RequestError if it cannot be had.
        """
        while self.verifies(ref) and not self.granted(ref, headers):
            generation = self._generation
            allowed = await self.ask(ref, headers)
            if generation == self._generation:
                return allowed
            # Who was asked just now may not be who is to be asked.
        return False

    async def ask(self, ref: Reference, headers: HeaderList) -> bool:
        """Asks upstream whether these credentials may read this, and keeps the answer. Raises as `check` does.

        False for a success that does not look like the object, as the page is that a registry's gate shows to those without
        a login: then what is asked for by its digest is fetched with this login, and only the bytes prove anything.
        """
        generation = self._generation
        method, response = await ask_of(self._fetcher, ref, headers, as_client=True)
        if response.status != 200 and not (method == "GET" and _is_one_byte(ref, response.status)):
            raise Relayed(await self._fetcher.relay(response, from_head=method == "HEAD"))
        response.close()
        stored = self._store.find(ref.digest) if ref.digest else None
        if not _looks_like(ref, response, stored):
            if ref.digest is None:
                raise upstream_error(502, "upstream answered with something else where a manifest was asked for")
            return False
        if generation != self._generation:
            return True
        self._grant(_login(ref, headers), self._fetcher.settings.registry(ref.registry).access_ttl)
        self.found(ref, headers)
        if stored is not None and ref.registry in _delivered(stored):
            self._store.add_repository(stored, ref.name)
        return True

    def _grant(self, login: bytes, ttl: float) -> None:
        self._grants.pop(login, None)
        if ttl > 0:
            self._grants[login] = self._clock() + ttl
        while len(self._grants) > MAX_GRANTS:
            self._grants.popitem(last=False)

    # What was told of tags

    def refused(self, ref: Reference, headers: HeaderList, status: int) -> None:
        """Upstream answered this login so: what it may not read is not granted any more, a tag that it hides is gone."""
        if status in REFUSED:
            self._grants.pop(_login(ref, headers), None)
        elif status == 404 and _is_tag(ref) and self._store.tag_variants(ref.registry, ref.repository, ref.reference):
            self._gone.add(ref, headers)

    def found(self, ref: Reference, headers: HeaderList) -> None:
        """Upstream gave this login what it asked for."""
        if self._gone and _is_tag(ref):
            self._gone.discard(ref, headers)

    def is_gone(self, ref: Reference, headers: HeaderList) -> bool:
        """Whether this login was told last that there is no such tag. One look at a table, unless somebody was told so."""
        return bool(self._gone) and self._gone.has(ref, headers)


class Gone:
    """Tags that upstream said are not there, each for the logins that were told so; others know better, perhaps.

    Registries hide private repositories by a 404, so a stranger's question must not take the owner's tag away. Some also
    say 404 of a tag of other types than were asked for, and nobody in particular is a login of many: so it is for those
    who ask for the same types.
    """

    def __init__(self, limit: int = MAX_GONE) -> None:
        self._limit = limit
        # By the hash of the tag, so that those who ask for another one need no hash of their login.
        self._logins: OrderedDict[int, dict[Told, None]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, ref: Reference, headers: HeaderList) -> None:
        """This login was told so; the tags that were told of longest ago are forgotten, where there are too many."""
        logins = self._logins.setdefault(_tag(ref), {})
        login = _told(headers)
        self._count += login not in logins
        logins[login] = None
        while self._count > self._limit:
            oldest = next(iter(self._logins))
            self._discard(oldest, next(iter(self._logins[oldest])))

    def discard(self, ref: Reference, headers: HeaderList) -> None:
        """This login was told otherwise."""
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
        """Whether this login was told so."""
        logins = self._logins.get(_tag(ref))
        return logins is not None and _told(headers) in logins


async def ask_of(
    fetcher: Fetcher, ref: Reference, headers: HeaderList, *, as_client: bool = False
) -> tuple[str, UpstreamResponse]:
    """Upstream's answer about an object, by HEAD or else by GET, and by which; of a blob, one byte is asked for then."""
    response = await fetcher.open(ref, "HEAD", headers, as_client=as_client)
    if response.status not in NO_HEAD and not says_nothing_of_get(response):
        return "HEAD", response
    response.close()
    headers = (*headers, ONE_BYTE) if ref.kind is Kind.BLOB else headers
    return "GET", await fetcher.open(ref, "GET", headers, as_client=as_client)


def says_nothing_of_get(response: UpstreamResponse) -> bool:
    """Whether the answer to a HEAD is that of a host to which the registry redirected, and which takes a GET only."""
    return response.elsewhere and response.status in REFUSED_ELSEWHERE


def _looks_like(ref: Reference, response: UpstreamResponse, stored: Stored | None) -> bool:
    """Whether a success is about the object: by its digest, its size, or at least its type."""
    media_type = (header(response.headers, "content-type") or "").partition(";")[0].strip().lower()
    stated = header(response.headers, "docker-content-digest") or ""
    if media_type.startswith("text/html") or (ref.digest and stated and stated != ref.digest):
        return False
    size = stated_size(response)
    if stored is not None and size is not None:
        return size == stored.size
    if DIGEST.fullmatch(stated):
        return True
    # A blob may come from anywhere, under any type; of one that is not here nothing can be given away.
    return media_type in MANIFEST_TYPES if ref.kind is Kind.MANIFEST else stored is None


def stated_size(response: UpstreamResponse) -> int | None:
    """The size in bytes of the object that a success is about, or a part of it; None if it is not said."""
    if response.status == 416:
        return 0
    if response.status != 206:
        return content_length(response.headers)
    part = parse_content_range(header(response.headers, "content-range"))
    return part[2] if part is not None else None


def _is_one_byte(ref: Reference, status: int) -> bool:
    """Whether an answer to a request for the first byte of a blob gives it."""
    return ref.kind is Kind.BLOB and (status == 206 or (status == 416 and ref.digest in EMPTY))


def _is_tag(ref: Reference) -> bool:
    return ref.kind is Kind.MANIFEST and ref.digest is None


def _tag(ref: Reference) -> int:
    """Names are long, and strangers choose them; nobody can choose their hash."""
    return hash((ref.registry, ref.repository, ref.reference))


def _told(headers: HeaderList) -> Told:
    accept = tuple(value for name, value in headers if name.lower() == "accept")
    return credentials_of(headers), hash(policy.asked_types(accepted_types(accept)))


def _login(ref: Reference, headers: HeaderList) -> bytes:
    """Who asks, and for which repository."""
    return hashlib.blake2b(ref.name.encode(), digest_size=16, key=credentials_of(headers)).digest()


def _delivered(stored: Stored) -> set[str]:
    """The registries that have delivered an object."""
    return {name.partition("/")[0] for name in stored.within}
