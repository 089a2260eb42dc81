"""Pulls images into the cache ahead of their clients, through the same decisions and flights as clients' pulls."""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cacheyd import __version__
from cacheyd.answer import Answer
from cacheyd.auth import answer_challenge
from cacheyd.cache import BYPASS, Cache, Request
from cacheyd.errors import HeaderList, RequestError
from cacheyd.errors import reason as phrase
from cacheyd.fetch import Transport, UpstreamBroken, header
from cacheyd.flight import BodyBroken, Flight, FlightReader, NotKept
from cacheyd.images import MAX_LAYERS
from cacheyd.manifest import (
    ARTIFACTS,
    Descriptor,
    Manifest,
    Platform,
    is_manifest,
    is_media_type,
    kind_of,
    own_platform,
    parse_manifest,
    parse_object,
    parse_platform,
    select,
    unmet,
)
from cacheyd.reference import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    ImageName,
    Kind,
    Reference,
    is_ns,
    parse_image,
)

log = logging.getLogger(__name__)

# As containerd asks, so that what is known of a tag then is right for it.
ACCEPT = ", ".join((DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX, "*/*"))
# Some registries refuse clients without a name.
AGENT = ("User-Agent", f"cacheyd/{__version__}")
LAYERS = 4
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
# A layer's progress is told so often (seconds), and not while so many events wait for their reader.
TELL_EVERY, MAX_UNREAD = 0.2, 1000
SKIPPED = "SKIPPED"

type Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be warmed. `platforms` None means all; `logins` are `user:password` by the image's full name.

    `referrers` says that signatures, SBOMs and whatever else refers to the images are wanted, too.
    """

    images: tuple[ImageName, ...]
    platforms: tuple[Platform, ...] | None
    logins: Mapping[str, str] = field(default_factory=dict)
    layers: int = LAYERS
    referrers: bool = False


class Failed(Exception):
    """Something of an image could not be had or kept; the message says why. `status` is the registry's, if it said no."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_missing(self) -> bool:
        """Whether the registry says that there is no such thing, or that it does not know of such things."""
        return 400 <= self.status < 500 and self.status not in (401, 429)


def parse_order(args: Mapping[str, Any]) -> Order:
    """An order as it comes from a client. Raises ValueError."""
    images, platforms, logins = args.get("images"), args.get("platforms", []), args.get("logins", {})
    layers, referrers = args.get("layers", LAYERS), args.get("referrers", False)
    if not (_texts(images) and images):
        raise ValueError("no image is named")
    if platforms is not None and not _texts(platforms):
        raise ValueError("platforms must be a list of texts")
    if not isinstance(logins, dict) or not _texts(list(logins.values())):
        raise ValueError("logins must be texts by image")
    if not isinstance(layers, int) or not 1 <= layers <= MAX_LAYERS:
        raise ValueError(f"from 1 to {MAX_LAYERS} layers can be fetched at once")
    if not isinstance(referrers, bool):
        raise ValueError("referrers must be true or false")
    wanted = None if platforms is None else tuple(map(parse_platform, platforms)) or (own_platform(),)
    return Order(tuple(map(parse_image, dict.fromkeys(images))), wanted, logins, layers, referrers)


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


class _Session:
    """As whom one image is asked for: as a client that names the registry in the path and brings no login, or as
    containerd with one.
    """

    def __init__(self, cache: Cache, transport: Transport, image: ImageName, login: str) -> None:
        self._cache = cache
        self._transport = transport
        self._image = image
        self._login = login
        self._authorization: HeaderList = ()
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
            _close(answer)
            raise Failed(_why(answer), answer.status)
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
        try:
            return await answer_challenge(self._transport, ref, bases, challenge, self._login)
        except (UpstreamBroken, RequestError) as error:
            raise Failed(f"the login failed: {error}") from error


def _accept(kind: Kind, media_type: str) -> tuple[str, ...]:
    """As containerd asks for what has a descriptor: by its media type first."""
    if kind is Kind.REFERRERS:
        return (OCI_INDEX,)
    if kind is not Kind.MANIFEST:
        return ()
    known = not is_media_type(media_type) or kind_of(media_type) is Kind.MANIFEST
    return (ACCEPT,) if known and media_type not in ARTIFACTS else (f"{media_type}, {ACCEPT}",)


class Warmer:
    """Warms one order: images in sequence, the layers of each side by side. `tell` gets the events."""

    def __init__(self, cache: Cache, transport: Transport, order: Order, tell: Callable[[Event], None]) -> None:
        self._cache = cache
        self._transport = transport
        self._order = order
        self._tell = tell
        self._turns = asyncio.Semaphore(order.layers)

    async def run(self) -> Event:
        """All of it; how many images are complete and how many are not."""
        failed = 0
        for image in self._order.images:
            failed += not await self._image(image)
        return {"images": len(self._order.images), "failed": failed}

    async def _image(self, image: ImageName) -> bool:
        """One image; whether all that was wanted of it is in the cache now. Tells how it went, and never raises Failed."""
        name = str(image)
        self._tell({"event": "image", "image": name})
        session = _Session(self._cache, self._transport, image, self._order.logins.get(name, ""))
        tree = _Tree(session, self._order.platforms, attested=self._order.referrers)
        try:
            root = await tree.grow(image.reference)
            if self._order.referrers:
                await tree.grow_referrers()
        except Failed as error:
            reasons = [str(error)]
        else:
            reasons = [*tree.reasons, *await self._layers(name, session, tree.blobs)]
            reasons += [f"{digest}: {why}" for digest, why in tree.doubts.items() if await session.is_manifest(digest)]
            reasons = reasons or self._evicted(session, tree.blobs)
        if reasons:
            reason = "; ".join(dict.fromkeys(reasons))
            log.warning("warming %s failed: %s", name, reason)
            self._tell({"event": "failed", "image": name, "reason": reason})
            return False
        size = sum(blob.size for blob in tree.blobs.values() if not blob.foreign)
        log.info("warmed %s: %s, %d bytes", name, root, size)
        found = {"referrers": tree.referrers} if self._order.referrers else {}
        self._tell({"event": "done", "image": name, "digest": root, "bytes": size, **found})
        return True

    def _evicted(self, session: _Session, blobs: Mapping[str, Descriptor]) -> list[str]:
        gone = [blob for blob in blobs.values() if not (blob.foreign or session.is_kept(blob.digest))]
        return [f"{len(gone)} of {len(blobs)} layers were removed again: max_size or the disk is too small"] if gone else []

    async def _layers(self, name: str, session: _Session, blobs: Mapping[str, Descriptor]) -> list[str]:
        """Configs and layers; why some of them are not there."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._layer(name, session, blob)) for blob in blobs.values()]
        return [why for task in tasks if (why := task.result())]

    async def _layer(self, name: str, session: _Session, blob: Descriptor) -> str:
        event = {"event": "layer", "image": name, "digest": blob.digest, "size": blob.size}
        if blob.foreign:
            self._tell({**event, "event": "layer-done", "result": SKIPPED})
            return ""
        async with self._turns:
            try:
                result = await self._fetch(session, blob, lambda received: self._tell({**event, "received": received}))
            except Failed as error:
                self._tell({**event, "event": "layer-failed", "reason": str(error)})
                return f"{blob.digest}: {error}"
        self._tell({**event, "event": "layer-done", "result": result})
        return ""

    async def _fetch(self, session: _Session, blob: Descriptor, progress: Callable[[int], None]) -> str:
        """Has the blob in the cache, and says where it came from. Raises Failed."""
        progress(0)
        answer = await session.get(Kind.BLOB, blob.digest)
        flight = answer.source.flight if isinstance(answer.source, FlightReader) else None
        _close(answer)
        if flight is not None:
            await self._follow(flight, blob, progress)
        elif answer.stored is None:
            raise Failed(self._not_kept(blob.size))
        return answer.result

    async def _follow(self, flight: Flight, blob: Descriptor, progress: Callable[[int], None]) -> None:
        """Waits until the flight has landed: verified and on disk. Raises Failed."""
        told = time.monotonic()
        with flight.wanted():
            while not flight.ended:
                await flight.changed()
                if time.monotonic() - told >= TELL_EVERY:
                    told = time.monotonic()
                    progress(flight.received)
        if isinstance(flight.error, RequestError):
            raise Failed(flight.error.failure.message)
        if flight.error is not None and not isinstance(flight.error, NotKept):
            raise Failed(str(flight.error))
        if flight.stored is None:
            raise Failed(self._not_kept(flight.size or blob.size))

    def _not_kept(self, size: int) -> str:
        store = self._cache.store
        if not store.writable:
            return "not kept: the disk refuses writes"
        largest = store.settings.max_size.of(store.blobs.total())
        if largest and size > largest:
            return f"not kept: larger than max_size ({size} of {largest} bytes)"
        return "not kept: there is no room on the disk"


class _Tree:
    """The manifests of an image for the wanted platforms, and the blobs that these need, each once."""

    def __init__(self, session: _Session, platforms: tuple[Platform, ...] | None, *, attested: bool = False) -> None:
        self._session = session
        self._platforms = platforms
        self._attested = attested
        self._seen: set[str] = set()
        self._asked = 0
        self._leaves: list[Descriptor] = []
        # The manifests and indexes that were taken, in this order.
        self._taken: dict[str, None] = {}
        self.blobs: dict[str, Descriptor] = {}
        self.reasons: list[str] = []
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
            self.reasons.append(f"it is not there for {', '.join(map(str, missing))}")
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
            self.reasons.append(f"{entry.digest}: {error}")
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
            self.reasons.append(str(error))

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
            self.reasons.append(f"what refers to {subject}: {error}")
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
                self.reasons.append(f"{tag}: {error}")
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


def _close(answer: Answer) -> None:
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


async def warm(cache: Cache, transport: Transport, order: Order) -> AsyncGenerator[Event]:
    """Warms an order while it is iterated over; the last event is the summary. Flights go on when it is left."""
    events: asyncio.Queue[Event | None] = asyncio.Queue()

    def tell(event: Event) -> None:
        if event["event"] != "layer" or events.qsize() < MAX_UNREAD:
            events.put_nowait(event)

    task = asyncio.create_task(Warmer(cache, transport, order, tell).run())
    task.add_done_callback(lambda _: events.put_nowait(None))
    try:
        while (event := await events.get()) is not None:
            yield event
        yield {"event": "end", **task.result()}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def warm_handler(cache: Cache, transport: Transport) -> Callable[[dict[str, Any]], AsyncIterator[Event]]:
    """Answers the command `warm`, whose arguments are those of `parse_order`."""

    async def handler(args: dict[str, Any]) -> AsyncIterator[Event]:
        async with contextlib.aclosing(warm(cache, transport, parse_order(args))) as events:
            async for event in events:
                yield event

    return handler
