"""`min_age`: a tag leads to a new image only when this image is old enough, and to the earlier image until then.

Two dates can prove an age: `first`, when this cache first saw the digest under a tag of the repository, and `created`, the
image's own date. One of the two is enough. Tags in the store lead to images that may be served; a `Hold` keeps an image that
is still too young. This module knows which images are held, and until when; `admission` decides which are.
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
    """Tells which of a tag's digests may be served. `active` says whether any tag has a `min_age`."""

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
        """Whether `ref` is a tag with a `min_age`."""
        return self.active and self.ages.of(ref) > 0

    def allows(self, ref: Reference) -> bool:
        """Whether an image that is too young is served if no other image can be."""
        return self.ages.action(ref) == "allow"

    # The state of a tag

    def variants(self, ref: Reference) -> Sequence[TagVariant]:
        """The images that a tag may lead to, by the types that clients asked for."""
        return self._store.tags.variants(ref.registry, ref.repository, ref.reference)

    def hold(self, ref: Reference, asked: frozenset[str]) -> Hold | None:
        """The hold of a tag for clients that ask with these types."""
        return next((hold for hold in self._store.sights.holds(name_of(ref)) if hold.candidate.asked == asked), None)

    def previous(self, ref: Reference, asked: frozenset[str]) -> TagVariant | None:
        """The image for clients that ask with these types during a hold: their earlier image, else one of a type they take."""
        variants = self.variants(ref)
        held = [hold.served for hold in self._store.sights.holds(name_of(ref)) if hold.served is not None]
        found = find_variant(variants, asked, asked)
        others = (variant for variant in (*variants, *held) if accepts(asked, variant.media_type))
        return found or max(others, key=lambda variant: variant.checked, default=None)

    def is_held(self, ref: Reference, digest: str, sight: Sight) -> bool:
        """Whether the image is too young, and the tag never led to it before, for any client."""
        return self._sightings.now() < self.ages.ripe_at(ref, sight) and not self._is_approved(ref, digest)

    def _is_approved(self, ref: Reference, digest: str) -> bool:
        return any(variant.digest == digest for variant in self.variants(ref))

    def held_until(self, ref: Reference, digest: str) -> float | None:
        """Until when a tag must not lead to this digest (seconds since the epoch); None if it may."""
        if not self.ages.of(ref) or self.ages.action(ref) == "audit":
            return None
        # A manifest whose digest is unknown, or that is too large to be read, has to wait for its time all the same.
        sight = self._sightings.see(ref, digest) if digest else self._sightings.unseen()
        return self.ages.ripe_at(ref, sight) if self.is_held(ref, digest, sight) else None

    def refusal(self, ref: Reference, digest: str, until: float) -> RequestError:
        """The error 403, with the time from which the image is served."""
        wait = max(1, int(until - self._sightings.now()) + 1)
        message = "this tag leads to an image that is too young (min_age), and no earlier image is known"
        known = {"digest": digest} if digest else {}
        return client_error(
            403, Code.DENIED, f"{message}; the image is served from {shown(until)} on",
            headers=(("Retry-After", str(wait)),), until=shown(until), **known,
        )  # fmt: skip

    def count(self) -> int:
        """How many tags are held now."""
        held, now = self._store.sights.held, self._sightings.now()
        return sum(any(hold.until > now for hold in held.get(name) or ()) for name in held)

    # Changes of the image that a tag leads to

    def ripen(self, ref: Reference) -> None:
        """Makes the tag lead to its held image, if this image is old enough by now and stored."""
        for hold in self._store.sights.holds(name_of(ref)):
            digest = hold.candidate.digest
            if self.held_until(ref, digest) is None and self._store.objects.find(digest) is not None:
                self.promote(ref, hold)

    def promote(self, ref: Reference, hold: Hold) -> None:
        """Ends a hold: the tag leads to the held image."""
        self._store.sights.let_go(name_of(ref), hold.candidate.asked)
        self.set_tag(ref, hold.candidate)

    def set_tag(self, ref: Reference, variant: TagVariant) -> None:
        """Makes a tag lead to this image."""
        if is_memorable(variant.asked):
            self._store.tags.set(ref.registry, ref.repository, ref.reference, variant)
            # The tag leads to the image now, so no hold on it is left.
            self._store.sights.drop(name_of(ref), variant.digest)
