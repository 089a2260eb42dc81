"""Lists that are kept in memory, and the logins that may have them.

Under `access = "verify"` a list is only for the login that upstream gave it to. A 404 always is: registries hide private
repositories by a 404, and registries that do not know referrers answer 404, too.
"""

import time
from collections.abc import Callable

from cacheyd.protocol.headers import HeaderList, credentials_of
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.store.lists import Listed
from cacheyd.store.store import Store
from cacheyd.upstream.port import Relay

# The headers that are kept.
_KEPT = frozenset({"content-type", "docker-distribution-api-version", "link", "oci-filters-applied"})
# How long an answer without referrers counts (seconds): a signature can come at any moment after its image.
NOTHING_TTL = 30.0


class KeptLists:
    """The last list that each registry gave, for all clients or for one login."""

    def __init__(self, store: Store, settings: Settings | Live, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._live = Live.of(settings)
        self._clock = clock

    def forget_personal(self) -> None:
        """After a change of settings: drops the lists of single logins, so that upstream is asked again for permissions."""
        self._store.lists.drop_personal()

    def refused(self, ref: Reference, headers: HeaderList) -> None:
        """Drops a repository's lists of this login, after upstream refused this login something in the repository."""
        if self.is_personal(ref):
            self._store.lists.drop_personal(f"{ref.registry}/v2/{ref.repository}/", credentials_of(headers).hex())

    def is_personal(self, ref: Reference) -> bool:
        """Whether each login gets lists of its own."""
        return self._live.settings.registry(ref.registry).access == "verify"

    def get(self, ref: Reference, headers: HeaderList) -> Listed | None:
        """The last list for this login, of any age; None if there is none."""
        lists = self._store.lists
        if not len(lists):
            return None
        if not self.is_personal(ref) and (found := lists.get(name_of_list(ref))) is not None:
            return found
        return lists.get(name_of_list(ref, credentials_of(headers).hex()))

    def is_fresh(self, ref: Reference, listed: Listed) -> bool:
        """Whether the cache need not ask upstream again."""
        return 0 <= self._clock() - listed.checked < self._ttl(ref, listed)

    def may_be_stale(self, ref: Reference, listed: Listed) -> bool:
        """Whether the list may be served although upstream did not confirm it."""
        return self._clock() - listed.checked < self._live.settings.registry(ref.registry).stale_if_error

    def _ttl(self, ref: Reference, listed: Listed) -> float:
        registry = self._live.settings.registry(ref.registry)
        # The list is a permission, too, so `access_ttl` bounds its age.
        ttl = min(registry.tag_ttl, registry.access_ttl) if registry.access == "verify" else registry.tag_ttl
        return min(ttl, NOTHING_TTL) if ref.kind is Kind.REFERRERS and listed.empty else ttl

    def keep(self, ref: Reference, headers: HeaderList, relay: Relay, *, personal: bool) -> None:
        """Keeps upstream's answer; `personal`: for this login only."""
        who = credentials_of(headers).hex()
        kept = tuple(item for item in relay.headers if item[0].lower() in _KEPT)
        listed = Listed(relay.status, kept, relay.body, who, self._clock())
        self._store.lists.set(name_of_list(ref, who if personal else ""), listed)

    def forget(self, ref: Reference, headers: HeaderList) -> None:
        """Drops this login's lists, because upstream now gives it another answer; other logins keep their lists."""
        who = credentials_of(headers).hex()
        for name in (name_of_list(ref), name_of_list(ref, who)):
            listed = self._store.lists.get(name)
            if listed is not None and listed.who == who and listed.status == 200:
                self._store.lists.discard(name)


def name_of_list(ref: Reference, who: str = "") -> str:
    """The name under which a list is kept: the list for all clients, or the list for one login (`who`)."""
    return f"{ref.registry}{ref.path} {who}" if who else f"{ref.registry}{ref.path}"
