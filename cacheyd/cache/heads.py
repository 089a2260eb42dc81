"""Asks upstreams by HEAD about manifests, once for all clients that ask the same at the same time."""

import time
from collections.abc import Callable

from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.request import Request
from cacheyd.cache.requester import Question, Requester, ask_once, requester_of
from cacheyd.protocol.digest import DIGEST
from cacheyd.protocol.headers import HeaderList, content_length, end_to_end, header, media_type
from cacheyd.protocol.media_types import NO_TYPES
from cacheyd.protocol.reference import Reference
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.singleflight import SingleFlight
from cacheyd.store.records import TagVariant
from cacheyd.upstream.port import PERSONAL, Relay, Relayed

# Answers to HEAD that say nothing about GET: some registries do not know HEAD, or leave out the digest.
ASK_WITH_GET = frozenset({200, 404, 405, 501})


class Heads:
    """Asks upstreams by HEAD."""

    def __init__(self, fetcher: Fetcher, settings: Settings | Live, clock: Callable[[], float] = time.time) -> None:
        self._fetcher = fetcher
        self._clock = clock
        self._generation = 0
        self._asking: SingleFlight[Question, Requester, Relay] = SingleFlight()
        Live.of(settings).listen(lambda _: self.forget())

    def forget(self) -> None:
        """After a change of settings: no request joins a question that was asked under the old settings."""
        self._generation += 1

    async def answer(self, request: Request) -> Relay:
        """Upstream's answer to a HEAD of this manifest, once for all clients that ask at the same time with the same Accept.

        A refusal is an answer, too. Raises RequestError if upstream gives no answer.
        """
        ref = request.ref
        asked = request.asked
        question: Question = (self._generation, ref.registry, ref.repository, ref.reference, *sorted(asked))
        mine = requester_of(ref, request.headers)
        try:
            return await ask_once(self._asking, question, mine, lambda: self._ask(ref, request.headers, asked))
        except Relayed as error:
            return error.relay

    async def _ask(self, ref: Reference, headers: HeaderList, asked: frozenset[str]) -> Relay:
        response = await self._fetcher.asking.open(ref, "HEAD", headers)
        response.close()
        relay = Relay(response.status, end_to_end(response.headers), b"", from_head=True)
        if relay.status in PERSONAL:
            raise Relayed(relay)
        if ref.digest is None and is_complete(relay):
            await self._fetcher.manifests.tag_found(ref, headers, variant_of(relay, asked, self._clock()))
        return relay


def variant_of(relay: Relay, asked: frozenset[str], now: float) -> TagVariant:
    """The variant of a tag that upstream's answer to a HEAD describes."""
    return TagVariant(
        asked=asked,
        digest=header(relay.headers, "docker-content-digest") or "",
        media_type=media_type(relay.headers),
        size=content_length(relay.headers) or 0,
        checked=now,
    )


def stated_digest(headers: HeaderList) -> str:
    """The digest that upstream states in its headers; empty if there is none, or it is not a digest."""
    stated = header(headers, "docker-content-digest") or ""
    return stated if DIGEST.fullmatch(stated) else ""


def is_complete(relay: Relay) -> bool:
    """Whether the answer to a HEAD has all that containerd needs: digest, type and length."""
    name = media_type(relay.headers).lower()
    # If the type says nothing about the content, only the bytes show what it is.
    told = bool(name) and name not in NO_TYPES and not name.startswith("text/")
    return relay.status == 200 and bool(stated_digest(relay.headers)) and told and bool(content_length(relay.headers))
