"""Finds an image's own date: in the annotations of its index or manifest, and in `created` of its config.

OCI image-spec, "Annotations" (`org.opencontainers.image.created`) and "Image Configuration" (`created`). If an index has no
date, the cache reads one manifest of a usual platform. The objects that the cache fetches for the date are those that a pull
asks for next, so they are kept.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cacheyd.cache.age import parse_created
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.flight import NotKept
from cacheyd.cache.sightings import Sightings
from cacheyd.observe.events import Events
from cacheyd.protocol.bounded_json import parse_object
from cacheyd.protocol.description import Description
from cacheyd.protocol.descriptors import Descriptor, parse_descriptor, select
from cacheyd.protocol.errors import Code, RequestError, upstream_error
from cacheyd.protocol.headers import HeaderList, without
from cacheyd.protocol.images import ImageName
from cacheyd.protocol.media_types import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from cacheyd.protocol.platforms import own_platform, parse_platform
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.singleflight import SingleFlight
from cacheyd.store.mapped import Mapped
from cacheyd.store.records import Stored, TagVariant
from cacheyd.store.store import Store
from cacheyd.upstream.port import Relayed, UpstreamBroken

log = logging.getLogger(__name__)

CREATED = "org.opencontainers.image.created"
# How long clients wait for a date; how long the look itself may take (seconds).
WAIT, DEADLINE = 4.0, 30.0
# How long after a failed look the next one may begin (seconds); the most failed looks that are remembered.
RETRY, MAX_TRIED = 60.0, 1000
# The largest manifest and config that are read; the size above which they are parsed in a thread (bytes).
OBJECT_MAX, LARGE = 1 << 20, 64 << 10
_ACCEPT = ("Accept", ", ".join((DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX)))
_MANIFESTS = frozenset({DOCKER_MANIFEST, OCI_MANIFEST})
_USUAL = (*map(parse_platform, ("linux/amd64", "linux/arm64")), own_platform())


class Created:
    """Looks dates up, each date once for all clients that wait for it, and tells the sightings."""

    def __init__(
        self, store: Store, fetcher: Fetcher, sightings: Sightings, events: Events, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._sightings = sightings
        self._events = events
        self._clock = clock
        self._looking: SingleFlight[str, float, None] = SingleFlight()
        self._tried: dict[str, float] = {}

    async def look(self, ref: Reference, headers: HeaderList, variant: TagVariant, data: bytes) -> None:
        """Looks up the date of a tag's image, with the client's own login; `data` are the manifest's bytes, if known.

        Returns after WAIT seconds in any case; a longer look goes on, and tells the sightings at its end.
        """
        key, now = f"{ref.name}@{variant.digest}", self._clock()
        if now < self._tried.get(key, 0.0):
            return
        began, done = self._looking.join(key, now, lambda: self._look(ref, headers, variant.digest, data))
        try:
            async with asyncio.timeout(max(0.0, began + WAIT - now)):
                await done
        except TimeoutError:
            log.debug("%s: the age of %s is not known yet", ref.name, variant.digest)

    async def _look(self, ref: Reference, headers: HeaderList, digest: str, data: bytes) -> None:
        headers = (*without(headers, "accept"), _ACCEPT)
        image = ImageName(ref.registry, ref.repository)
        try:
            async with asyncio.timeout(DEADLINE):
                found = await self._find(image, headers, digest, data)
        except (Relayed, RequestError, NotKept, UpstreamBroken, OSError) as error:
            log.debug("%s: the age of %s cannot be found: %r", ref.name, digest, error)
            while len(self._tried) >= MAX_TRIED:
                del self._tried[next(iter(self._tried))]
            self._tried[f"{ref.name}@{digest}"] = self._clock() + RETRY
        else:
            self._sightings.learn(ref, digest, found)

    async def _find(self, image: ImageName, headers: HeaderList, digest: str, data: bytes) -> float | None:
        content = await _parse(data or await self._manifest(image, headers, digest))
        entries = content.get("manifests")
        if isinstance(entries, list):
            if (found := _latest(_annotated((content, *entries)))) is not None:
                return found
            child = _usual(entries)
            content = await _parse(await self._manifest(image, headers, child.digest)) if child else {}
        return _latest([*_annotated([content]), await self._config(image, headers, content.get("config"))])

    async def _config(self, image: ImageName, headers: HeaderList, fields: object) -> object:
        try:
            config = parse_descriptor(fields, "")
        except ValueError:
            return None
        if config.size > OBJECT_MAX:
            return None
        return (await _parse(await self._blob(image, headers, config.digest))).get("created")

    async def _manifest(self, image: ImageName, headers: HeaderList, digest: str) -> bytes:
        stored = self._stored(image, digest)
        if stored is None or not stored.media_type:
            content = await self._fetcher.manifests.get(image.part(Kind.MANIFEST, digest), headers, frozenset())
            if content.data:
                return content.data
            stored = self._store.objects.find(digest)
        return self._read(stored)

    def _stored(self, image: ImageName, digest: str) -> Stored | None:
        """The object, if it is stored and came from this very registry."""
        stored = self._store.objects.find(digest)
        return stored if stored is not None and image.registry in stored.registries else None

    def _read(self, stored: Stored | None) -> bytes:
        body = None if stored is None or stored.size > OBJECT_MAX else self._store.objects.body(stored)
        return bytes(body.view(0, body.size)) if isinstance(body, Mapped) else body or b""

    async def _blob(self, image: ImageName, headers: HeaderList, digest: str) -> bytes:
        if (stored := self._stored(image, digest)) is not None:
            return self._read(stored)
        fetcher, store = self._fetcher, self._store
        response = await fetcher.asking.open(image.part(Kind.BLOB, digest), "GET", headers)
        try:
            if response.status != 200:
                raise upstream_error(502, f"upstream answered {response.status}")
            data = (await fetcher.asking.unpacked(image.part(Kind.BLOB, digest), response, digest)).body
        except RequestError as error:
            if error.failure.code is Code.DIGEST_INVALID:
                self._events.verify_failure(image.registry)
            raise
        finally:
            response.close()
        if store.health.writable and await store.bounds.make(len(data)):
            await store.put(digest, data, "", within=image.name, description=Description())
        return data


async def _parse(data: bytes) -> dict[str, Any]:
    """The JSON object of these bytes; empty if they are not a JSON object."""
    try:
        if len(data) > LARGE:
            return await asyncio.to_thread(parse_object, data) if len(data) <= OBJECT_MAX else {}
        return parse_object(data)
    except ValueError:
        return {}


def _annotated(things: Iterable[object]) -> Iterator[object]:
    for thing in things:
        annotations = thing.get("annotations") if isinstance(thing, dict) else None
        if isinstance(annotations, dict):
            yield annotations.get(CREATED)


def _latest(values: Iterable[object]) -> float | None:
    """The latest date among the values; None if no value is a date."""
    return max((found for value in values if (found := parse_created(value)) is not None), default=None)


def _usual(entries: list[object]) -> Descriptor | None:
    """The manifest of an index that most clients would choose."""
    found = []
    for entry in entries:
        try:
            descriptor = parse_descriptor(entry, OCI_MANIFEST)
        except ValueError:
            continue
        if descriptor.media_type in _MANIFESTS and (descriptor.platform is None or descriptor.platform.system != "unknown"):
            found.append(descriptor)
    for platform in _USUAL:
        if chosen := [one for one in select(found, [platform]) if one.platform is not None]:
            return chosen[0]
    return found[0] if found else None
