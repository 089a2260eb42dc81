"""Finds everything that refers to an image, for example signatures and SBOMs: through the cache, by the API and by tags."""

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

# How many steps referrers are followed (an image's SBOM, then the SBOM's signature), the most referrers of an image in all,
# and the most pages of one list.
REFERRERS_DEPTH, MAX_REFERRERS, MAX_PAGES = 2, 500, 50

# The suffixes of cosign's tags beside the image's own tag: sha256-<hex>.sig and so on. The tag without a suffix is the list of
# referrers in a registry without the API for referrers (distribution-spec, "Referrers Tag Schema").
COSIGN = (".sig", ".att", ".sbom")


class Referrers:
    """Finds the objects that refer to the manifests of a tree, and takes them into the tree."""

    def __init__(self, session: Session, tree: Tree) -> None:
        self._session = session
        self._tree = tree
        # The number of signatures, SBOMs and other referrers that were found.
        self.count = 0

    async def grow(self) -> None:
        """Fetches the referrers of the manifests in the tree, then the referrers of these. Failures become reasons."""
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
        """The list of referrers from the registry's API or, if it has no such API, from a tag."""
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
        """The registry's list, all pages (distribution-spec, "Listing Referrers"); None if there is none. Raises Failed."""
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
        """The digest and content of a tag's manifest; None if there is no tag or the request failed. A failure is a reason."""
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
