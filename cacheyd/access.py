"""`access = "verify"`: a hit needs that upstream lets this client's own credentials read the repository.

Two things are needed for a hit: these credentials may read this repository (asked upstream by HEAD, the answer kept for
`access_ttl`, keyed by a hash), and upstream serves this digest in this repository (kept with the object), so that nobody
gets at a digest of one repository by naming another one, or another registry.
"""

import time
from collections import OrderedDict
from collections.abc import Callable

from cacheyd.config import Settings
from cacheyd.errors import HeaderList
from cacheyd.fetch import Fetcher, asker
from cacheyd.flight import Asker, Relayed
from cacheyd.reference import Kind, Reference
from cacheyd.store.rows import Stored
from cacheyd.store.store import Store

MAX_GRANTS = 50_000
NO_HEAD = frozenset({404, 405, 501})


class Access:
    """Remembers what upstreams allowed."""

    def __init__(self, store: Store, fetcher: Fetcher, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._fetcher = fetcher
        self._clock = clock
        self._grants: OrderedDict[Asker, float] = OrderedDict()
        self._looked_at: Settings | None = None
        self._careful = False

    def _verifies(self, ref: Reference) -> bool:
        return ref.kind in (Kind.MANIFEST, Kind.BLOB) and self._fetcher.settings.registry(ref.registry).access == "verify"

    def granted(self, ref: Reference, headers: HeaderList) -> bool:
        """Whether the request may be answered from what is here, without asking upstream. Never awaits."""
        if not self._verifies(ref):
            return ref.digest is None or (stored := self._find(ref)) is None or self.may_serve(ref, stored)
        until = self._grants.get(asker(ref, headers))
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
        """Whether an object may be served under this registry at all: not where only registries that verify have it.

        Else anybody could get at it by naming a registry that does not. Of what was found without a row (an index that was
        lost) nobody knows where it is from, so it is asked for.
        """
        if not self._is_careful():
            return True
        settings = self._fetcher.settings
        registries = {name.partition("/")[0] for name in stored.within}
        return ref.registry in registries or any(settings.registry(name).access == "open" for name in registries)

    def _belongs(self, ref: Reference) -> bool:
        """Whether the digest is known to be in this repository, or is nothing that could be given away."""
        assert ref.digest
        stored = self._store.find(ref.digest)
        if stored is not None:
            return ref.name in stored.within
        return self._fetcher.flights.get(ref.registry, ref.digest) is None

    async def check(self, ref: Reference, headers: HeaderList) -> bool:
        """Asks upstream where it is not known; whether it was asked.

        Raises Relayed with upstream's refusal, RequestError if it cannot be had.
        """
        if self.granted(ref, headers):
            return False
        # Under an open registry the question is only whether it has this object, too.
        method, as_client = "HEAD", self._verifies(ref)
        response = await self._fetcher.open(ref, method, headers, as_client=as_client)
        if response.status in NO_HEAD:
            response.close()
            method = "GET"
            response = await self._fetcher.open(ref, method, headers, as_client=as_client)
        if response.status != 200:
            raise Relayed(await self._fetcher.relay(response, from_head=method == "HEAD"))
        response.close()
        ttl = self._fetcher.settings.registry(ref.registry).access_ttl
        self._grants[asker(ref, headers)] = self._clock() + ttl
        while len(self._grants) > MAX_GRANTS:
            self._grants.popitem(last=False)
        if ref.digest and (stored := self._store.find(ref.digest)) is not None:
            self._store.add_repository(stored, ref.name)
        return True
