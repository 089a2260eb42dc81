"""Asks the cache for the parts of one image, as a client does, with the client's login."""

import asyncio
from dataclasses import replace

from cacheyd import __version__
from cacheyd.cache.answer import BYPASS, HELD, Answer
from cacheyd.cache.bodies import BodyBroken
from cacheyd.cache.cache import Cache
from cacheyd.cache.request import Request
from cacheyd.protocol.bounded_json import parse_object
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
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.upstream.auth import answer_challenge
from cacheyd.upstream.port import Transport, UpstreamBroken

# The same Accept as containerd's, so that the cache gets the tag's variant for containerd.
ACCEPT = ", ".join((DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX, "*/*"))

# Some registries refuse requests without a User-Agent.
AGENT = ("User-Agent", f"cacheyd/{__version__}")

# The longest manifest or list of referrers that is read (bytes).
MAX_BODY = 8 << 20


class Failed(Exception):
    """A part of an image could not be fetched or kept; the message says why. `status` is the registry's, 0 for no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_missing(self) -> bool:
        """Whether the registry says that the object does not exist, or that it does not know this kind of object."""
        return 400 <= self.status < 500 and self.status not in (401, 429)


class NotManifest(Failed):
    """The body that came is not a manifest."""


class Session:
    """Asks the cache for the parts of one image: without a login, like a client that names the registry in the path; with a
    login, like containerd.
    """

    def __init__(self, cache: Cache, transport: Transport, image: ImageName, login: str) -> None:
        self._cache = cache
        self._transport = transport
        self._image = image
        self._login = login
        self._authorization: HeaderList = ()
        # Why the tag is held (`min_age`): then the image is not the one that the tag has upstream.
        self.held = ""
        self._asking = asyncio.Lock()

    async def get(self, kind: Kind, reference: str, *, media_type: str = "", query: str = "") -> Answer:
        """The cache's answer with status 200. Answers a challenge of the registry with the login. Raises Failed.

        `media_type` is the type that a manifest's descriptor says.
        """
        ref = self._image.part(kind, reference, self._image.registry if self._login else "")
        ref = replace(ref, query=query) if query else ref
        sent, accept = self._authorization, accepted(kind, media_type)
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

    async def manifest(self, reference: str, media_type: str = "") -> tuple[str, Manifest]:
        """Gets a manifest into the cache; its digest and content. Raises Failed, and NotManifest if it is not a manifest."""
        answer = await self.get(Kind.MANIFEST, reference, media_type=media_type)
        data = await whole_body(answer)
        digest = header(answer.headers, "docker-content-digest") or ""
        try:
            content = parse_manifest(data)
        except ValueError as error:
            raise NotManifest(str(error)) from error
        if answer.result == BYPASS or not self.is_kept(digest):
            raise Failed("the manifest was not kept: there is no room on the disk, or it refuses writes")
        return digest, content

    def is_kept(self, digest: str) -> bool:
        """Whether the object is in the cache."""
        return self._cache.store.objects.find(digest) is not None

    async def kind_here(self, digest: str) -> Kind | None:
        """The kind of an object in the cache; None if it is not in the cache, or is a manifest that came as a blob."""
        stored = self._cache.store.objects.find(digest)
        if stored is None or (stored.kind is Kind.BLOB and await self.is_manifest(digest)):
            return None
        return stored.kind

    async def is_manifest(self, digest: str) -> bool:
        """Whether the object is in the cache and is a manifest by its bytes."""
        stored = self._cache.store.objects.find(digest)
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
            # The token service limits its rate, and the limit ends soon.
            waited = True
            await asyncio.sleep(wait)


def accepted(kind: Kind, media_type: str) -> tuple[str, ...]:
    """The Accept lines for a request. Like containerd, asks for an object with a descriptor by its media type first."""
    if kind is Kind.REFERRERS:
        return (OCI_INDEX,)
    if kind is not Kind.MANIFEST:
        return ()
    known = not is_media_type(media_type) or kind_of(media_type) is Kind.MANIFEST
    return (ACCEPT,) if known and media_type not in ARTIFACTS else (f"{media_type}, {ACCEPT}",)


async def whole_body(answer: Answer) -> bytes:
    """All bytes of a manifest. Raises Failed, also for a manifest of more than MAX_BODY bytes."""
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
    """Closes the source of an answer, if it has one: nobody reads more of it."""
    if answer.source is not None:
        answer.source.close()


def _why(answer: Answer) -> str:
    """The status and the message of an answer that is an error."""
    try:
        errors = parse_object(bytes(answer.body)).get("errors")
        message = errors[0].get("message") if isinstance(errors, list) else ""
    except (ValueError, LookupError, AttributeError):
        message = ""
    shown = str(message or "")[:300]
    return f"{answer.status} {shown if shown.isprintable() and shown else phrase(answer.status)}"
