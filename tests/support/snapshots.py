"""Builds snapshots of a store."""

import json

from cacheyd.admin.inventory import Inventory
from cacheyd.admin.listing import Listing
from cacheyd.admin.removal import Removal, removal_of
from cacheyd.admin.selection import parse_target
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import OCI_INDEX, OCI_MANIFEST
from cacheyd.store.catalog import Snapshot
from cacheyd.store.records import Stored, TagVariant

APP, WEB, HUB = "reg.test/app", "reg.test/web", "docker.io/library/alpine"


def digest(name: str) -> str:
    return digest_of(name.encode())


class Content:
    """Builds a snapshot. Objects have short names, and the digest of the name."""

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.tags: dict[str, tuple[TagVariant, ...]] = {}
        self.data: dict[str, bytes] = {}

    def add(self, name: str, *needs: str, within: tuple[str, ...] = (APP,), size: int = 10, media_type: str = "") -> str:
        """Adds a blob, or a manifest if it needs other objects."""
        media_type = media_type or (OCI_MANIFEST if needs else "")
        found = digest(name)
        self.objects[found] = Stored(found, size, media_type, 1.0, within, 2.0, 3, needs=tuple(map(digest, needs)))
        return found

    def index(self, name: str, *children: str, listed: int = 0, within: tuple[str, ...] = (APP,)) -> str:
        """Adds an index of these manifests and of `listed` manifests that are not stored."""
        found = self.add(name, *children, within=within, media_type=OCI_INDEX)
        names = [*children, *(f"other{n}" for n in range(listed))]
        platforms = [{"os": "linux", "architecture": f"arch{n}", "variant": "v8"} for n in range(len(names))]
        entries = [{"digest": digest(n), "platform": p} for n, p in zip(names, platforms, strict=True)]
        self.data[found] = json.dumps({"manifests": entries}).encode()
        return found

    def tag(self, name: str, *meanings: str) -> None:
        """Adds a tag with a variant for each name in `meanings`."""
        self.tags[name] = tuple(TagVariant(frozenset({m}), digest(m), OCI_MANIFEST, 1, 1.0) for m in meanings)

    def inventory(self) -> Inventory:
        return Inventory(Snapshot(list(self.objects.values()), self.tags))

    def look(self, *pin: str) -> Listing:
        return Listing(self.inventory(), self.data.get, pin)

    def removal(self, *targets: str) -> Removal:
        return removal_of(self.inventory(), [parse_target(target) for target in targets])


def two_images(content: Content) -> None:
    """Adds two images in two repositories. The images share their base layer."""
    for name in ("base", "top1", "conf1"):
        content.add(name)
    content.add("m1", "conf1", "base", "top1")
    content.tag(f"{APP}:1.0", "m1")
    for name in ("top2", "conf2"):
        content.add(name, within=(WEB,))
    content.add("m2", "conf2", "base", "top2", within=(WEB,))
    content.tag(f"{WEB}:2.0", "m2")


def list_of(content: Content, name: str, *entries: dict[str, object]) -> None:
    content.data[digest(name)] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
