"""Finds the parts of an image through the cache: its manifests for the wanted platforms, and their blobs."""

from cacheyd.admin.reasons import Reason
from cacheyd.admin.session import MAX_BODY, Failed, NotManifest, Session
from cacheyd.protocol.descriptors import Descriptor, select, unmet
from cacheyd.protocol.manifest import Manifest
from cacheyd.protocol.platforms import Platform
from cacheyd.protocol.reference import (
    Kind,
)

# The most levels of indexes in indexes, and the most manifests, that an image can have.
MAX_DEPTH, MAX_MANIFESTS = 4, 1000


class Tree:
    """The manifests of an image for the wanted platforms, and the blobs that these manifests need, each once."""

    def __init__(self, session: Session, platforms: tuple[Platform, ...] | None, *, attested: bool = False) -> None:
        self._session = session
        self._platforms = platforms
        self._attested = attested
        self._seen: set[str] = set()
        self._asked = 0
        self._leaves: list[Descriptor] = []
        self._taken: dict[str, None] = {}
        self.blobs: dict[str, Descriptor] = {}
        self.reasons: list[Reason] = []
        # The registry's errors 500 about entries of unknown type. They count only for manifests (known by their bytes).
        self.doubts: dict[str, str] = {}

    @property
    def taken(self) -> list[str]:
        """The manifests and indexes in the tree, in the order in which they were taken."""
        return list(self._taken)

    def knows(self, digest: str) -> bool:
        """Whether the tree has this object as a manifest, or has at least asked for it as a manifest."""
        return digest in self._seen

    def lack(self, what: str, why: str) -> None:
        """Notes that a part is missing, and why."""
        self.reasons.append(Reason(what, why))

    async def grow(self, reference: str) -> str:
        """Fetches the image's manifest and all manifests below it; gives the digest of the first.

        Raises Failed if that manifest cannot be fetched. Failures below it become reasons.
        """
        digest, content = await self._session.manifest(reference)
        await self._take(digest, content, self._platforms)
        if content.is_index and (missing := unmet(self._platforms, self._leaves)):
            self.lack("", f"it is not there for {', '.join(map(str, missing))}")
        return digest

    async def add_listed(self, entry: Descriptor) -> None:
        """Takes in an entry from a list of referrers, for all platforms. Raises Failed if the tree gets too large."""
        await self._entry(entry, None, 1)

    async def add_manifest(self, digest: str, content: Manifest) -> None:
        """Takes in a manifest that refers to the image, with all parts below it, for all platforms. Raises Failed."""
        await self._take(digest, content, None, 1)

    async def _take(self, digest: str, content: Manifest, platforms: tuple[Platform, ...] | None, depth: int = 0) -> None:
        """Takes in a manifest that is in the cache, with all parts below it. Raises Failed."""
        if depth > MAX_DEPTH:
            raise Failed(f"indexes in indexes, more than {MAX_DEPTH} deep")
        self._seen.add(digest)
        self._taken[digest] = None
        if not content.is_index:
            for entry in content.entries:
                self.blobs.setdefault(entry.digest, entry)
            return
        for entry in select(content.entries, platforms, attested=self._attested):
            if entry.digest not in self._seen:
                await self._entry(entry, platforms, depth)

    async def _entry(self, entry: Descriptor, platforms: tuple[Platform, ...] | None, depth: int) -> None:
        """Takes in one entry of an index; the entry can be a blob. Raises Failed."""
        self._seen.add(entry.digest)
        self._asked += entry.kind is not Kind.BLOB
        if self._asked > MAX_MANIFESTS:
            raise Failed(f"more than {MAX_MANIFESTS} manifests")
        try:
            content = await self._child(entry)
        except Failed as error:
            self.lack(entry.digest, str(error))
            self._leaves.append(entry)
            return
        if content is None or not content.is_index:
            self._leaves.append(entry)
        if content is None:
            self.blobs.setdefault(entry.digest, entry)
        else:
            await self._take(entry.digest, content, platforms, depth + 1)

    async def _child(self, entry: Descriptor) -> Manifest | None:
        """The manifest of an entry; None for a blob. Asks for a manifest first if the type does not tell. Raises Failed."""
        kind = entry.kind or await self._session.kind_here(entry.digest)
        if kind is Kind.BLOB or (kind is None and entry.size > MAX_BODY):
            return None
        try:
            return (await self._session.manifest(entry.digest, entry.media_type))[1]
        except NotManifest:
            if kind is Kind.MANIFEST:
                raise
        except Failed as error:
            if kind is Kind.MANIFEST or not (error.is_missing or error.status == 500):
                raise
            if error.status == 500:
                # docker-registry (distribution) answers 500 if the object is a blob; other registries answer 500 on a failure.
                self.doubts[entry.digest] = str(error)
        return None
