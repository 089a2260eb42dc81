"""Fetches manifests: each once for all clients that want it, verifies and keeps it, and notes which image a tag leads to."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cacheyd.cache.asking import Asking
from cacheyd.cache.decoded import decoded
from cacheyd.cache.examine import Examined, examine, expected_digest, is_whole
from cacheyd.cache.flight import NotKept
from cacheyd.cache.freshness import is_memorable
from cacheyd.cache.requester import Question, Requester, ask_once, requester_of
from cacheyd.observe.events import Events
from cacheyd.protocol.codings import codings_of
from cacheyd.protocol.errors import Code, RequestError, upstream_error
from cacheyd.protocol.headers import HeaderList, content_length
from cacheyd.protocol.reference import Reference
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.singleflight import SingleFlight
from cacheyd.store.objects import MANIFEST_MAX as KEPT_MAX
from cacheyd.store.objects import SMALL
from cacheyd.store.records import TagVariant
from cacheyd.store.store import Store
from cacheyd.upstream.port import Relayed, UpstreamBroken, UpstreamResponse, as_request_error

# The largest manifest that is passed on (bytes). A manifest above `KEPT_MAX` bypasses the store: clients refuse it.
MANIFEST_MAX = 8 << 20
# Above this size a manifest is hashed and parsed in a thread, one manifest at a time (bytes).
LARGE_MANIFEST = 256 << 10
# The memory that all manifests on their way in may take (bytes). Manifests that do not fit in it bypass the store.
MANIFESTS_MAX = 16 << 20


@dataclass(frozen=True, slots=True)
class ManifestContent:
    """A verified manifest. `stored` says whether it is on disk; a large manifest is only there, and `data` is empty."""

    digest: str
    media_type: str
    data: bytes
    stored: bool


# Decides whether a tag may lead to upstream's image. Gets the manifest's bytes if they are known. True if it has decided.
type Admit = Callable[[Reference, HeaderList, TagVariant, bytes], Awaitable[bool]]


async def _no_opinion(ref: Reference, headers: HeaderList, variant: TagVariant, data: bytes) -> bool:
    return False


class Manifests:
    """Fetches manifests, each once no matter how many clients wait."""

    def __init__(
        self,
        store: Store,
        asking: Asking,
        settings: Settings | Live,
        *,
        events: Events,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._asking = asking
        self._live = Live.of(settings)
        self._live.listen(lambda settings: self.forget())
        self._events = events
        self._clock = clock
        self.admit: Admit = _no_opinion
        self._running: SingleFlight[Question, Requester, ManifestContent] = SingleFlight()
        self._generation = 0
        self._held_bytes = 0
        self._large = asyncio.Lock()

    def admitted_by(self, admit: Admit) -> None:
        """Sets the function that decides from now on which image a tag may lead to."""
        self.admit = admit

    def forget(self) -> None:
        """After a change of settings: no request joins a fetch that began under the old settings."""
        self._generation += 1

    def tasks(self) -> list[asyncio.Task[ManifestContent]]:
        """The fetches that run now."""
        return self._running.tasks()

    async def get(self, ref: Reference, headers: HeaderList, asked: frozenset[str]) -> ManifestContent:
        """A manifest by tag or digest, verified and kept; fetched once for all clients that ask at the same time.

        Requests for a tag share a fetch only if they have the same Accept. Raises Relayed for an answer that is not the
        manifest, RequestError if upstream gives no answer, NotKept for a manifest that is too large for memory.
        """
        # The question has the repository even for a digest: a client may be allowed in one repository and not in another.
        of_tag = () if ref.digest else sorted(asked)
        question = self._generation, ref.registry, ref.repository, ref.reference, *of_tag
        return await ask_once(self._running, question, requester_of(ref, headers), lambda: self._fetch(ref, headers, asked))

    async def _fetch(self, ref: Reference, headers: HeaderList, asked: frozenset[str]) -> ManifestContent:
        response = await self._asking.open(ref, "GET", headers)
        if response.status != 200:
            relay = await self._asking.relay(response)
            if relay.status < 400:
                raise upstream_error(502, f"upstream answered {relay.status} to a GET of a manifest")
            raise Relayed(relay)
        data = bytearray()
        try:
            await self._read(ref, response, data)
            content = await self._keep(ref, response.headers, data)
        finally:
            response.close()
            self._held_bytes -= len(data)
        if ref.digest is None:
            variant = TagVariant(asked, content.digest, content.media_type, len(data), self._clock())
            await self.tag_found(ref, headers, variant, content.data)
        return content

    async def tag_found(self, ref: Reference, headers: HeaderList, variant: TagVariant, data: bytes = b"") -> None:
        """Remembers upstream's answer about a tag, unless `admit` does that. `data`: the manifest's bytes, if known.

        Call this method in the task that asks upstream, not in a task that waits for the answer: a client that comes between
        the two must find the tag.
        """
        if not await self.admit(ref, headers, variant, data) and is_memorable(variant.asked):
            self._store.tags.set(ref.registry, ref.repository, ref.reference, variant)

    async def _read(self, ref: Reference, response: UpstreamResponse, data: bytearray) -> None:
        """Appends the body to `data`. Raises RequestError, and NotKept for a manifest that is too large for memory."""
        length = content_length(response.headers)
        if length is not None and KEPT_MAX < length <= MANIFEST_MAX:
            raise NotKept
        limit = KEPT_MAX if length is None or length <= KEPT_MAX else 0
        try:
            async with asyncio.timeout(self._live.settings.progress_timeout):
                while chunks := await response.read():
                    more = sum(map(len, chunks))
                    if len(data) + more > limit:
                        raise upstream_error(502, f"upstream's manifest has more than {limit or MANIFEST_MAX} bytes")
                    if self._held_bytes + more > MANIFESTS_MAX:
                        raise NotKept
                    self._held_bytes += more
                    for chunk in chunks:
                        data += chunk
        except UpstreamBroken as error:
            if not is_whole(ref, response.headers, data):
                raise as_request_error(error) from error
            return
        except TimeoutError:
            raise upstream_error(504, "upstream stopped in the middle of a manifest") from None
        if len(data) != (length or len(data)):
            raise upstream_error(502, "upstream's manifest ended early")

    async def _keep(self, ref: Reference, headers: HeaderList, data: bytearray) -> ManifestContent:
        if not (codings := codings_of(headers)):
            return await self._keep_decoded(ref, headers, data)
        digest, _ = expected_digest(ref, headers)
        try:
            plain = await decoded(ref, data, codings, KEPT_MAX, self._asking.budget, digest=digest)
        except RequestError as error:
            self._tell(ref, error)
            raise
        if self._held_bytes + len(plain) > MANIFESTS_MAX:
            raise NotKept
        self._held_bytes += len(plain)
        try:
            return await self._keep_decoded(ref, headers, plain)
        finally:
            self._held_bytes -= len(plain)

    async def _keep_decoded(self, ref: Reference, headers: HeaderList, data: bytes | bytearray) -> ManifestContent:
        found = await self._examine(ref, headers, data)
        stored = None
        # If the bytes do not state the type, only this upstream did: such an object is not stored for other registries.
        if found.description.media_type and self._store.health.writable and await self._store.bounds.make(len(found.data)):
            stored = await self._store.put(
                found.digest, found.data, found.media_type, within=ref.name, description=found.description
            )
        if len(found.data) <= SMALL:
            return ManifestContent(found.digest, found.media_type, bytes(found.data), stored is not None)
        if stored is None and len(found.data) > LARGE_MANIFEST:
            raise NotKept
        return ManifestContent(found.digest, found.media_type, b"" if stored else bytes(found.data), stored is not None)

    async def _examine(self, ref: Reference, headers: HeaderList, data: bytes | bytearray) -> Examined:
        try:
            if len(data) > LARGE_MANIFEST:
                async with self._large:
                    return await asyncio.to_thread(examine, ref, headers, data)
            return examine(ref, headers, data)
        except RequestError as error:
            self._tell(ref, error)
            raise

    def _tell(self, ref: Reference, error: RequestError) -> None:
        if error.failure.code is Code.DIGEST_INVALID:
            self._events.verify_failure(ref.registry)
