"""Answers a request: waits until the cache is open, parses the target, gets a page or an object, and answers failures."""

import logging
from collections.abc import Callable

from cacheyd.cache.answer import Answer, error_answer
from cacheyd.cache.cache import Cache
from cacheyd.cache.request import parse_request
from cacheyd.protocol.errors import Code, RequestError, cache_error, client_error
from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.targets import Page, parse_target
from cacheyd.service.pages import Pages
from cacheyd.service.readiness import Readiness
from cacheyd.service.transfers import Transfers
from cacheyd.settings.live import Live

log = logging.getLogger(__name__)


class Answering:
    """Answers requests. `hit` is synchronous and never waits; `answer` waits, and always gives an answer."""

    def __init__(self, live: Live, cache: Cache, pages: Pages, readiness: Readiness, transfers: Transfers) -> None:
        self._live = live
        self._cache = cache
        self._pages = pages
        self._readiness = readiness
        self._transfers = transfers

    def hit(self, method: str, target: str, headers: HeaderList) -> Answer | None:
        """The answer from disk to a GET or HEAD; None if the cache cannot give an answer without waiting.

        If the answer has a source, the caller must call `end` and `sent` of the transfers afterwards.
        """
        if not self._readiness.ready:
            return None
        try:
            ref = parse_target(target, self._live.settings.default_registry)
        except RequestError:
            return None
        if isinstance(ref, Page):
            return None
        request = parse_request(method, ref, headers)
        if self._transfers.stopping and self._transfers.refuses(request):
            return None
        answer = self._cache.hit(request)
        if answer is not None and answer.source is not None:
            self._transfers.begin()
            self._transfers.sending(answer)
        return answer

    async def answer(self, method: str, target: str, headers: HeaderList, gone: Callable[[], bool]) -> Answer:
        """The answer to any request, also to one that fails. `gone` says whether the client has left."""
        try:
            if not self._readiness.ready and not target.startswith("/healthz"):
                await self._wait(target)
            if method not in ("GET", "HEAD"):
                allow = (("Allow", "GET, HEAD"),)
                message = "cacheyd takes no uploads: push to the registry itself"
                raise client_error(405, Code.UNSUPPORTED, message, headers=allow)
            ref = parse_target(target, self._live.settings.default_registry)
            if isinstance(ref, Page):
                return self._pages.answer(ref, headers)
            request = parse_request(method, ref, headers)
            if self._transfers.refuses(request):
                raise cache_error("cacheyd is stopping", 503)
            return await self._cache.answer(request, gone)
        except RequestError as error:
            return error_answer(error)
        except Exception:
            log.exception("a request failed")
            return error_answer(cache_error("cacheyd failed to answer"))

    async def _wait(self, target: str) -> None:
        """Waits until the store is open; not for a readiness probe, and not while cacheyd stops. Raises RequestError 503."""
        patient = not (self._transfers.stopping or target.startswith("/readyz"))
        await self._readiness.wait(patient=patient, most=self._live.settings.max_waiting)
