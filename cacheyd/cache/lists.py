"""Answers requests for tag lists and referrers (distribution-spec, "Content Discovery"): keeps each list for `tag_ttl`.

If upstream fails, the cache serves the last known list as stale. Lists are kept because many requests ask for them: admission
controllers ask for the signatures of an image with every pod.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from cacheyd.cache.answer import BYPASS, FEW_LEFT, HIT, MISS, STALE, Answer, hit_headers, why_stale
from cacheyd.cache.bypass import Bypass
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.kept_lists import KeptLists, name_of_list
from cacheyd.cache.relaying import relay_answer
from cacheyd.cache.request import Request
from cacheyd.cache.requester import Question, Requester, ask_once, requester_of
from cacheyd.protocol.bounded_json import parse_object
from cacheyd.protocol.errors import RequestError, upstream_error
from cacheyd.protocol.headers import HeaderList, content_length, end_to_end
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.singleflight import SingleFlight
from cacheyd.store.lists import LIST_MAX, Listed
from cacheyd.store.store import Store
from cacheyd.upstream.port import RegistryPolicy, Relay, Relayed, UpstreamBroken, UpstreamResponse, read_all
from cacheyd.upstream.ratelimit import REMEMBERED_BODY

# From this size on a list is parsed in a thread, one list at a time (bytes).
LARGE = 128 << 10
_MEMBERS = {Kind.TAGS: "tags", Kind.REFERRERS: "manifests"}
# How long the cache waits for a whole list before it passes the list on as it comes (seconds).
LIST_WAIT = 5.0


class TooLarge(Exception):
    """The list is too large or too slow: it is passed on as it comes, for each client, and not kept."""


class Listings:
    """Answers for lists, from memory or from upstream."""

    def __init__(
        self,
        store: Store,
        fetcher: Fetcher,
        bypass: Bypass,
        settings: Settings | Live,
        *,
        policy: RegistryPolicy,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._fetcher = fetcher
        self._bypass = bypass
        self._kept = KeptLists(store, settings, clock)
        self._policy = policy
        self._clock = clock
        self._large = asyncio.Lock()
        self._generation = 0
        self._asking: SingleFlight[Question, Requester, tuple[Relay, bool]] = SingleFlight()
        Live.of(settings).listen(lambda _: self.forget())

    def forget(self) -> None:
        """After a change of settings: no request joins an earlier question, and permissions are asked for again."""
        self._generation += 1
        self._kept.forget_personal()

    def refused(self, ref: Reference, headers: HeaderList) -> None:
        """Drops a repository's lists of this login, after upstream refused this login something in the repository."""
        self._kept.refused(ref, headers)

    def hit(self, ref: Reference, headers: HeaderList) -> Answer | None:
        """The list from memory, if upstream gave it within `tag_ttl`; else None. Never awaits."""
        listed = self._kept.get(ref, headers)
        if listed is None or not self._kept.is_fresh(ref, listed):
            return None
        return self._answer(ref, listed, HIT)

    async def answer(self, request: Request) -> Answer:
        """Upstream's list, or the last known list if upstream fails. Raises Relayed, RequestError."""
        if not request.head:
            with suppress(TooLarge):
                return await self._list(request.ref, request.headers)
        return await self._bypass.answer(request)

    async def _list(self, ref: Reference, headers: HeaderList) -> Answer:
        if self._policy.below_floor(ref.registry) and (answer := self._stale(ref, headers)):
            return answer.noted(FEW_LEFT)
        try:
            relay, kept = await self._ask(ref, headers)
        except (Relayed, RequestError) as error:
            status = error.relay.status if isinstance(error, Relayed) else error.failure.status
            # If lists belong to single logins, a client must not get a stale list by asking too often.
            limited = status == 429 and not self._kept.is_personal(ref)
            if (limited or status >= 500) and (answer := self._stale(ref, headers)):
                return answer.noted(why_stale(error))
            if status in (401, 403, 404):
                self._kept.forget(ref, headers)
            raise
        return relay_answer(ref, relay, MISS if kept else BYPASS, head=False)

    def _stale(self, ref: Reference, headers: HeaderList) -> Answer | None:
        listed = self._kept.get(ref, headers)
        if listed is None or not self._kept.may_be_stale(ref, listed):
            return None
        return self._answer(ref, listed, STALE).marked_stale()

    def _answer(self, ref: Reference, listed: Listed, result: str) -> Answer:
        answer = relay_answer(ref, Relay(listed.status, listed.headers, listed.body), result, head=False)
        return answer.with_headers(*hit_headers(self._clock(), listed.checked))

    async def _ask(self, ref: Reference, headers: HeaderList) -> tuple[Relay, bool]:
        """Upstream's answer, once for all clients that ask at the same time, and whether it is kept."""
        mine = requester_of(ref, headers)
        whose = mine.credentials.hex() if self._kept.is_personal(ref) else ""
        question = self._generation, name_of_list(ref, whose)
        return await ask_once(self._asking, question, mine, lambda: self._fetch(ref, headers))

    async def _fetch(self, ref: Reference, headers: HeaderList) -> tuple[Relay, bool]:
        # A list for cacheyd's stored login is not for clients that have to show a login of their own.
        personal = self._kept.is_personal(ref)
        generation = self._generation
        response = await self._fetcher.asking.open(ref, "GET", headers, as_client=personal)
        if response.status != 200:
            relay = await self._fetcher.asking.relay(response)
            if (
                generation == self._generation
                and relay.status == 404
                and ref.kind is Kind.REFERRERS
                and len(relay.body) <= REMEMBERED_BODY
            ):
                self._kept.keep(ref, headers, relay, personal=True)
            raise Relayed(relay)
        relay = Relay(200, end_to_end(response.headers), await self._read(response))
        kept = await self._is_list(ref.kind, relay.body) and generation == self._generation
        if kept:
            self._kept.keep(ref, headers, relay, personal=personal)
        return relay, kept

    async def _read(self, response: UpstreamResponse) -> bytes:
        try:
            async with asyncio.timeout(LIST_WAIT):
                large = (content_length(response.headers) or 0) > LIST_MAX
                body = None if large else await read_all(response, LIST_MAX, self._fetcher.budget)
        except UpstreamBroken as error:
            raise upstream_error(504 if error.timeout else 502, f"upstream: {error}") from error
        except TimeoutError:
            body = None
        finally:
            response.close()
        if body is None:
            raise TooLarge
        return body

    async def _is_list(self, kind: Kind, body: bytes) -> bool:
        """Whether the body is a list as the specification defines it. Any other body is passed on and not kept."""
        if len(body) > LARGE:
            async with self._large:
                content = await asyncio.to_thread(_parse, body)
        else:
            content = _parse(body)
        member = _MEMBERS[kind]
        # Some registries write an empty list as null.
        return member in content and isinstance(content[member], list | None)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        body.decode()
        return parse_object(body)
    except ValueError:
        return {}
