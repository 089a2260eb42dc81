"""Tags by name: what upstream said of them last, and how many of them are remembered."""

from collections.abc import Sequence

from cacheyd.store.catalog import Catalog
from cacheyd.store.records import MAX_VARIANTS, TagVariant
from cacheyd.store.sights import Sights
from cacheyd.store.unread import Unread

# More tags than this are not remembered, nor what takes more memory (bytes): anybody can ask for a registry that has any
# number of them, with Accept headers of his own.
MAX_TAGS, MAX_TAG_BYTES = 200_000, 96 << 20


class Tags:
    """The tags of all repositories. A name is `registry/repository:tag`."""

    def __init__(self, catalog: Catalog, unread: Unread, sights: Sights) -> None:
        self._catalog = catalog
        self._unread = unread
        self._sights = sights

    def variants(self, registry: str, repository: str, tag: str) -> Sequence[TagVariant]:
        """What is known of a tag, newest first."""
        name = f"{registry}/{repository}:{tag}"
        return self._catalog.tags.get(name) or self._unread.find_tag(name)

    def set(self, registry: str, repository: str, tag: str, variant: TagVariant) -> None:
        """Records what upstream said of a tag to a client that asked with `variant.asked`."""
        others = [v for v in self.variants(registry, repository, tag) if v.asked != variant.asked]
        self._catalog.tags.put(f"{registry}/{repository}:{tag}", (variant, *others)[:MAX_VARIANTS])
        self._keep_bounds()

    def _keep_bounds(self) -> None:
        """Forgets tags until there are not too many: first those that nobody has asked for longest."""
        catalog = self._catalog
        while len(catalog.tags) > MAX_TAGS or catalog.tags.size > MAX_TAG_BYTES:
            catalog.tags.forget(next(iter(catalog.tags)))

    def delete(self, registry: str, repository: str, tag: str) -> None:
        """Forgets a tag, as upstream says that it is gone."""
        self.remove(f"{registry}/{repository}:{tag}")

    def remove(self, name: str) -> bool:
        """Forgets a tag by its whole name; whether it was known."""
        known = bool(self._catalog.tags.get(name) or self._unread.find_tag(name))
        self._unread.tag_went(name)
        self._catalog.tags.forget(name)
        self._sights.let_go(name)
        return known
