"""Tag lists and referrers (distribution-spec, "Content Discovery"): kept for `tag_ttl`, and served stale on outages.

Admission controllers ask for the signatures of an image with every pod. Under `access = "verify"` a list is for the login
that it was given to, and so is a 404 in any case: registries hide private repositories by it, and those that know no
referrers say the same.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from cacheyd.cache.answer import (
    BYPASS,
    FEW_LEFT,
    HIT,
    MISS,
    STALE,
    STALE_WARNING,
    Answer,
    hit_headers,
    relay_answer,
    why_stale,
)
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.requester import Question, Requester, ask_once, requester_of
from cacheyd.protocol.bounded_json import parse_object
from cacheyd.protocol.errors import RequestError, upstream_error
from cacheyd.protocol.headers import HeaderList, content_length, credentials_of, end_to_end
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.settings.settings import Settings
from cacheyd.singleflight import SingleFlight
from cacheyd.store.lists import LIST_MAX, Listed
from cacheyd.store.store import Store
from cacheyd.upstream.port import Relay, Relayed, UpstreamBroken, UpstreamResponse, read_all
from cacheyd.upstream.ratelimit import REMEMBERED_BODY

# From this size on a list is looked into in a thread, one at a time (bytes).
LARGE = 128 << 10
# What is kept of the headers.
_KEPT = frozenset({"content-type", "docker-distribution-api-version", "link", "oci-filters-applied"})
_MEMBERS = {Kind.TAGS: "tags", Kind.REFERRERS: "manifests"}
# No referrers yet, or no such lists at all: a signature may come any moment after its image (seconds).
NOTHING_TTL = 30.0
# A list that is not complete after so long is passed on as it comes (seconds).
LIST_WAIT = 5.0


class TooLarge(Exception):
    """A list that is passed on as it comes, for each who asks, and not kept."""


class Listings:
    """Answers for lists, from memory or from upstream."""

    def __init__(
        self,
        store: Store,
        fetcher: Fetcher,
        *,
        clock: Callable[[], float] = time.time,
        below_floor: Callable[[str], bool] = lambda registry: False,
    ) -> None:
        self.store = store
        self._fetcher = fetcher
        self._clock = clock
        self._below_floor = below_floor
        self._large = asyncio.Lock()
        self._generation = 0
        self._asking: SingleFlight[Question, Requester, tuple[Relay, bool]] = SingleFlight()

    def forget(self) -> None:
        """After a change of settings: nobody joins what is being asked by the old ones, and permissions are asked for anew."""
        self._generation += 1
        self.store.lists.drop_personal()

    def refused(self, ref: Reference, headers: HeaderList) -> None:
        """Upstream refuses this login something of a repository: its lists are not for it any more."""
        if self._is_personal(ref):
            self.store.lists.drop_personal(f"{ref.registry}/v2/{ref.repository}/", credentials_of(headers).hex())

    @property
    def _settings(self) -> Settings:
        return self._fetcher.settings

    def hit(self, ref: Reference, headers: HeaderList) -> Answer | None:
        """What upstream said within `tag_ttl`. Never awaits."""
        listed = self._known(ref, headers)
        if listed is None or not 0 <= self._clock() - listed.checked < self._ttl(ref, listed):
            return None
        return self._answer(ref, listed, HIT)

    def _ttl(self, ref: Reference, listed: Listed) -> float:
        registry = self._settings.registry(ref.registry)
        # The answer is a permission, too.
        ttl = min(registry.tag_ttl, registry.access_ttl) if registry.access == "verify" else registry.tag_ttl
        return min(ttl, NOTHING_TTL) if ref.kind is Kind.REFERRERS and listed.empty else ttl

    def _is_personal(self, ref: Reference) -> bool:
        return self._settings.registry(ref.registry).access == "verify"

    def _known(self, ref: Reference, headers: HeaderList) -> Listed | None:
        lists = self.store.lists
        if not len(lists):
            return None
        if not self._is_personal(ref) and (found := lists.get(_name(ref))) is not None:
            return found
        return lists.get(_name(ref, credentials_of(headers).hex()))

    async def answer(self, ref: Reference, headers: HeaderList) -> Answer:
        """Upstream's list, or the last one that is known where upstream fails. Raises TooLarge, Relayed, RequestError."""
        if self._below_floor(ref.registry) and (answer := self._stale(ref, headers)):
            answer.note = FEW_LEFT
            return answer
        try:
            relay, kept = await self._ask(ref, headers)
        except (Relayed, RequestError) as error:
            status = error.relay.status if isinstance(error, Relayed) else error.failure.status
            # Where lists are a login's own, it is not to bring a stale one about itself.
            limited = status == 429 and not self._is_personal(ref)
            if (limited or status >= 500) and (answer := self._stale(ref, headers)):
                answer.note = why_stale(error)
                return answer
            if status in (401, 403, 404):
                self._forget(ref, headers)
            raise
        return relay_answer(ref, relay, MISS if kept else BYPASS, head=False)

    def _stale(self, ref: Reference, headers: HeaderList) -> Answer | None:
        listed = self._known(ref, headers)
        stale_if_error = self._settings.registry(ref.registry).stale_if_error
        if listed is None or self._clock() - listed.checked >= stale_if_error:
            return None
        answer = self._answer(ref, listed, STALE)
        answer.headers = (*answer.headers, STALE_WARNING)
        return answer

    def _answer(self, ref: Reference, listed: Listed, result: str) -> Answer:
        answer = relay_answer(ref, Relay(listed.status, listed.headers, listed.body), result, head=False)
        answer.headers = (*answer.headers, *hit_headers(self._clock(), listed.checked))
        return answer

    def _forget(self, ref: Reference, headers: HeaderList) -> None:
        """This login is told something else now; what others were given stays theirs."""
        who = credentials_of(headers).hex()
        for name in (_name(ref), _name(ref, who)):
            listed = self.store.lists.get(name)
            if listed is not None and listed.who == who and listed.status == 200:
                self.store.lists.discard(name)

    async def _ask(self, ref: Reference, headers: HeaderList) -> tuple[Relay, bool]:
        """What upstream says, once for all who ask at once, and whether it is kept."""
        mine = requester_of(ref, headers)
        whose = mine.credentials.hex() if self._is_personal(ref) else ""
        question = self._generation, _name(ref, whose)
        return await ask_once(self._asking, question, mine, lambda: self._fetch(ref, headers))

    async def _fetch(self, ref: Reference, headers: HeaderList) -> tuple[Relay, bool]:
        # What a stored login may list is not for clients that have to show their own.
        personal = self._is_personal(ref)
        generation = self._generation
        response = await self._fetcher.open(ref, "GET", headers, as_client=personal)
        if response.status != 200:
            relay = await self._fetcher.relay(response)
            if (
                generation == self._generation
                and relay.status == 404
                and ref.kind is Kind.REFERRERS
                and len(relay.body) <= REMEMBERED_BODY
            ):
                self._keep(ref, headers, relay, personal=True)
            raise Relayed(relay)
        relay = Relay(200, end_to_end(response.headers), await self._read(response))
        kept = await self._is_list(ref.kind, relay.body) and generation == self._generation
        if kept:
            self._keep(ref, headers, relay, personal=personal)
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
        """Whether this is a list as the specification has it: what is not is upstream's to explain, and not kept."""
        if len(body) > LARGE:
            async with self._large:
                content = await asyncio.to_thread(_parse, body)
        else:
            content = _parse(body)
        member = _MEMBERS[kind]
        # Some registries' encoders write an empty list so.
        return member in content and isinstance(content[member], list | None)

    def _keep(self, ref: Reference, headers: HeaderList, relay: Relay, *, personal: bool) -> None:
        who = credentials_of(headers).hex()
        kept = tuple(item for item in relay.headers if item[0].lower() in _KEPT)
        listed = Listed(relay.status, kept, relay.body, who, self._clock())
        self.store.lists.set(_name(ref, who if personal else ""), listed)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        body.decode()
        return parse_object(body)
    except ValueError:
        return {}


def _name(ref: Reference, who: str = "") -> str:
    return f"{ref.registry}{ref.path} {who}" if who else f"{ref.registry}{ref.path}"
