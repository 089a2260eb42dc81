"""Hits: decides whether the cache can answer a request from disk at once, without asking upstream. Nothing here awaits."""

import time
from collections.abc import Callable

from cacheyd.cache.access import Access
from cacheyd.cache.answer import HELD, HIT, Answer
from cacheyd.cache.cooldown import Cooldown
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.freshness import is_fresh, tag_ttl
from cacheyd.cache.request import Request
from cacheyd.cache.stored import StoredAnswers
from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.media_types import OCTET_STREAM
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.store.records import TagVariant
from cacheyd.store.store import Store
from cacheyd.upstream.port import RegistryPolicy


class Hits:
    """Answers for objects and tags that are stored, known to be fresh, and allowed to this client."""

    def __init__(
        self,
        store: Store,
        fetcher: Fetcher,
        access: Access,
        cooldown: Cooldown,
        stored: StoredAnswers,
        settings: Settings | Live,
        *,
        policy: RegistryPolicy,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._access = access
        self._cooldown = cooldown
        self._stored = stored
        self._live = Live.of(settings)
        self._policy = policy
        self._clock = clock

    def allows(self, ref: Reference) -> bool:
        """Whether the operator allows requests for `ref`."""
        try:
            self._policy.check_allowed(ref)
        except RequestError:
            return False
        return True

    def find(self, request: Request, *, permitted: bool = False) -> Answer | None:
        """The answer from disk, or None if the cache has to ask upstream. No stored content makes it raise.

        `permitted` says that upstream just allowed this very request.
        """
        ref = request.ref
        if permitted:
            # A registry can allow an object that it does not have itself.
            allowed = ref.digest is None or self._access.has(ref)
        else:
            allowed = self.allows(ref) and self._access.granted(ref, request.headers)
        if not allowed:
            return None
        if ref.digest is None:
            return self._tag(request)
        return self._blob(request, ref.digest) if ref.kind is Kind.BLOB else self._manifest(request, ref.digest)

    def _blob(self, request: Request, digest: str) -> Answer | None:
        if request.range is not None:
            start = (request.ranges.start if request.ranges else 0) or 0
            if self._fetcher.failures.resume_refused(request.ref.registry, digest, start):
                return None
        stored = self._store.objects.find(digest)
        if stored is None or stored.media_type:
            # The object is a manifest: only the registry knows whether it serves this manifest as a blob, too.
            return None
        return self._stored.of_object(request, stored, OCTET_STREAM, HIT, stored.created)

    def _manifest(self, request: Request, digest: str) -> Answer | None:
        stored = self._store.objects.find(digest)
        if stored is None or not request.takes(stored.media_type):
            return None
        return self._stored.of_object(request, stored, stored.media_type, HIT, stored.created)

    def _tag(self, request: Request) -> Answer | None:
        ref, now = request.ref, self._clock()
        if self._cooldown.active:
            self._cooldown.ripen(ref)
        variant = self._stored.variant(request)
        if variant is None or not is_fresh(variant, tag_ttl(self._live.settings, ref), now):
            return None
        return None if self._access.is_gone(ref, request.headers) else self._fresh(request, variant)

    def _fresh(self, request: Request, variant: TagVariant) -> Answer | None:
        ref = request.ref
        hold = self._cooldown.hold(ref, variant.asked) if self._cooldown.active else None
        if hold is None:
            return self._stored.of_tag(request, variant, HIT)
        until = self._cooldown.held_until(ref, hold.candidate.digest)
        if until is None:
            return None  # The hold on the newer image is over, and that image is not stored: upstream has to answer.
        answer = self._stored.of_tag(request, variant, HELD)
        return answer and answer.marked_held(hold.candidate.digest, until)
