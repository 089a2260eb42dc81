"""`min_age`: a tag leads to a new image only once that is old enough, and to the one before until then.

What shows an age is `first`, when this cache saw the digest first under a tag of that repository, or `created`, what the
image says itself; one of the two is enough. Tags in the store lead to what may be served; what may not yet is a `Hold`.
This module knows what is held, and until when; `admission` decides what is.
"""

from collections.abc import Sequence

from cacheyd.cache.age import MinAges, shown
from cacheyd.cache.freshness import find_variant, is_memorable
from cacheyd.cache.sightings import Sightings, name_of
from cacheyd.protocol.accept import accepts
from cacheyd.protocol.errors import Code, RequestError, client_error
from cacheyd.protocol.reference import Reference
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.store.records import TagVariant
from cacheyd.store.sights import Hold, Sight
from cacheyd.store.store import Store


class Cooldown:
    """Which of the digests that upstream says a tag has may be served. `active` says whether any tag has a `min_age`."""

    def __init__(self, store: Store, sightings: Sightings, settings: Settings | Live) -> None:
        self._store = store
        self._sightings = sightings
        live = Live.of(settings)
        self.ages = MinAges(live.settings)
        self.active = self.ages.any
        store.sights.configure(live.settings.registries.keys())
        live.listen(self._configure)

    def _configure(self, settings: Settings) -> None:
        self.ages = MinAges(settings)
        self.active = self.ages.any
        self._store.sights.configure(settings.registries.keys())

    def covers(self, ref: Reference) -> bool:
        """Whether this is a tag with a `min_age`."""
        return self.active and self.ages.of(ref) > 0

    def allows(self, ref: Reference) -> bool:
        """Whether what is too young is served where nothing else can be."""
        return self.ages.action(ref) == "allow"

    # What is known of a tag

    def variants(self, ref: Reference) -> Sequence[TagVariant]:
        """What a tag may lead to, by what clients asked for."""
        return self._store.tags.variants(ref.registry, ref.repository, ref.reference)

    def hold(self, ref: Reference, asked: frozenset[str]) -> Hold | None:
        """The hold of a tag for clients that ask with these types."""
        return next((hold for hold in self._store.sights.holds(name_of(ref)) if hold.candidate.asked == asked), None)

    def previous(self, ref: Reference, asked: frozenset[str]) -> TagVariant | None:
        """What clients that ask with these types get meanwhile: what they had before, else what is of a type they take."""
        variants = self.variants(ref)
        held = [hold.served for hold in self._store.sights.holds(name_of(ref)) if hold.served is not None]
        found = find_variant(variants, asked, asked)
        others = (variant for variant in (*variants, *held) if accepts(asked, variant.media_type))
        return found or max(others, key=lambda variant: variant.checked, default=None)

    def is_held(self, ref: Reference, digest: str, sight: Sight) -> bool:
        """Whether this is too young, and the tag never led there before, for whatever client."""
        return self._sightings.now() < self.ages.ripe_at(ref, sight) and not self._is_approved(ref, digest)

    def _is_approved(self, ref: Reference, digest: str) -> bool:
        return any(variant.digest == digest for variant in self.variants(ref))

    def held_until(self, ref: Reference, digest: str) -> float | None:
        """Until when a tag does not lead to this digest; None if it may."""
        if not self.ages.of(ref) or self.ages.action(ref) == "audit":
            return None
        # A manifest without a digest, or one too large to be looked into, waits for its time all the same.
        sight = self._sightings.see(ref, digest) if digest else self._sightings.unseen()
        return self.ages.ripe_at(ref, sight) if self.is_held(ref, digest, sight) else None

    def refusal(self, ref: Reference, digest: str, until: float) -> RequestError:
        """403 with the time from which on it is served."""
        wait = max(1, int(until - self._sightings.now()) + 1)
        message = "this tag leads to an image that is too young (min_age), and none before it is known"
        known = {"digest": digest} if digest else {}
        return client_error(
            403, Code.DENIED, f"{message}; it is served from {shown(until)} on",
            headers=(("Retry-After", str(wait)),), until=shown(until), **known,
        )  # fmt: skip

    def count(self) -> int:
        """How many tags are held now."""
        held, now = self._store.sights.held, self._sightings.now()
        return sum(any(hold.until > now for hold in held.get(name) or ()) for name in held)

    # What a tag leads to from now on

    def ripen(self, ref: Reference) -> None:
        """Has the tag lead to what was held, if that is old enough by now, and here."""
        for hold in self._store.sights.holds(name_of(ref)):
            digest = hold.candidate.digest
            if self.held_until(ref, digest) is None and self._store.objects.find(digest) is not None:
                self.promote(ref, hold)

    def promote(self, ref: Reference, hold: Hold) -> None:
        """Ends a hold: the tag leads to what was held."""
        self._store.sights.let_go(name_of(ref), hold.candidate.asked)
        self.set_tag(ref, hold.candidate)

    def set_tag(self, ref: Reference, variant: TagVariant) -> None:
        """Has a tag lead there."""
        if is_memorable(variant.asked):
            self._store.tags.set(ref.registry, ref.repository, ref.reference, variant)
            # The tag leads there now, so nobody is held from it.
            self._store.sights.drop(name_of(ref), variant.digest)
