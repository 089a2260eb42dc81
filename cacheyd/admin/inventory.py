"""What the cache holds, as plain data for tools: images, objects, who takes how much, and what a removal takes with it.

No I/O but for the reader that it is given, and no state of the store: a snapshot is enough, so all of it runs in a thread.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from fnmatch import translate
from functools import cached_property
from typing import NamedTuple, TypedDict

from cacheyd.protocol.bounded_json import parse_object
from cacheyd.protocol.descriptors import ATTESTATION
from cacheyd.protocol.digest import DIGEST
from cacheyd.protocol.images import ImageName, parse_image
from cacheyd.protocol.manifest import parse_manifest
from cacheyd.protocol.media_types import kind_of
from cacheyd.protocol.reference import Kind
from cacheyd.settings import values as parse
from cacheyd.store.catalog import Snapshot
from cacheyd.store.rows import Stored, is_index

_SHORT_DIGEST = re.compile(r"(?:sha256|sha512):[a-f0-9]{12,128}")


class Ambiguous(Exception):
    """The beginning of several digests."""


class Platform(TypedDict):
    """An entry of an index. `size` is what of it is stored, `missing` are the digests of blobs that are not."""

    platform: str
    digest: str
    stored: bool
    size: int
    missing: list[str]


class Image(TypedDict):
    """A tag, or a manifest that no tag reaches (then `tag` is empty). Sizes in bytes, `used` in seconds since the epoch.

    `complete` says that all that its stored manifests need is there; an index needs one stored manifest at least.
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


class Usage(TypedDict):
    """What a repository, or a registry, takes: `unique` are the bytes of objects that nobody else uses."""

    name: str
    objects: int
    bytes: int
    unique: int


class RegistryUsage(Usage):
    """A registry with its repositories."""

    repositories: list[Usage]


class DiskUsage(TypedDict):
    """Who takes how much. Objects that several use count in each, and once in the total."""

    objects: int
    bytes: int
    registries: list[RegistryUsage]


class Root(NamedTuple):
    """Where an image begins: `repository` is `registry/repository`, empty where that is not known."""

    repository: str
    tag: str
    digest: str

    @property
    def name(self) -> str:
        """As people write it."""
        return f"{self.repository}:{self.tag}" if self.tag else self.by_digest

    @property
    def by_digest(self) -> str:
        """The same by digest."""
        return f"{self.repository}@{self.digest}"


class Tree(NamedTuple):
    """What an image consists of: digests of stored objects and of missing ones, and the size of the stored ones."""

    stored: tuple[str, ...]
    missing: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Target:
    """What somebody named: an image, a digest (or its beginning), or a pattern."""

    text: str
    image: ImageName | None = None
    digest: str = ""
    pattern: re.Pattern[str] | None = None

    def covers(self, root: Root) -> bool:
        """Whether an image is meant; one that is named by a digest alone is not."""
        if self.pattern is not None:
            return bool(self.pattern.fullmatch(root.name) or self.pattern.fullmatch(root.by_digest))
        if self.image is None or self.image.digest or self.image.name != root.repository:
            return False
        return self.image.tag in ("", root.tag)

    def covers_tag(self, name: str) -> bool:
        """Whether a tag (`registry/repository:tag`) is meant, stored or not."""
        repository, _, tag = name.rpartition(":")
        return self.covers(Root(repository, tag, ""))


def parse_target(text: str) -> Target:
    """An image name, `name@digest`, a digest or 12 digits of one, or a pattern with `*` or `?`; raises ValueError."""
    if "*" in text or "?" in text:
        # Brackets are part of IPv6 addresses here.
        return Target(text, pattern=re.compile(translate(text.replace("[", "[[]"))))
    if _SHORT_DIGEST.fullmatch(text):
        return Target(text, digest=text)
    image = parse_image(text, default_tag="")
    return Target(text, image, image.digest)


class Staying(TypedDict):
    """A manifest that was to be removed, as the image `name`, and stays, as other images need it; a tag goes all the same."""

    name: str
    manifest: str
    needed_by: list[str]


@dataclass(slots=True)
class Removal:
    """What goes: images by name, tags (`registry/repository:tag`), objects by digest; `asked` are those named themselves.

    `stays` are those of which the manifest stays.
    """

    images: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    bytes: int = 0
    kept: int = 0
    not_found: list[str] = field(default_factory=list)
    stays: list[Staying] = field(default_factory=list)


class Inventory:
    """A snapshot, looked through. `read` gives a manifest's bytes; `pin` are the patterns of images that stay."""

    def __init__(
        self, snapshot: Snapshot, read: Callable[[str], bytes | None] = lambda digest: None, pin: Sequence[str] = ()
    ) -> None:
        self.objects: dict[str, Stored] = {stored.digest: stored for stored in snapshot.objects}
        self.tags = snapshot.tags
        self._read = read
        self._pin = tuple(pin)
        self._trees: dict[str, Tree] = {}

    # Images

    @cached_property
    def roots(self) -> list[Root]:
        """All images: what tags mean, and the manifests of each repository that no tag of it reaches."""
        roots, tagged, anywhere = [], set(), set()
        for name, variants in self.tags.items():
            repository, _, tag = name.rpartition(":")
            for digest in dict.fromkeys(variant.digest for variant in variants if variant.digest in self.objects):
                roots.append(Root(repository, tag, digest))
                tagged.add((repository, digest))
                anywhere.add(digest)
        indexes: dict[str, list[Stored]] = {}
        manifests = [stored for stored in self.objects.values() if stored.media_type]
        for stored in manifests:
            if is_index(stored.media_type):
                for child in stored.needs:
                    indexes.setdefault(child, []).append(stored)
        for stored in manifests:
            parents = indexes.get(stored.digest, ())
            if not stored.within and not parents and stored.digest not in anywhere:
                roots.append(Root("", "", stored.digest))
            for repository in stored.within:
                in_index = any(repository in p.within or (repository, p.digest) in tagged for p in parents)
                if not in_index and (repository, stored.digest) not in tagged:
                    roots.append(Root(repository, "", stored.digest))
        return sorted(roots)

    def tree(self, digest: str) -> Tree:
        """What an object consists of."""
        tree = self._trees.get(digest)
        if tree is None:
            tree = self._trees[digest] = self._walk([digest], frozenset())
        return tree

    def _walk(self, digests: Iterable[str], without: Set[str]) -> Tree:
        stored: dict[str, None] = {}
        missing: dict[str, None] = {}
        size = 0
        waiting = list(digests)
        while waiting:
            digest = waiting.pop()
            if digest in stored or digest in without:
                continue
            found = self.objects.get(digest)
            if found is None:
                missing[digest] = None
                continue
            stored[digest] = None
            size += found.size
            waiting += reversed(found.needs)
        return Tree(tuple(stored), tuple(missing), size)

    def images(self, targets: Sequence[Target] = ()) -> Iterator[Image]:
        """The images that are meant, or all, in the order of their names."""
        pinned = self._pinned_digests()
        for root in self.roots:
            if not targets or any(self._shows(target, root) for target in targets):
                yield self._image(root, root.digest in pinned)

    def _shows(self, target: Target, root: Root) -> bool:
        if target.covers(root) or (root.repository and root.repository.partition("/")[0] == target.text):
            return True
        if not target.digest or (target.image is not None and target.image.name != root.repository):
            return False
        return any(digest.startswith(target.digest) for digest in self.tree(root.digest).stored)

    def _image(self, root: Root, pinned: bool) -> Image:
        stored, tree = self.objects[root.digest], self.tree(root.digest)
        registry, _, repository = root.repository.partition("/")
        platforms = self._platforms(stored) if is_index(stored.media_type) else []
        missing = self._missing(tree)
        # Of an index one stored manifest is enough; it may list none, or blobs alone.
        whole = not missing and (bool(stored.needs) or not platforms)
        return {
            "name": root.name, "registry": registry, "repository": repository, "tag": root.tag, "digest": root.digest,
            "media_type": stored.media_type, "size": tree.size, "complete": whole, "missing": missing,
            "platforms": platforms, "used": stored.used, "hits": stored.hits, "pinned": pinned,
        }  # fmt: skip

    def _missing(self, tree: Tree) -> list[str]:
        """What of a tree is not here, but for layers that come from elsewhere (`urls`) and were never to be."""
        missing = dict.fromkeys(tree.missing)
        for digest in tree.stored if missing else ():
            if not missing.keys().isdisjoint(self.objects[digest].needs):
                for foreign in _foreign(self._read(digest)):
                    missing.pop(foreign, None)
        return list(missing)

    def _platforms(self, index: Stored) -> list[Platform]:
        listed = list(_entries(self._read(index.digest)))
        named = {digest: platform for digest, platform, is_blob in listed if not is_blob}
        blobs = {digest for digest, _, is_blob in listed if is_blob}
        found: list[Platform] = []
        for digest in dict.fromkeys((*named, *index.needs)):
            there = digest in self.objects
            if digest in blobs or (there and not self.objects[digest].media_type):
                continue
            tree = self.tree(digest) if there else Tree((), (), 0)
            found.append(
                {
                    "platform": named.get(digest, ""), "digest": digest, "stored": there, "size": tree.size,
                    "missing": self._missing(tree),
                }
            )  # fmt: skip
        return found

    def _pinned_digests(self) -> set[str]:
        """What the patterns name by tag or digest."""
        if not self._pin:
            return set()
        found = {v.digest for name, variants in self.tags.items() if parse.matches(name, self._pin) for v in variants}
        return found | {root.digest for root in self.roots if parse.matches(root.by_digest, self._pin)}

    # Objects

    def blobs(self, targets: Sequence[Target] = ()) -> Iterator[Object]:
        """All objects, or those of the images that are meant, the largest first."""
        needed: dict[str, list[str]] = {}
        for root in self.roots:
            for digest in self.tree(root.digest).stored:
                needed.setdefault(digest, []).append(root.name)
        chosen = self._chosen(targets) if targets else self.objects.keys()
        for stored in sorted(self.objects.values(), key=lambda stored: -stored.size):
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
                chosen.update(self._named(target))
            else:
                for root in self.roots:
                    if self._shows(target, root):
                        chosen.update(self.tree(root.digest).stored)
        return chosen

    def usage(self) -> DiskUsage:
        """Who takes how much, the largest first."""
        users: dict[str, set[str]] = {stored.digest: set(stored.within) for stored in self.objects.values()}
        for root in self.roots:
            for digest in self.tree(root.digest).stored:
                users[digest].add(root.repository)
        registries: dict[str, RegistryUsage] = {}
        repositories: dict[str, Usage] = {}
        for stored in self.objects.values():
            names = users[stored.digest] - {""} or {""}
            hosts = {name.partition("/")[0] for name in names}
            for host in hosts:
                registry = registries.setdefault(
                    host, {"name": host, "objects": 0, "bytes": 0, "unique": 0, "repositories": []}
                )
                _count(registry, stored, alone=len(hosts) == 1)
            for name in names:
                _count(repositories.setdefault(name, _nothing(name)), stored, alone=len(names) == 1)
        for usage in sorted(repositories.values(), key=_largest_first):
            host, _, repository = usage["name"].partition("/")
            registries[host]["repositories"].append({**usage, "name": repository})
        return {
            "objects": len(self.objects),
            "bytes": sum(stored.size for stored in self.objects.values()),
            "registries": sorted(registries.values(), key=_largest_first),
        }

    # Removal

    def everything(self) -> Removal:
        """All that is there."""
        images = list(dict.fromkeys(root.name for root in self.roots))
        size = sum(stored.size for stored in self.objects.values())
        return Removal(images, list(self.tags), list(self.objects), set(self.objects), size)

    def removal(self, targets: Sequence[Target]) -> Removal:
        """What goes with these: their tags, objects that are named by digest, and what no image that stays needs."""
        removal = Removal()
        going: set[Root] = set()
        tags: dict[str, None] = {}
        for target in targets:
            objects = self._named(target)
            roots = [root for root in self.roots if target.covers(root) or root.digest in objects]
            named = [name for name in self.tags if target.covers_tag(name)]
            if not objects and not roots and not named:
                removal.not_found.append(target.text)
            removal.asked |= objects
            going.update(roots)
            # Of a pattern that means an image by its digest, the tags go, too.
            tags |= dict.fromkeys([*named, *(root.name for root in roots if root.tag)])
        reached = self._walk([*(root.digest for root in going), *removal.asked], frozenset()).stored
        staying = [root for root in self.roots if root not in going and root.digest not in removal.asked]
        needed = set(self._walk([root.digest for root in staying], removal.asked).stored)
        removal.objects = [digest for digest in reached if digest not in needed]
        removal.kept = len(reached) - len(removal.objects)
        removal.bytes = sum(self.objects[digest].size for digest in removal.objects)
        removal.images = sorted(root.name for root in going if root.tag or root.digest not in needed)
        kept = [root for root in going if root.digest in needed]
        removal.stays = [self._staying(root, staying) for root in sorted(kept)]
        removal.tags = list(tags)
        return removal

    def _staying(self, root: Root, others: Sequence[Root]) -> Staying:
        needed_by = [other.name for other in others if root.digest in self.tree(other.digest).stored]
        return {"name": root.name, "manifest": root.by_digest, "needed_by": needed_by}

    def _named(self, target: Target) -> set[str]:
        """The objects that are named by digest. Raises Ambiguous."""
        if not target.digest:
            return set()
        found = {target.digest} & self.objects.keys()
        if not found and not DIGEST.fullmatch(target.digest):
            found = {digest for digest in self.objects if digest.startswith(target.digest)}
            if len(found) > 1:
                raise Ambiguous(f"{target.text} is the beginning of {len(found)} digests")
        if target.image is None:
            return found
        return {digest for digest in found if self._is_within(digest, target.image.name)}

    def _is_within(self, digest: str, repository: str) -> bool:
        if repository in self.objects[digest].within:
            return True
        return any(root.repository == repository and digest in self.tree(root.digest).stored for root in self.roots)

    def unreferenced(self, before: float) -> list[str]:
        """Blobs that no stored manifest needs and that were neither stored nor used since `before`."""
        needed = {digest for stored in self.objects.values() for digest in stored.needs}
        return [
            stored.digest
            for stored in self.objects.values()
            if stored.kind is Kind.BLOB and stored.digest not in needed and max(stored.used, stored.created) < before
        ]


def _nothing(name: str) -> Usage:
    return {"name": name, "objects": 0, "bytes": 0, "unique": 0}


def _count(usage: Usage, stored: Stored, *, alone: bool) -> None:
    usage["objects"] += 1
    usage["bytes"] += stored.size
    usage["unique"] += stored.size if alone else 0


def _largest_first(usage: Usage) -> tuple[int, str]:
    return -usage["bytes"], usage["name"]


def _foreign(data: bytes | None) -> list[str]:
    """The digests in a manifest of what its registry need not have."""
    try:
        return [entry.digest for entry in parse_manifest(data or b"").entries if entry.foreign]
    except ValueError:
        return []


def _entries(data: bytes | None) -> Iterator[tuple[str, str, bool]]:
    """Digest and platform of each entry that an index lists (image-spec, "Image Index"), and whether it is a blob."""
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
