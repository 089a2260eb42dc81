"""What a running cache does for `cacheyd export` and `cacheyd import`: says which objects an image is, and takes files in."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from cacheyd.cache import freshness
from cacheyd.observe.wording import shown_size
from cacheyd.protocol.digest import DIGEST
from cacheyd.protocol.images import ImageName, parse_image
from cacheyd.protocol.media_types import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from cacheyd.store import partials
from cacheyd.store.rows import INDEXES, TagVariant
from cacheyd.store.store import Store

type Handler = Callable[[dict[str, Any]], AsyncIterator[dict[str, Any]]]

# An imported tag is for all clients that take every type of manifest, as containerd does.
ASKED = freshness.asked_types(frozenset({DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX}))


# Tags that refer to an image by its digest: cosign's, and the list of a registry without an API for it ("").
REFERRING = ("", ".sig", ".att", ".sbom")
# How deep: an image's SBOM, and the SBOM's signature.
REFERRERS_DEPTH = 2


def export_handler(store: Store) -> Handler:
    """Answers `export`: the roots of `images`, all that they need marked as used just now, so that it is not evicted.

    With `referrers`, also those that the cache has under tags that refer to them: signatures, SBOMs.
    """

    async def handler(args: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        found, missing = [], []
        for name in args["images"]:
            image = parse_image(name)
            root = _root(store, image)
            if root is None:
                missing.append(str(image))
            else:
                found.append({"name": str(image), **root})
                if args.get("referrers"):
                    found += _referrers(store, image, root["digest"])
        if missing:
            names = " ".join(missing)
            raise ValueError(f"not in the cache: {names}; cacheyd warm {names} fetches it")
        unique = {item["name"]: item for item in found}
        for item in unique.values():
            _touch(store, item["digest"])
        yield {"images": list(unique.values())}

    return handler


def _referrers(store: Store, image: ImageName, root: str) -> list[dict[str, Any]]:
    """What the cache has under tags that refer to an image, to its platforms, or to what refers to it."""
    found: dict[str, dict[str, Any]] = {}
    subjects = [root]
    for _ in range(REFERRERS_DEPTH):
        tags = [f"{digest.replace(':', '-')}{end}" for digest in _manifests(store, subjects) for end in REFERRING]
        subjects = []
        for name in (ImageName(image.registry, image.repository, tag) for tag in tags):
            if str(name) not in found and (there := _root(store, name)) is not None:
                found[str(name)] = {"name": str(name), **there}
                subjects.append(there["digest"])
    return list(found.values())


def _manifests(store: Store, roots: list[str]) -> list[str]:
    """The stored manifests below these, and they themselves, each once."""
    todo, seen = list(reversed(roots)), dict[str, None]()
    while todo:
        digest = todo.pop()
        if digest not in seen and (stored := store.find(digest)) is not None and stored.media_type:
            seen[digest] = None
            todo += stored.needs
    return list(seen)


def _root(store: Store, image: ImageName) -> dict[str, Any] | None:
    """The manifest or index that a name stands for, if it is here."""
    if image.digest:
        stored = store.find(image.digest)
        if stored is None or not stored.media_type or image.name not in stored.within:
            return None
        return {"digest": stored.digest, "media_type": stored.media_type, "size": stored.size}
    variants = store.tag_variants(image.registry, image.repository, image.tag)
    here = [variant for variant in variants if store.find(variant.digest) is not None]
    # What clients were told who take an index; others may have been given one platform.
    best = max(here, key=lambda variant: (bool(INDEXES & variant.asked), variant.checked), default=None)
    return {"digest": best.digest, "media_type": best.media_type, "size": best.size} if best else None


def _touch(store: Store, root: str) -> None:
    todo, seen = [root], set[str]()
    while todo:
        digest = todo.pop()
        if digest not in seen and (stored := store.find(digest)) is not None:
            seen.add(digest)
            store.touch(digest, 0)
            todo += stored.needs


def import_handlers(store: Store, clock: Callable[[], float] = time.time) -> dict[str, Handler]:
    """Answers `import-room` (for so many bytes), `import-object` (a file in CACHE_DIR/partial becomes an object),
    `import-check` (which of these objects are gone again?) and `import-tag`.
    """

    async def room(args: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        size = args["size"]
        if not store.writable or not await store.make_room(int(size)):
            raise ValueError(f"there is no room for an object of {shown_size(size)}, or the disk refuses writes")
        yield {"size": size}

    async def take(args: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        name, digest, media_type, within = args["file"], args["digest"], args["media_type"], args["within"]
        if not partials.IMPORT.fullmatch(name) or not DIGEST.fullmatch(digest) or not within:
            raise ValueError("not a file of an import")
        first, *others = [parse_image(repository).name for repository in within]
        stored = await store.adopt_file(store.root / "partial" / name, digest, media_type, first)
        if stored is None:
            raise ValueError(f"{digest} could not be kept: there is no room, or the disk refuses writes")
        for repository in others:
            store.add_repository(stored, repository)
        yield {"digest": digest}

    async def check(args: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        yield {"gone": [digest for digest in args["digests"] if store.find(digest) is None]}

    async def tag(args: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        image = parse_image(args["image"])
        stored = store.find(args["digest"])
        if stored is None or not stored.media_type:
            raise ValueError(f"{args['digest']} is no manifest that is here")
        variant = TagVariant(ASKED, stored.digest, stored.media_type, stored.size, clock())
        store.set_tag(image.registry, image.repository, image.tag, variant)
        store.sights.let_go(f"{image.name}:{image.tag}")
        yield {"image": str(image)}

    return {"import-room": room, "import-object": take, "import-check": check, "import-tag": tag}
