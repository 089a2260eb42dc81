"""Tags that are held now, for people: lists them, and releases a tag."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cacheyd.cache.age import MinAges, why
from cacheyd.cache.sightings import key_of, name_of, reference_of
from cacheyd.protocol.images import ImageName
from cacheyd.protocol.reference import Kind
from cacheyd.settings.settings import Settings
from cacheyd.store.sights import Sight
from cacheyd.store.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldTag:
    """A row of `cacheyd held`. Times in seconds since the epoch."""

    image: str
    digest: str
    served: str
    since: float
    until: float
    reason: str


def listed(store: Store, settings: Settings, now: float) -> Iterator[HeldTag]:
    """The tags that are held now, by name."""
    ages = MinAges(settings)
    for name in sorted(store.sights.held):
        ref, seen = reference_of(name), dict[str, HeldTag]()
        for hold in store.sights.holds(name):
            digest = hold.candidate.digest
            sight = store.sights.sight(key_of(ref, digest)) or Sight(now)
            until = ages.ripe_at(ref, sight)
            if now < until and ages.of(ref) and ages.action(ref) != "audit" and (hold.served or digest not in seen):
                reason = why(sight, ages.of(ref), ages.evidence(ref))
                seen[digest] = HeldTag(name, digest, hold.served.digest if hold.served else "", sight.first, until, reason)
        yield from seen.values()


def release(store: Store, image: ImageName, now: float) -> list[str]:
    """Makes an image's tag lead to its held images, or releases one digest if `image` has a digest. Gives the digests."""
    ref = image.part(Kind.MANIFEST, image.reference)
    holds = () if image.digest else store.sights.holds(name_of(ref))
    digests = [image.digest] if image.digest else list(dict.fromkeys(hold.candidate.digest for hold in holds))
    for digest in digests:
        key = key_of(ref, digest)
        store.sights.seen.set(key, replace(store.sights.sight(key) or Sight(now), released=True))
        log.info("min_age: %s: %s is released", image.name if image.digest else name_of(ref), digest)
    for hold in holds:
        store.tags.set(ref.registry, ref.repository, ref.reference, hold.candidate)
    store.sights.let_go(name_of(ref))
    return digests
