"""Remembers the permissions that upstreams gave to each login (`access = "verify"`), and tags that upstreams hid.

Under a registry that verifies, a hit needs two things. These credentials may read this repository: the cache asks upstream
by HEAD, and keeps the answer for `access_ttl`, keyed by a hash. And the registry serves this digest in this repository: the
object keeps its repositories, so that no client gets a digest of one repository by naming another repository or registry.

A registry's answer counts only for objects that this registry delivered, byte for byte, through a flight of its own: anybody
can run a registry that answers every HEAD with 200. So a HEAD adds a repository to an object only if another repository of
the same registry delivered the object; else the cache fetches the object from there, too.

All clients may have an object that an open registry delivered, under all open registries: this registry gives the bytes to
every client. A stranger's registry is no exception: the stranger could give the same bytes away himself. Under a registry
that verifies, each login needs that registry's permission all the same.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.gone import Gone, is_tag
from cacheyd.cache.questions import ask_of, is_one_byte, looks_like
from cacheyd.protocol.errors import upstream_error
from cacheyd.protocol.headers import HeaderList, credentials_of
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.store.records import Stored
from cacheyd.store.store import Store
from cacheyd.upstream.port import Relayed

# Names are kept as hashes, so that a grant takes 250 bytes and a tag that is gone 600 bytes at most.
MAX_GRANTS = 50_000
REFUSED = frozenset({401, 403})
OBJECTS = (Kind.MANIFEST, Kind.BLOB)


class Access:
    """Remembers the permissions that upstreams gave, and the tags that they hid."""

    def __init__(
        self, store: Store, fetcher: Fetcher, settings: Settings | Live, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._clock = clock
        self._grants: OrderedDict[bytes, float] = OrderedDict()
        self._gone = Gone()
        self._generation = 0
        live = Live.of(settings)
        self._settings = live.settings
        # Without a registry that verifies, every request is allowed, and no check is needed.
        self._careful = _verifies_any(self._settings)
        live.listen(self._configure)

    def _configure(self, settings: Settings) -> None:
        self._settings = settings
        self._careful = _verifies_any(settings)
        self.forget()

    def forget(self) -> None:
        """After a change of settings: drops all answers so far, and those to questions that are under way."""
        self._generation += 1
        self._grants.clear()
        self._gone = Gone()

    def verifies(self, ref: Reference) -> bool:
        """Whether a request for `ref` needs upstream's permission for the client's own login."""
        return self._careful and ref.kind in OBJECTS and self._settings.registry(ref.registry).access == "verify"

    def granted(self, ref: Reference, headers: HeaderList) -> bool:
        """Whether the cache may answer the request from disk, without asking upstream. Never awaits."""
        if not self.verifies(ref):
            if not self._careful or ref.digest is None:
                return True
            stored = self._store.objects.find(ref.digest)
            return stored is None or self.may_serve(ref, stored)
        until = self._grants.get(_login(ref, headers))
        if until is None or self._clock() >= until:
            return False
        return ref.digest is None or self._belongs(ref)

    def may_serve(self, ref: Reference, stored: Stored) -> bool:
        """Whether an object may be served under this registry at all: this registry, or an open one, delivered the bytes.

        Else any client could get the object by naming a registry that does not verify. If the index was lost, the object's
        registry is unknown, so the cache fetches the object again.
        """
        if not self._careful:
            return True
        registries = stored.registries
        return ref.registry in registries or any(self._settings.registry(name).access == "open" for name in registries)

    def has(self, ref: Reference) -> bool:
        """Whether the object is stored, and known to be in this repository."""
        stored = self._store.objects.find(ref.digest) if ref.digest else None
        return stored is not None and ref.name in stored.within

    def _belongs(self, ref: Reference) -> bool:
        """Whether the digest is known to be in this repository, or this cache has no byte of it that it could give away."""
        assert ref.digest
        if self._store.objects.find(ref.digest) is not None:
            return self.has(ref)
        return self._fetcher.flights.get(ref.registry, ref.digest) is None

    async def check(self, ref: Reference, headers: HeaderList) -> bool:
        """Asks upstream if this registry verifies and there is no grant yet. True if upstream was asked and gave permission.

        Raises Relayed with upstream's refusal, RequestError if upstream gives no answer.
        """
        while self.verifies(ref) and not self.granted(ref, headers):
            generation = self._generation
            allowed = await self.ask(ref, headers)
            if generation == self._generation:
                return allowed
            # The settings changed during the question: the cache may have to ask another upstream.
        return False

    async def ask(self, ref: Reference, headers: HeaderList) -> bool:
        """Asks upstream whether these credentials may read `ref`, and keeps the answer. Raises as `check` does.

        False for a success that does not look like the object: some registries show a page to clients without a login. Then
        the cache fetches the object with this login, and only bytes with the right digest prove the permission.
        """
        generation = self._generation
        method, response = await ask_of(self._fetcher, ref, headers, as_client=True)
        if response.status != 200 and not (method == "GET" and is_one_byte(ref, response.status)):
            raise Relayed(await self._fetcher.asking.relay(response, from_head=method == "HEAD"))
        response.close()
        stored = self._store.objects.find(ref.digest) if ref.digest else None
        if not looks_like(ref, response, stored):
            if ref.digest is None:
                raise upstream_error(502, "upstream's answer to a request for a manifest is not a manifest")
            return False
        if generation != self._generation:
            return True
        self._grant(_login(ref, headers), self._settings.registry(ref.registry).access_ttl)
        self.found(ref, headers)
        if stored is not None and ref.registry in stored.registries:
            self._store.objects.add_repository(stored, ref.name)
        return True

    def _grant(self, login: bytes, ttl: float) -> None:
        self._grants.pop(login, None)
        if ttl > 0:
            self._grants[login] = self._clock() + ttl
        while len(self._grants) > MAX_GRANTS:
            self._grants.popitem(last=False)

    # Tags that upstream hid

    def refused(self, ref: Reference, headers: HeaderList, status: int) -> None:
        """Notes upstream's refusal of this login: ends a grant, or marks a tag that upstream hides as gone for this login."""
        if status in REFUSED:
            self._grants.pop(_login(ref, headers), None)
        elif status == 404 and is_tag(ref) and self._store.tags.variants(ref.registry, ref.repository, ref.reference):
            self._gone.add(ref, headers)

    def found(self, ref: Reference, headers: HeaderList) -> None:
        """Notes that upstream gave this login the object: its tag is not gone."""
        if self._gone and is_tag(ref):
            self._gone.discard(ref, headers)

    def is_gone(self, ref: Reference, headers: HeaderList) -> bool:
        """Whether upstream's last answer to this login was that the tag is gone. Cheap while no tag is gone."""
        return bool(self._gone) and self._gone.has(ref, headers)


def _login(ref: Reference, headers: HeaderList) -> bytes:
    """A hash of the login and the repository."""
    return hashlib.blake2b(ref.name.encode(), digest_size=16, key=credentials_of(headers)).digest()


def _verifies_any(settings: Settings) -> bool:
    """Whether any registry verifies."""
    return any(row.access == "verify" for row in (settings.defaults, *settings.registries.values()))
