"""Finds the image that is served in place of a tag's new image while the new image is too young (`min_age`)."""

import time
from collections.abc import Callable
from dataclasses import replace

from cacheyd.cache.access import Access
from cacheyd.cache.admission import Admission
from cacheyd.cache.answer import HELD, Answer
from cacheyd.cache.cooldown import Cooldown
from cacheyd.cache.digests import Digests
from cacheyd.cache.freshness import is_fresh, tag_ttl
from cacheyd.cache.heads import stated_digest
from cacheyd.cache.request import Request
from cacheyd.cache.stored import StoredAnswers
from cacheyd.protocol.headers import HeaderList
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.store.records import TagVariant
from cacheyd.upstream.port import Relayed


class StandIns:
    """Answers for held tags."""

    def __init__(
        self,
        access: Access,
        cooldown: Cooldown,
        admission: Admission,
        stored: StoredAnswers,
        digests: Digests,
        settings: Settings | Live,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._access = access
        self._cooldown = cooldown
        self._admission = admission
        self._stored = stored
        self._digests = digests
        self._live = Live.of(settings)
        self._clock = clock

    def refuse_held(self, request: Request) -> None:
        """Raises RequestError if the tag's last known image is too young, its answer is fresh, and no other may be served."""
        ref, asked = request.ref, request.asked
        hold = self._cooldown.hold(ref, asked)
        if hold is None or self._cooldown.allows(ref) or self._access.is_gone(ref, request.headers):
            return
        until = self._cooldown.held_until(ref, hold.candidate.digest)
        fresh = is_fresh(hold.candidate, tag_ttl(self._live.settings, ref), self._clock())
        if until is not None and fresh and self._cooldown.previous(ref, asked) is None:
            raise self._cooldown.refusal(ref, hold.candidate.digest, until)

    async def instead(self, request: Request, headers: HeaderList, answer: Answer | None = None) -> Answer | None:
        """The answer that is served in place of upstream's image of a tag, if this image is too young; else None.

        `headers` are those of upstream's answer, or of the answer made from it. Raises RequestError 403 if no other image can
        be served.
        """
        ref, cooldown = request.ref, self._cooldown
        if not cooldown.active:
            return None
        digest = stated_digest(headers)
        until = cooldown.held_until(ref, digest)
        if until is None:
            return None
        found, as_it_is = None, False
        try:
            while found is None and (previous := cooldown.previous(ref, request.asked)) is not None:
                found = await self._by_digest(request, previous)
                if found is None:
                    self._admission.lost(ref, previous.digest, request.asked)
            as_it_is = found is None and cooldown.allows(ref)
        finally:
            if answer is not None and answer.source is not None and not as_it_is:
                answer.source.close()
        if as_it_is:
            return None
        if found is None:
            raise cooldown.refusal(ref, digest, until)
        return found.marked_held(digest, until)

    async def _by_digest(self, request: Request, variant: TagVariant) -> Answer | None:
        """The earlier image of a tag, from disk or else from upstream; None if neither has it any more."""
        ref = request.ref
        if self._stored.is_here(ref, variant.digest) and (answer := self._stored.of_tag(request, variant, HELD)):
            return answer
        by_digest = replace(request, ref=replace(ref, reference=variant.digest, digest=variant.digest))
        try:
            answer = await self._digests.from_upstream(by_digest)
        except Relayed as error:
            if error.relay.status != 404:
                raise
            return None
        return answer.in_place_of(ref)
