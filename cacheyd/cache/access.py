"""What upstreams told which login: `access = "verify"`, and tags that are gone.

Under a registry that verifies two things are needed for a hit: these credentials may read this repository (asked upstream
by HEAD, the answer kept for `access_ttl`, keyed by a hash), and the registry serves this digest in this repository (kept
with the object), so that nobody gets at a digest of one repository by naming another one, or another registry.

A registry's word counts for what it has itself delivered, byte for byte, through a flight of its own: anybody can run a
registry that answers every HEAD with 200. So a HEAD adds a repository to an object only where another repository of the
same registry delivered it; else the object is fetched from there, too.

What an open registry delivered is everybody's, under all open registries: it has the bytes, and gives them to whoever
asks. A stranger's registry is no exception: the stranger could hand out the same bytes himself. Under a
registry that verifies each login needs that registry's permission all the same.
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

# Names are kept as hashes, so that a grant takes 250 bytes and what is gone 600 at most.
MAX_GRANTS = 50_000
REFUSED = frozenset({401, 403})
OBJECTS = (Kind.MANIFEST, Kind.BLOB)


class Access:
    """Remembers what upstreams allowed, and what they hid."""

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
        # Without a registry that verifies there is nothing to be careful with, and nothing to look for.
        self._careful = _verifies_any(self._settings)
        live.listen(self._configure)

    def _configure(self, settings: Settings) -> None:
        self._settings = settings
        self._careful = _verifies_any(settings)
        self.forget()

    def forget(self) -> None:
        """After a change of settings: nothing that was told before counts, nor what is being asked now."""
        self._generation += 1
        self._grants.clear()
        self._gone = Gone()

    def verifies(self, ref: Reference) -> bool:
        """Whether this needs upstream's permission for the client's own login."""
        return self._careful and ref.kind in OBJECTS and self._settings.registry(ref.registry).access == "verify"

    def granted(self, ref: Reference, headers: HeaderList) -> bool:
        """Whether the request may be answered from what is here, without asking upstream. Never awaits."""
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

        Else anybody could get at the object by naming a registry that does not verify. If the index was lost, nobody knows
        where an object is from, so it is fetched again.
        """
        if not self._careful:
            return True
        registries = _delivered(stored)
        return ref.registry in registries or any(self._settings.registry(name).access == "open" for name in registries)

    def has(self, ref: Reference) -> bool:
        """Whether the object is here, and known to be in this repository."""
        stored = self._store.objects.find(ref.digest) if ref.digest else None
        return stored is not None and ref.name in stored.within

    def _belongs(self, ref: Reference) -> bool:
        """Whether the digest is known to be in this repository, or nothing of it is here that could be given away."""
        assert ref.digest
        if self._store.objects.find(ref.digest) is not None:
            return self.has(ref)
        return self._fetcher.flights.get(ref.registry, ref.digest) is None

    async def check(self, ref: Reference, headers: HeaderList) -> bool:
        """Asks upstream if this registry verifies and there is no grant yet. True if upstream was asked and allowed it.

        Raises Relayed with upstream's refusal, RequestError if it cannot be had.
        """
        while self.verifies(ref) and not self.granted(ref, headers):
            generation = self._generation
            allowed = await self.ask(ref, headers)
            if generation == self._generation:
                return allowed
            # The settings changed meanwhile: another upstream may have to be asked.
        return False

    async def ask(self, ref: Reference, headers: HeaderList) -> bool:
        """Asks upstream whether these credentials may read this, and keeps the answer. Raises as `check` does.

        False for a success that does not look like the object: some registries show a page to clients without a login. Then
        what is asked for by its digest is fetched with this login, and only the bytes prove anything.
        """
        generation = self._generation
        method, response = await ask_of(self._fetcher, ref, headers, as_client=True)
        if response.status != 200 and not (method == "GET" and is_one_byte(ref, response.status)):
            raise Relayed(await self._fetcher.asking.relay(response, from_head=method == "HEAD"))
        response.close()
        stored = self._store.objects.find(ref.digest) if ref.digest else None
        if not looks_like(ref, response, stored):
            if ref.digest is None:
                raise upstream_error(502, "upstream answered with something else where a manifest was asked for")
            return False
        if generation != self._generation:
            return True
        self._grant(_login(ref, headers), self._settings.registry(ref.registry).access_ttl)
        self.found(ref, headers)
        if stored is not None and ref.registry in _delivered(stored):
            self._store.objects.add_repository(stored, ref.name)
        return True

    def _grant(self, login: bytes, ttl: float) -> None:
        self._grants.pop(login, None)
        if ttl > 0:
            self._grants[login] = self._clock() + ttl
        while len(self._grants) > MAX_GRANTS:
            self._grants.popitem(last=False)

    # What was told of tags

    def refused(self, ref: Reference, headers: HeaderList, status: int) -> None:
        """Upstream refused this login with `status`: a grant ends, and a tag that upstream hides is gone for this login."""
        if status in REFUSED:
            self._grants.pop(_login(ref, headers), None)
        elif status == 404 and is_tag(ref) and self._store.tags.variants(ref.registry, ref.repository, ref.reference):
            self._gone.add(ref, headers)

    def found(self, ref: Reference, headers: HeaderList) -> None:
        """Upstream gave this login the object: its tag is not gone."""
        if self._gone and is_tag(ref):
            self._gone.discard(ref, headers)

    def is_gone(self, ref: Reference, headers: HeaderList) -> bool:
        """Whether the last thing that this login was told is that the tag is gone. Cheap while no tag is."""
        return bool(self._gone) and self._gone.has(ref, headers)


def _login(ref: Reference, headers: HeaderList) -> bytes:
    """Who asks, and for which repository."""
    return hashlib.blake2b(ref.name.encode(), digest_size=16, key=credentials_of(headers)).digest()


def _delivered(stored: Stored) -> set[str]:
    """The registries that have delivered an object."""
    return {name.partition("/")[0] for name in stored.within}


def _verifies_any(settings: Settings) -> bool:
    """Whether any registry verifies."""
    return any(row.access == "verify" for row in (settings.defaults, *settings.registries.values()))
