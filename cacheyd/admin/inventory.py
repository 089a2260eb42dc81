"""The content of the cache: which images there are, which objects each image needs, and which objects a name means.

This module does no I/O and uses no state of the store. The module needs only a snapshot, so all of it can run in a thread.
"""

from collections.abc import Iterable, Set
from functools import cached_property
from typing import NamedTuple

from cacheyd.admin.selection import Root, Target
from cacheyd.protocol.digest import DIGEST
from cacheyd.store.catalog import Snapshot
from cacheyd.store.records import Stored, is_index


class Ambiguous(Exception):
    """A name is the beginning of several digests."""


class Parts(NamedTuple):
    """The parts of an image: the digests of stored and of missing objects, and the size of the stored objects (bytes)."""

    stored: tuple[str, ...]
    missing: tuple[str, ...]
    size: int


class Inventory:
    """The objects of a snapshot by digest, the variants of its tags, and the images made of them."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.objects: dict[str, Stored] = {stored.digest: stored for stored in snapshot.objects}
        self.tags = snapshot.tags
        self._parts: dict[str, Parts] = {}

    @cached_property
    def roots(self) -> list[Root]:
        """All images: the manifests that tags lead to, and the manifests of a repository that none of its tags reaches."""
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

    def parts(self, digest: str) -> Parts:
        """The parts of one object: the object and all that it needs."""
        parts = self._parts.get(digest)
        if parts is None:
            parts = self._parts[digest] = self.walk([digest])
        return parts

    def walk(self, digests: Iterable[str], without: Set[str] = frozenset()) -> Parts:
        """The parts of several objects together, without the objects in `without` and what only these need."""
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
        return Parts(tuple(stored), tuple(missing), size)

    def shows(self, target: Target, root: Root) -> bool:
        """Whether a list for this target has the image: the target means the image, its registry, or one of its objects."""
        if target.covers(root) or (root.repository and root.repository.partition("/")[0] == target.text):
            return True
        if not target.digest or (target.image is not None and target.image.name != root.repository):
            return False
        return any(digest.startswith(target.digest) for digest in self.parts(root.digest).stored)

    def named(self, target: Target) -> set[str]:
        """The objects that the target names by digest. Raises Ambiguous."""
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
        return any(root.repository == repository and digest in self.parts(root.digest).stored for root in self.roots)
