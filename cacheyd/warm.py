"""Pulls images into the cache ahead of their clients, through the same decisions and flights as clients' pulls."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cacheyd import __version__
from cacheyd.answer import Answer
from cacheyd.auth import answer_challenge
from cacheyd.cache import BYPASS, HELD, Cache, Request
from cacheyd.errors import HeaderList, RequestError
from cacheyd.errors import reason as phrase
from cacheyd.fetch import Transport, UpstreamBroken, header
from cacheyd.flight import BodyBroken, Flight, FlightReader, NotKept
from cacheyd.images import MAX_LAYERS
from cacheyd.manifest import (
    Descriptor,
    Manifest,
    Platform,
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
# A layer's progress is told so often (seconds), and not while so many events wait for their reader.
TELL_EVERY, MAX_UNREAD = 0.2, 1000
SKIPPED = "SKIPPED"

type Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be warmed. `platforms` None means all; `logins` are `user:password` by the image's full name."""

    images: tuple[ImageName, ...]
    platforms: tuple[Platform, ...] | None
    logins: Mapping[str, str] = field(default_factory=dict)
    layers: int = LAYERS


class Failed(Exception):
    """Something of an image could not be had or kept; the message says why."""


def parse_order(args: Mapping[str, Any]) -> Order:
    """An order as it comes from a client. Raises ValueError."""
    images, platforms, logins = args.get("images"), args.get("platforms", []), args.get("logins", {})
    layers = args.get("layers", LAYERS)
    if not (_texts(images) and images):
        raise ValueError("no image is named")
    if platforms is not None and not _texts(platforms):
        raise ValueError("platforms must be a list of texts")
    if not isinstance(logins, dict) or not _texts(list(logins.values())):
        raise ValueError("logins must be texts by image")
    if not isinstance(layers, int) or not 1 <= layers <= MAX_LAYERS:
        raise ValueError(f"from 1 to {MAX_LAYERS} layers can be fetched at once")
    wanted = None if platforms is None else tuple(map(parse_platform, platforms)) or (own_platform(),)
    return Order(tuple(map(parse_image, dict.fromkeys(images))), wanted, logins, layers)


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
        # Why this is not what the tag is upstream.
        self.held = ""
        self._asking = asyncio.Lock()

    async def get(self, kind: Kind, reference: str) -> Answer:
        """The cache's answer, a challenge of the registry answered. Raises Failed."""
        ref = self._image.part(kind, reference, self._image.registry if self._login else "")
        sent = self._authorization
        answer = await self._ask(ref, sent)
        if answer.status == 401 and self._login:
            async with self._asking:
                if self._authorization == sent:
                    self._authorization = (("Authorization", await self._authorize(ref, answer.headers)),)
            answer = await self._ask(ref, self._authorization)
        if answer.status != 200:
            _close(answer)
            raise Failed(_why(answer))
        if answer.result == HELD:
            self.held = answer.note
        return answer

    def is_kept(self, digest: str) -> bool:
        """Whether the object is in the cache."""
        return self._cache.store.find(digest) is not None

    async def _ask(self, ref: Reference, authorization: HeaderList) -> Answer:
        accept = (ACCEPT,) if ref.kind is Kind.MANIFEST else ()
        headers = (AGENT, *(("Accept", line) for line in accept), *authorization)
        return await self._cache.answer(Request("GET", ref, headers, accept))

    async def _authorize(self, ref: Reference, challenge: HeaderList) -> str:
        bases = self._cache.settings.upstreams(ref.registry)
        try:
            return await answer_challenge(self._transport, ref, bases, challenge, self._login)
        except (UpstreamBroken, RequestError) as error:
            raise Failed(f"the login failed: {error}") from error


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
        tree = _Tree(session, self._order.platforms)
        try:
            root = await tree.grow(image.reference)
        except Failed as error:
            reasons = [str(error)]
        else:
            reasons = [*tree.reasons, *await self._layers(name, session, tree.blobs)]
            reasons = reasons or self._evicted(session, tree.blobs)
        if reasons:
            reason = "; ".join(dict.fromkeys(reasons))
            log.warning("warming %s failed: %s", name, reason)
            self._tell({"event": "failed", "image": name, "reason": reason})
            return False
        size = sum(blob.size for blob in tree.blobs.values() if not blob.foreign)
        log.info("warmed %s: %s, %d bytes", name, root, size)
        held = {"held": session.held} if session.held else {}
        self._tell({"event": "done", "image": name, "digest": root, "bytes": size, **held})
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

    def __init__(self, session: _Session, platforms: tuple[Platform, ...] | None) -> None:
        self._session = session
        self._platforms = platforms
        self._seen: set[str] = set()
        self._leaves: list[Descriptor] = []
        self.blobs: dict[str, Descriptor] = {}
        self.reasons: list[str] = []

    async def grow(self, reference: str) -> str:
        """Fetches the manifest and those below it; its digest. Raises Failed if it is not to be had.

        What fails below it is among the reasons.
        """
        digest, content = await self._manifest(reference)
        if content.is_index:
            await self._index(content, 1)
            if missing := unmet(self._platforms, self._leaves):
                self.reasons.append(f"it is not there for {', '.join(map(str, missing))}")
        else:
            self._take(content)
        return digest

    async def _index(self, index: Manifest, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise Failed(f"indexes in indexes, more than {MAX_DEPTH} deep")
        for entry in select(index.entries, self._platforms):
            if entry.digest in self._seen:
                continue
            self._seen.add(entry.digest)
            if len(self._seen) > MAX_MANIFESTS:
                raise Failed(f"more than {MAX_MANIFESTS} manifests")
            try:
                _, content = await self._manifest(entry.digest)
            except Failed as error:
                self.reasons.append(f"{entry.digest}: {error}")
                self._leaves.append(entry)
                continue
            if content.is_index:
                await self._index(content, depth + 1)
            else:
                self._leaves.append(entry)
                self._take(content)

    def _take(self, manifest: Manifest) -> None:
        for entry in manifest.entries:
            self.blobs.setdefault(entry.digest, entry)

    async def _manifest(self, reference: str) -> tuple[str, Manifest]:
        """A manifest that is in the cache now. Raises Failed."""
        answer = await self._session.get(Kind.MANIFEST, reference)
        data = await _body(answer)
        digest = header(answer.headers, "docker-content-digest") or ""
        if answer.result == BYPASS or not self._session.is_kept(digest):
            raise Failed("the manifest was not kept: there is no room on the disk, or it refuses writes")
        try:
            return digest, parse_manifest(data)
        except ValueError as error:
            raise Failed(str(error)) from error


async def _body(answer: Answer) -> bytes:
    if answer.source is None:
        return bytes(answer.body)
    data = bytearray()
    try:
        while piece := await answer.source.read():
            data += piece
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
