"""Tags by name: upstream's last answers about them, and the bounds of their number and memory."""

from collections.abc import Sequence

from cacheyd.store.catalog import Catalog
from cacheyd.store.records import MAX_VARIANTS, TagVariant
from cacheyd.store.sights import Sights
from cacheyd.store.unread import Unread

# The most tags that are remembered, and their most memory (bytes): anybody can ask for any number of tags of a registry of his
# own, with any Accept headers.
MAX_TAGS, MAX_TAG_BYTES = 200_000, 96 << 20


class Tags:
    """The tags of all repositories. A name is `registry/repository:tag`."""

    def __init__(self, catalog: Catalog, unread: Unread, sights: Sights) -> None:
        self._catalog = catalog
        self._unread = unread
        self._sights = sights

    def variants(self, registry: str, repository: str, tag: str) -> Sequence[TagVariant]:
        """The known variants of a tag, newest first."""
        name = f"{registry}/{repository}:{tag}"
        return self._catalog.tags.get(name) or self._unread.find_tag(name)

    def set(self, registry: str, repository: str, tag: str, variant: TagVariant) -> None:
        """Notes upstream's answer about a tag to a client that asked with the types `variant.asked`."""
        others = [v for v in self.variants(registry, repository, tag) if v.asked != variant.asked]
        self._catalog.tags.put(f"{registry}/{repository}:{tag}", (variant, *others)[:MAX_VARIANTS])
        self._keep_bounds()

    def _keep_bounds(self) -> None:
        """Forgets tags until the bounds hold: those first that no client has asked for the longest time."""
        catalog = self._catalog
        while len(catalog.tags) > MAX_TAGS or catalog.tags.size > MAX_TAG_BYTES:
            catalog.tags.forget(next(iter(catalog.tags)))

    def delete(self, registry: str, repository: str, tag: str) -> None:
        """Forgets a tag that is gone upstream."""
        self.remove(f"{registry}/{repository}:{tag}")

    def remove(self, name: str) -> bool:
        """Forgets a tag by its whole name; gives whether it was known."""
        known = bool(self._catalog.tags.get(name) or self._unread.find_tag(name))
        self._unread.tag_went(name)
        self._catalog.tags.forget(name)
        self._sights.let_go(name)
        return known
