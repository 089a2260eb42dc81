"""Makes the rows of `cacheyd ls`: images and objects, as plain data."""

from collections.abc import Callable, Iterator, Sequence, Set
from typing import TypedDict

from cacheyd.admin.inventory import Inventory, Parts
from cacheyd.admin.selection import Root, Target
from cacheyd.protocol.bounded_json import parse_object
from cacheyd.protocol.descriptors import ATTESTATION
from cacheyd.protocol.digest import DIGEST
from cacheyd.protocol.manifest import parse_manifest
from cacheyd.protocol.media_types import kind_of
from cacheyd.protocol.reference import Kind
from cacheyd.settings.values import matches
from cacheyd.store.records import Stored, is_index


class Platform(TypedDict):
    """An entry of an index. `size` counts its stored objects (bytes); `missing` are the digests of its missing blobs."""

    platform: str
    digest: str
    stored: bool
    size: int
    missing: list[str]


class Image(TypedDict):
    """A tag, or a manifest that no tag reaches (then `tag` is empty). Sizes in bytes, `used` in seconds since the epoch.

    `complete` says that all objects that its stored manifests need are stored. An index needs at least one stored manifest.
    """

    name: str
    registry: str
    repository: str
    tag: str
    digest: str
    media_type: str
    size: int
    complete: bool
    missing: list[str]
    platforms: list[Platform]
    used: float
    hits: int
    pinned: bool


class Object(TypedDict):
    """A stored manifest or blob, and the names of the images that need it."""

    digest: str
    size: int
    kind: str
    media_type: str
    repositories: list[str]
    used: float
    hits: int
    images: list[str]


class Listing:
    """Makes the rows of an inventory. `read` gives a manifest's bytes; `pin` are patterns of images that are never evicted."""

    def __init__(
        self, inventory: Inventory, read: Callable[[str], bytes | None] = lambda digest: None, pin: Sequence[str] = ()
    ) -> None:
        self._inventory = inventory
        self._read = read
        self._pin = tuple(pin)

    def images(self, targets: Sequence[Target] = ()) -> Iterator[Image]:
        """The images that the targets mean, or all images, in the order of their names."""
        pinned = self._pinned_digests()
        for root in self._inventory.roots:
            if not targets or any(self._inventory.shows(target, root) for target in targets):
                yield self._image(root, root.digest in pinned)

    def _image(self, root: Root, pinned: bool) -> Image:
        stored, parts = self._inventory.objects[root.digest], self._inventory.parts(root.digest)
        registry, _, repository = root.repository.partition("/")
        platforms = self._platforms(stored) if is_index(stored.media_type) else []
        missing = self._missing(parts)
        # For an index, one stored manifest is enough. An index can also list no manifest, or only blobs.
        whole = not missing and (bool(stored.needs) or not platforms)
        return {
            "name": root.name, "registry": registry, "repository": repository, "tag": root.tag, "digest": root.digest,
            "media_type": stored.media_type, "size": parts.size, "complete": whole, "missing": missing,
            "platforms": platforms, "used": stored.used, "hits": stored.hits, "pinned": pinned,
        }  # fmt: skip

    def _missing(self, parts: Parts) -> list[str]:
        """The missing objects, without layers that come from elsewhere (`urls`): the cache never gets these."""
        missing = dict.fromkeys(parts.missing)
        for digest in parts.stored if missing else ():
            if not missing.keys().isdisjoint(self._inventory.objects[digest].needs):
                for foreign in _foreign(self._read(digest)):
                    missing.pop(foreign, None)
        return list(missing)

    def _platforms(self, index: Stored) -> list[Platform]:
        listed = list(_entries(self._read(index.digest)))
        named = {digest: platform for digest, platform, is_blob in listed if not is_blob}
        blobs = {digest for digest, _, is_blob in listed if is_blob}
        found: list[Platform] = []
        for digest in dict.fromkeys((*named, *index.needs)):
            there = digest in self._inventory.objects
            if digest in blobs or (there and not self._inventory.objects[digest].media_type):
                continue
            parts = self._inventory.parts(digest) if there else Parts((), (), 0)
            found.append(
                {
                    "platform": named.get(digest, ""), "digest": digest, "stored": there, "size": parts.size,
                    "missing": self._missing(parts),
                }
            )  # fmt: skip
        return found

    def _pinned_digests(self) -> set[str]:
        """The digests that the patterns in `pin` name by tag or by digest."""
        if not self._pin:
            return set()
        found = {v.digest for name, variants in self._inventory.tags.items() if matches(name, self._pin) for v in variants}
        return found | {root.digest for root in self._inventory.roots if matches(root.by_digest, self._pin)}

    def blobs(self, targets: Sequence[Target] = ()) -> Iterator[Object]:
        """All objects, or the objects of the images that the targets mean, the largest first."""
        needed: dict[str, list[str]] = {}
        for root in self._inventory.roots:
            for digest in self._inventory.parts(root.digest).stored:
                needed.setdefault(digest, []).append(root.name)
        chosen = self._chosen(targets) if targets else self._inventory.objects.keys()
        for stored in sorted(self._inventory.objects.values(), key=lambda stored: -stored.size):
            if stored.digest in chosen:
                yield {
                    "digest": stored.digest, "size": stored.size, "kind": str(stored.kind),
                    "media_type": stored.media_type, "repositories": list(stored.within), "used": stored.used,
                    "hits": stored.hits, "images": needed.get(stored.digest, []),
                }  # fmt: skip

    def _chosen(self, targets: Sequence[Target]) -> Set[str]:
        chosen: set[str] = set()
        for target in targets:
            if target.digest:
                chosen.update(self._inventory.named(target))
            else:
                for root in self._inventory.roots:
                    if self._inventory.shows(target, root):
                        chosen.update(self._inventory.parts(root.digest).stored)
        return chosen


def _foreign(data: bytes | None) -> list[str]:
    """The digests of foreign layers in a manifest: its registry need not have them."""
    try:
        return [entry.digest for entry in parse_manifest(data or b"").entries if entry.foreign]
    except ValueError:
        return []


def _entries(data: bytes | None) -> Iterator[tuple[str, str, bool]]:
    """The digest and platform of each entry of an index (image-spec, "Image Index"), and whether the entry is a blob."""
    try:
        items = parse_object(data or b"{}").get("manifests")
    except ValueError:
        return
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and isinstance(digest := item.get("digest"), str) and DIGEST.fullmatch(digest):
            annotations, media_type = item.get("annotations"), item.get("mediaType")
            attests = isinstance(annotations, dict) and ATTESTATION in annotations
            is_blob = isinstance(media_type, str) and kind_of(media_type) is Kind.BLOB
            yield digest, "attestation" if attests else _platform(item.get("platform")), is_blob


def _platform(platform: object) -> str:
    if not isinstance(platform, dict):
        return ""
    parts = [platform.get(key) for key in ("os", "architecture", "variant")]
    return "/".join(part for part in parts if isinstance(part, str) and part and part.isprintable())
