"""What an image consists of, found out through a cache: its manifests for some platforms, their blobs, what refers to it."""

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from cacheyd import __version__
from cacheyd.cache.answer import BYPASS, HELD, Answer
from cacheyd.cache.bodies import BodyBroken
from cacheyd.cache.cache import Cache
from cacheyd.cache.request import Request
from cacheyd.observe.wording import counted
from cacheyd.protocol.bounded_json import parse_object
from cacheyd.protocol.descriptors import Descriptor, select, unmet
from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.errors import reason as phrase
from cacheyd.protocol.headers import HeaderList, header
from cacheyd.protocol.images import ImageName
from cacheyd.protocol.manifest import Manifest, is_manifest, parse_manifest
from cacheyd.protocol.media_types import (
    ARTIFACTS,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    is_media_type,
    kind_of,
)
from cacheyd.protocol.platforms import Platform
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.protocol.targets import is_ns
from cacheyd.upstream.auth import answer_challenge
from cacheyd.upstream.port import Transport, UpstreamBroken

# As containerd asks, so that what is known of a tag then is right for it.
ACCEPT = ", ".join((DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX, "*/*"))
# Some registries refuse clients without a name.
AGENT = ("User-Agent", f"cacheyd/{__version__}")
# Indexes in indexes, and manifests in all, beyond which an image is not one.
MAX_DEPTH, MAX_MANIFESTS = 4, 1000
# The longest manifest, or list of referrers, that is read (bytes).
MAX_BODY = 8 << 20
# What refers to an image (signatures, SBOMs), and to that in turn (an SBOM's signature): so deep, so many in all, and so
# many pages of a list.
REFERRERS_DEPTH, MAX_REFERRERS, MAX_PAGES = 2, 500, 50
# cosign's tags beside the image's own: sha256-<hex>.sig and the like. Without a suffix it is the list of referrers of a
# registry that has no API for them (distribution-spec, "Referrers Tag Schema").
COSIGN = (".sig", ".att", ".sbom")
# So many different reasons are told in one line; each has at most 300 characters of a registry's.
MAX_REASONS = 4


class Failed(Exception):
    """Something of an image could not be had or kept; the message says why. `status` is the registry's, if it said no."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_missing(self) -> bool:
        """Whether the registry says that there is no such thing, or that it does not know of such things."""
        return 400 <= self.status < 500 and self.status not in (401, 429)


class Reason(NamedTuple):
    """Why something of an image is not there: what it is (empty for the image itself), and why."""

    what: str
    why: str


def told(reasons: Iterable[Reason]) -> str:
    """Reasons in one line of bounded length: what is alike is told once, with a count."""
    groups: dict[str, dict[str, None]] = {}
    for what, why in reasons:
        groups.setdefault(why, {})[what] = None
    lines = []
    for why, names in list(groups.items())[:MAX_REASONS]:
        first, more = next(iter(names)), len(names) - 1
        lines.append(f"{f'{first}: ' if first else ''}{why}{f' (and for {more} more)' if more else ''}")
    rest = len(groups) - len(lines)
    return "; ".join([*lines, *([f"and {counted(rest, 'other reason')}"] if rest else [])])


class Session:
    """As whom one image is asked for: as a client that names the registry in the path and brings no login, or as
    containerd with one.
    """

    def __init__(self, cache: Cache, transport: Transport, image: ImageName, login: str) -> None:
        self._cache = cache
        self._transport = transport
        self._image = image
        self._login = login
        self._authorization: HeaderList = ()
        # Why the image is not what its tag is upstream (min_age).
        self.held = ""
        self._asking = asyncio.Lock()

    async def get(self, kind: Kind, reference: str, *, media_type: str = "", query: str = "") -> Answer:
        """The cache's answer, a challenge of the registry answered; `media_type` is what a manifest is said to be.

        Raises Failed.
        """
        ref = self._image.part(kind, reference, self._image.registry if self._login else "")
        ref = replace(ref, query=query) if query else ref
        sent, accept = self._authorization, _accept(kind, media_type)
        answer = await self._ask(ref, sent, accept)
        if answer.status == 401 and self._login:
            async with self._asking:
                if self._authorization == sent:
                    self._authorization = (("Authorization", await self._authorize(ref, answer.headers)),)
            answer = await self._ask(ref, self._authorization, accept)
        if answer.status != 200:
            close(answer)
            raise Failed(_why(answer), answer.status)
        if answer.result == HELD:
            self.held = answer.note
        return answer

    def is_kept(self, digest: str) -> bool:
        """Whether the object is in the cache."""
        return self._cache.store.find(digest) is not None

    async def kind_here(self, digest: str) -> Kind | None:
        """What an object is that is in the cache; None if it is not, or is a manifest that came as a blob."""
        stored = self._cache.store.find(digest)
        if stored is None or (stored.kind is Kind.BLOB and await self.is_manifest(digest)):
            return None
        return stored.kind

    async def is_manifest(self, digest: str) -> bool:
        """Whether an object is here that is a manifest by its bytes."""
        stored = self._cache.store.find(digest)
        if stored is None or stored.size > MAX_BODY:
            return False
        data = await asyncio.to_thread(self._cache.store.blobs.read, digest)
        return data is not None and await asyncio.to_thread(is_manifest, data)

    async def _ask(self, ref: Reference, authorization: HeaderList, accept: tuple[str, ...]) -> Answer:
        headers = (AGENT, *(("Accept", line) for line in accept), *authorization)
        return await self._cache.answer(Request("GET", ref, headers, accept))

    async def _authorize(self, ref: Reference, challenge: HeaderList) -> str:
        bases = self._cache.settings.upstreams(ref.registry)
        most = self._cache.settings.registry(ref.registry).retry_after_max
        waited = False
        while True:
            try:
                return await answer_challenge(self._transport, ref, bases, challenge, self._login)
            except (UpstreamBroken, RequestError) as error:
                wait = error.wait if isinstance(error, UpstreamBroken) else None
                if wait is None or wait > most or not most or waited:
                    raise Failed(f"the login failed: {error}") from error
            # A rate limit of the token service that is over in a moment.
            waited = True
            await asyncio.sleep(wait)


def _accept(kind: Kind, media_type: str) -> tuple[str, ...]:
    """As containerd asks for what has a descriptor: by its media type first."""
    if kind is Kind.REFERRERS:
        return (OCI_INDEX,)
    if kind is not Kind.MANIFEST:
        return ()
    known = not is_media_type(media_type) or kind_of(media_type) is Kind.MANIFEST
    return (ACCEPT,) if known and media_type not in ARTIFACTS else (f"{media_type}, {ACCEPT}",)


class Tree:
    """The manifests of an image for the wanted platforms, and the blobs that these need, each once."""

    def __init__(self, session: Session, platforms: tuple[Platform, ...] | None, *, attested: bool = False) -> None:
        self._session = session
        self._platforms = platforms
        self._attested = attested
        self._seen: set[str] = set()
        self._asked = 0
        self._leaves: list[Descriptor] = []
        # The manifests and indexes that were taken, in this order.
        self._taken: dict[str, None] = {}
        self.blobs: dict[str, Descriptor] = {}
        self.reasons: list[Reason] = []
        # What the registry said of entries that are blobs, if they are no manifests by their bytes.
        self.doubts: dict[str, str] = {}
        # How many signatures, SBOMs and the like were found.
        self.referrers = 0

    async def grow(self, reference: str) -> str:
        """Fetches the manifest and those below it; its digest. Raises Failed if it is not to be had.

        What fails below it is among the reasons.
        """
        digest, content = await self._manifest(reference)
        await self._take(digest, content, self._platforms)
        if content.is_index and (missing := unmet(self._platforms, self._leaves)):
            self.reasons.append(Reason("", f"it is not there for {', '.join(map(str, missing))}"))
        return digest

    async def _take(self, digest: str, content: Manifest, platforms: tuple[Platform, ...] | None, depth: int = 0) -> None:
        """Takes in a manifest that is here, with all below it."""
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
        """One entry of an index, which may be a blob."""
        self._seen.add(entry.digest)
        self._asked += entry.kind is not Kind.BLOB
        if self._asked > MAX_MANIFESTS:
            raise Failed(f"more than {MAX_MANIFESTS} manifests")
        try:
            content = await self._child(entry)
        except Failed as error:
            self.reasons.append(Reason(entry.digest, str(error)))
            self._leaves.append(entry)
            return
        if content is None or not content.is_index:
            self._leaves.append(entry)
        if content is None:
            self.blobs.setdefault(entry.digest, entry)
        else:
            await self._take(entry.digest, content, platforms, depth + 1)

    async def _child(self, entry: Descriptor) -> Manifest | None:
        """What an entry refers to; None for a blob. Where its type does not tell, it is asked for as a manifest first."""
        kind = entry.kind or await self._session.kind_here(entry.digest)
        if kind is Kind.BLOB or (kind is None and entry.size > MAX_BODY):
            return None
        try:
            return (await self._manifest(entry.digest, entry.media_type))[1]
        except _NotManifest:
            if kind is Kind.MANIFEST:
                raise
        except Failed as error:
            if kind is Kind.MANIFEST or not (error.is_missing or error.status == 500):
                raise
            if error.status == 500:
                # So docker-registry (distribution) answers where it is a blob, and others where they are failing.
                self.doubts[entry.digest] = str(error)
        return None

    async def _manifest(self, reference: str, media_type: str = "") -> tuple[str, Manifest]:
        """A manifest that is in the cache now. Raises Failed."""
        answer = await self._session.get(Kind.MANIFEST, reference, media_type=media_type)
        data = await _body(answer)
        digest = header(answer.headers, "docker-content-digest") or ""
        try:
            content = parse_manifest(data)
        except ValueError as error:
            raise _NotManifest(str(error)) from error
        if answer.result == BYPASS or not self._session.is_kept(digest):
            raise Failed("the manifest was not kept: there is no room on the disk, or it refuses writes")
        return digest, content

    # Signatures, SBOMs and whatever else refers to it

    async def grow_referrers(self) -> None:
        """Fetches what refers to the manifests that were taken, and what refers to that. What fails is among the reasons."""
        done = 0
        try:
            for _ in range(REFERRERS_DEPTH):
                subjects = list(self._taken)[done:]
                done += len(subjects)
                for subject in subjects:
                    await self._refer(subject)
        except Failed as error:
            self.reasons.append(Reason("", str(error)))

    async def _refer(self, subject: str) -> None:
        tag = subject.replace(":", "-")
        async with asyncio.TaskGroup() as group:
            listing = group.create_task(self._listed(subject, tag))
            tagged = [group.create_task(self._tagged(f"{tag}{suffix}")) for suffix in COSIGN]
        for entry in listing.result():
            if entry.digest not in self._seen:
                self._count()
                await self._entry(entry, None, 1)
        for task in tagged:
            if (found := task.result()) is not None and found[0] not in self._seen:
                self._count()
                await self._take(*found, None, 1)

    def _count(self) -> None:
        self.referrers += 1
        if self.referrers > MAX_REFERRERS:
            raise Failed(f"more than {MAX_REFERRERS} signatures, SBOMs and the like")

    async def _listed(self, subject: str, tag: str) -> Sequence[Descriptor]:
        """What the registry lists as referrers, by its API or, where it has none, by tag."""
        try:
            found = await self._pages(subject)
        except Failed as error:
            self.reasons.append(Reason(f"what refers to {subject}", str(error)))
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
                content = parse_manifest(await _body(answer))
            except ValueError:
                return found or None
            except Failed as error:
                if not error.is_missing:
                    raise
                return found or None
            if not content.is_index:
                return found or None
            found += content.entries
            query = _next_query(answer.headers)
        return found

    async def _tagged(self, tag: str) -> tuple[str, Manifest] | None:
        """What a tag that there may be stands for."""
        try:
            return await self._manifest(tag)
        except Failed as error:
            if not error.is_missing:
                self.reasons.append(Reason(tag, str(error)))
            return None


class _NotManifest(Failed):
    """What came is no manifest."""


def _next_query(headers: HeaderList) -> str:
    """The query of the next page of a list (RFC 8288); empty if there is none."""
    for name, value in headers:
        if name.lower() == "link" and (match := re.match(r"<[^>?]*\?([^>]*)>(.*)", value)) and "next" in match[2]:
            return "&".join(part for part in match[1].split("&") if part and not is_ns(part))
    return ""


async def _body(answer: Answer) -> bytes:
    """All of it. Raises Failed, also for more than a manifest may have."""
    if answer.source is None:
        return bytes(answer.body)
    data = bytearray()
    try:
        while piece := await answer.source.read():
            data += piece
            if len(data) > MAX_BODY:
                raise Failed(f"a manifest of more than {MAX_BODY} bytes")
    except BodyBroken as error:
        raise Failed(str(error)) from error
    finally:
        answer.source.close()
    return bytes(data)


def close(answer: Answer) -> None:
    if answer.source is not None:
        answer.source.close()


def _why(answer: Answer) -> str:
    """What an answer that is an error says."""
    try:
        errors = parse_object(bytes(answer.body)).get("errors")
        message = errors[0].get("message") if isinstance(errors, list) else ""
    except (ValueError, LookupError, AttributeError):
        message = ""
    shown = str(message or "")[:300]
    return f"{answer.status} {shown if shown.isprintable() and shown else phrase(answer.status)}"
