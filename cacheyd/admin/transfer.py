"""The commands for `cacheyd export` and `cacheyd import`: say which objects an image has, and take files into the store."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypedDict

from cacheyd.admin.command import Command, telling
from cacheyd.admin.image_orders import Export, ImportCheck, ImportObject, ImportRoom, ImportTag
from cacheyd.cache import freshness
from cacheyd.observe.wording import shown_size
from cacheyd.protocol.images import ImageName
from cacheyd.protocol.media_types import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from cacheyd.store.records import INDEXES, TagVariant
from cacheyd.store.store import Store

# An imported tag is for all clients that accept every type of manifest, like containerd.
ASKED = freshness.asked_types(frozenset({DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX}))


class Exported(TypedDict):
    """A manifest or index that is exported under a name; `size` in bytes."""

    name: str
    digest: str
    media_type: str
    size: int


# The suffixes of tags that refer to an image by its digest: cosign's tags, and ("") the list of referrers in a registry
# without an API for referrers.
REFERRING = ("", ".sig", ".att", ".sbom")
# How many steps referrers are followed: an image's SBOM, then the SBOM's signature.
REFERRERS_DEPTH = 2


def export_command(store: Store) -> Command[Export]:
    """The command `export`."""
    return telling(Export, lambda order: export(store, order))


async def export(store: Store, order: Export) -> AsyncIterator[dict[str, Any]]:
    """Gives the roots of images, and marks all objects that they need as used now, so that these are not evicted.

    With `referrers`, also gives the roots under tags in the cache that refer to the images: signatures, SBOMs. Raises
    ValueError.
    """
    found: list[Exported] = []
    missing = []
    for image in order.images:
        root = _root(store, image)
        if root is None:
            missing.append(str(image))
        else:
            found.append(root)
            if order.referrers:
                found += _referrers(store, image, root["digest"])
    if missing:
        names = " ".join(missing)
        raise ValueError(f"not in the cache: {names}; cacheyd warm {names} fetches it")
    unique = {item["name"]: item for item in found}
    for item in unique.values():
        _touch(store, item["digest"])
    yield {"images": list(unique.values())}


def _referrers(store: Store, image: ImageName, root: str) -> list[Exported]:
    """The roots under tags in the cache that refer to an image, to its platforms, or to its referrers."""
    found: dict[str, Exported] = {}
    subjects = [root]
    for _ in range(REFERRERS_DEPTH):
        tags = [f"{digest.replace(':', '-')}{end}" for digest in _manifests(store, subjects) for end in REFERRING]
        subjects = []
        for name in (ImageName(image.registry, image.repository, tag) for tag in tags):
            if str(name) not in found and (there := _root(store, name)) is not None:
                found[str(name)] = there
                subjects.append(there["digest"])
    return list(found.values())


def _manifests(store: Store, roots: list[str]) -> list[str]:
    """The stored manifests among these roots and below them, each once."""
    todo, seen = list(reversed(roots)), dict[str, None]()
    while todo:
        digest = todo.pop()
        if digest not in seen and (stored := store.objects.find(digest)) is not None and stored.media_type:
            seen[digest] = None
            todo += stored.needs
    return list(seen)


def _root(store: Store, image: ImageName) -> Exported | None:
    """The manifest or index that a name leads to; None if it is not in the cache."""
    if image.digest:
        stored = store.objects.find(image.digest)
        if stored is None or not stored.media_type or image.name not in stored.within:
            return None
        return {"name": str(image), "digest": stored.digest, "media_type": stored.media_type, "size": stored.size}
    variants = store.tags.variants(image.registry, image.repository, image.tag)
    here = [variant for variant in variants if store.objects.find(variant.digest) is not None]
    # The variant for clients that accept an index is the best: other clients perhaps got the manifest of one platform.
    best = max(here, key=lambda variant: (bool(INDEXES & variant.asked), variant.checked), default=None)
    if best is None:
        return None
    return {"name": str(image), "digest": best.digest, "media_type": best.media_type, "size": best.size}


def _touch(store: Store, root: str) -> None:
    todo, seen = [root], set[str]()
    while todo:
        digest = todo.pop()
        if digest not in seen and (stored := store.objects.find(digest)) is not None:
            seen.add(digest)
            store.objects.touch(digest, 0)
            todo += stored.needs


class Importer:
    """Takes the objects and tags of an import into the store, with one command for each step."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    def commands(self) -> tuple[Command[Any], ...]:
        """The commands of this module for an import."""
        return (
            telling(ImportRoom, self.room),
            telling(ImportObject, self.take),
            telling(ImportCheck, self.check),
            telling(ImportTag, self.tag),
        )

    async def room(self, order: ImportRoom) -> AsyncIterator[dict[str, Any]]:
        """Makes room for an object. Raises ValueError if there is no room."""
        if not self._store.health.writable or not await self._store.bounds.make(order.size):
            raise ValueError(f"there is no room for an object of {shown_size(order.size)}, or the disk refuses writes")
        yield {"size": order.size}

    async def take(self, order: ImportObject) -> AsyncIterator[dict[str, Any]]:
        """Makes a file in CACHE_DIR/partial an object. Raises ValueError if the store cannot keep the object."""
        store, digest = self._store, order.digest
        first, *others = order.within
        stored = await store.adopt_file(store.root / "partial" / order.file, digest, order.media_type, first)
        if stored is None:
            raise ValueError(f"{digest} could not be kept: there is no room, or the disk refuses writes")
        for repository in others:
            store.objects.add_repository(stored, repository)
        yield {"digest": digest}

    async def check(self, order: ImportCheck) -> AsyncIterator[dict[str, Any]]:
        """Gives the digests of these objects that are no longer in the cache."""
        yield {"gone": [digest for digest in order.digests if self._store.objects.find(digest) is None]}

    async def tag(self, order: ImportTag) -> AsyncIterator[dict[str, Any]]:
        """Sets a tag to a manifest. Raises ValueError if the manifest is not in the cache."""
        store, image = self._store, order.image
        stored = store.objects.find(order.digest)
        if stored is None or not stored.media_type:
            raise ValueError(f"{order.digest} is no manifest that is here")
        variant = TagVariant(ASKED, stored.digest, stored.media_type, stored.size, self._clock())
        store.tags.set(image.registry, image.repository, image.tag, variant)
        store.sights.let_go(f"{image.name}:{image.tag}")
        yield {"image": str(image)}
