"""Signatures, SBOMs and whatever else refers to an image: found out through a cache, by the API of registries and by tags."""

import asyncio
import re
from collections.abc import Sequence

from cacheyd.admin.session import Failed, Session, whole_body
from cacheyd.admin.tree import Tree
from cacheyd.protocol.descriptors import Descriptor
from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.manifest import Manifest, parse_manifest
from cacheyd.protocol.reference import Kind
from cacheyd.protocol.targets import is_ns

# What refers to an image (signatures, SBOMs), and to that in turn (an SBOM's signature): so deep, so many in all, and so
# many pages of a list.
REFERRERS_DEPTH, MAX_REFERRERS, MAX_PAGES = 2, 500, 50

# cosign's tags beside the image's own: sha256-<hex>.sig and the like. Without a suffix it is the list of referrers of a
# registry that has no API for them (distribution-spec, "Referrers Tag Schema").
COSIGN = (".sig", ".att", ".sbom")


class Referrers:
    """Finds what refers to the manifests of a tree, and takes it into the tree."""

    def __init__(self, session: Session, tree: Tree) -> None:
        self._session = session
        self._tree = tree
        # How many signatures, SBOMs and the like were found.
        self.count = 0

    async def grow(self) -> None:
        """Fetches what refers to the manifests that were taken, and what refers to that. What fails is among the reasons."""
        done = 0
        try:
            for _ in range(REFERRERS_DEPTH):
                subjects = self._tree.taken[done:]
                done += len(subjects)
                for subject in subjects:
                    await self._refer(subject)
        except Failed as error:
            self._tree.lack("", str(error))

    async def _refer(self, subject: str) -> None:
        tag = subject.replace(":", "-")
        async with asyncio.TaskGroup() as group:
            listing = group.create_task(self._listed(subject, tag))
            tagged = [group.create_task(self._tagged(f"{tag}{suffix}")) for suffix in COSIGN]
        for entry in listing.result():
            if not self._tree.knows(entry.digest):
                self._count()
                await self._tree.add_listed(entry)
        for task in tagged:
            if (found := task.result()) is not None and not self._tree.knows(found[0]):
                self._count()
                await self._tree.add_manifest(*found)

    def _count(self) -> None:
        self.count += 1
        if self.count > MAX_REFERRERS:
            raise Failed(f"more than {MAX_REFERRERS} signatures, SBOMs and the like")

    async def _listed(self, subject: str, tag: str) -> Sequence[Descriptor]:
        """What the registry lists as referrers, by its API or, where it has none, by tag."""
        try:
            found = await self._pages(subject)
        except Failed as error:
            self._tree.lack(f"what refers to {subject}", str(error))
            return ()
        if found is not None:
            return found
        listed = await self._tagged(tag)
        return listed[1].entries if listed is not None and listed[1].is_index else ()

    async def _pages(self, subject: str) -> list[Descriptor] | None:
        """The registry's list, page by page (distribution-spec, "Listing Referrers"); None if it has none. Raises Failed."""
        found: list[Descriptor] = []
        asked, query = set[str](), ""
        while query not in asked and len(asked) < MAX_PAGES and len(found) <= MAX_REFERRERS:
            asked.add(query)
            try:
                answer = await self._session.get(Kind.REFERRERS, subject, query=query)
                content = parse_manifest(await whole_body(answer))
            except ValueError:
                return found or None
            except Failed as error:
                if not error.is_missing:
                    raise
                return found or None
            if not content.is_index:
                return found or None
            found += content.entries
            query = next_query(answer.headers)
        return found

    async def _tagged(self, tag: str) -> tuple[str, Manifest] | None:
        """What a tag that there may be stands for."""
        try:
            return await self._session.manifest(tag)
        except Failed as error:
            if not error.is_missing:
                self._tree.lack(tag, str(error))
            return None


def next_query(headers: HeaderList) -> str:
    """The query of the next page of a list (RFC 8288); empty if there is none."""
    for name, value in headers:
        if name.lower() == "link" and (match := re.match(r"<[^>?]*\?([^>]*)>(.*)", value)) and "next" in match[2]:
            return "&".join(part for part in match[1].split("&") if part and not is_ns(part))
    return ""
