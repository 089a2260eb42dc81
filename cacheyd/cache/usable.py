"""Makes upstreams' answers usable for the cache: refuses a status that cannot be an answer, decodes encoded bodies."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from cacheyd.cache.decoded import NO_ROOM, Whole, read_decoded
from cacheyd.protocol.codings import codings_of
from cacheyd.protocol.errors import RequestError, cache_error, explain, upstream_error
from cacheyd.protocol.headers import header, without
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.resources.budget import Budget
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.store.objects import MANIFEST_MAX as KEPT_MAX
from cacheyd.upstream.port import Chunk, Upstream, UpstreamBroken, UpstreamRequest, UpstreamResponse
from cacheyd.upstream.relay import RELAY_MAX, RELAY_WAIT

log = logging.getLogger(__name__)


class Usable:
    """An upstream whose answers fit the request; only objects still have a coding. Implements `Upstream`."""

    def __init__(self, upstream: Upstream, settings: Settings | Live, budget: Budget) -> None:
        self._upstream = upstream
        self._live = Live.of(settings)
        self._budget = budget

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """The head of the response. Raises UpstreamBroken, and RequestError for an answer that is no use."""
        ref = request.ref
        try:
            response = await self._upstream.open(request)
        except (UpstreamBroken, RequestError):
            raise
        except Exception as error:
            raise unexpected(ref.registry, error) from error
        if not _is_an_answer(ref, response.status, part=header(request.headers, "range") is not None):
            # No request of the cache has such an answer, and clients fail on a 304 or a redirect without a target.
            response.close()
            raise upstream_error(502, f"upstream answered {response.status}")
        return await self._without_coding(ref, request.method, response)

    async def _without_coding(self, ref: Reference, method: str, response: UpstreamResponse) -> UpstreamResponse:
        """The response without its coding. Objects stay as they came: their digest shows whether they are encoded.

        Raises RequestError for a list that cannot be decoded. If an error's body cannot be decoded, reading it raises.
        """
        if not codings_of(response.headers):
            return response
        if method == "HEAD":
            return _Uncoded(response)
        if response.status >= 400:
            body: bytes | None = None
            with suppress(RequestError, TimeoutError):
                async with asyncio.timeout(RELAY_WAIT):
                    body = await read_decoded(ref, response, RELAY_MAX, self._budget)
            return Whole(response, body, self._budget)
        if ref.kind in (Kind.MANIFEST, Kind.BLOB):
            return response
        try:
            async with asyncio.timeout(self._live.settings.progress_timeout):
                body = await read_decoded(ref, response, KEPT_MAX, self._budget)
        except TimeoutError:
            raise upstream_error(504, "upstream's answer is encoded, and took too long") from None
        if not self._budget.has_room_for(body):
            raise cache_error(NO_ROOM, 503)
        return Whole(response, body, self._budget)


class _Uncoded:
    """The answer to a HEAD, without the coding and the length: it is the length of the encoded bytes, not the object's."""

    def __init__(self, response: UpstreamResponse) -> None:
        self.status = response.status
        self.headers = without(response.headers, "content-encoding", "content-length")
        self.by_other_host = response.by_other_host
        self._response = response

    async def read(self) -> Sequence[Chunk]:
        """The response's next chunks."""
        return await self._response.read()

    def close(self) -> None:
        """Closes the response."""
        self._response.close()


def unexpected(registry: str, error: Exception) -> RequestError:
    """Logs an unexpected exception as an error; gives the error that tells the client to ask elsewhere."""
    log.error("fetching from %s failed: %s", registry, explain(error))
    log.debug("the exception was", exc_info=error)
    return upstream_error(502, f"fetching failed: {type(error).__name__}")


def _is_an_answer(ref: Reference, status: int, *, part: bool) -> bool:
    """Whether this status can be an answer to the request. For lists the registry decides what most statuses mean."""
    if ref.kind in (Kind.MANIFEST, Kind.BLOB):
        return status == 200 or (status == 206 and part) or 400 <= status < 600
    return (200 <= status < 300 or 400 <= status < 600) and status not in (204, 205, 206)
