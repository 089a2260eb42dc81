"""Decides by `min_age` which image a tag leads to: after each answer of upstream, and after a change of settings."""

import logging
from dataclasses import replace
from typing import Protocol

from cacheyd.cache.age import shown
from cacheyd.cache.cooldown import Cooldown
from cacheyd.cache.freshness import is_memorable
from cacheyd.cache.sightings import Sightings, name_of, reference_of
from cacheyd.observe.events import Events
from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.reference import Reference
from cacheyd.settings.live import Live
from cacheyd.settings.settings import Settings
from cacheyd.store.records import TagVariant
from cacheyd.store.sights import Hold
from cacheyd.store.store import Store

log = logging.getLogger(__name__)


class Dates(Protocol):
    """Finds the dates that images give themselves. Implemented by `created`."""

    async def look(self, ref: Reference, headers: HeaderList, variant: TagVariant, data: bytes) -> None:
        """Looks up the date of a tag's image with the client's own login, and tells the sightings. `data` are the manifest's
        bytes, if they are known.
        """


class Admission:
    """Takes up upstreams' answers about tags, and tells the store which images the tags lead to."""

    def __init__(
        self,
        store: Store,
        sightings: Sightings,
        cooldown: Cooldown,
        dates: Dates,
        settings: Settings | Live,
        events: Events,
    ) -> None:
        self._store = store
        self._sightings = sightings
        self._cooldown = cooldown
        self._dates = dates
        self._events = events
        # The cooldown listens first, so it has the new ages by then.
        Live.of(settings).listen(self._review)

    def _review(self, settings: Settings) -> None:
        """After a change of settings: serves images that the settings do not hold any more, and gives the rest a new time."""
        ages = self._cooldown.ages
        for name in list(self._store.sights.held):
            ref = reference_of(name)
            for hold in self._store.sights.holds(name):
                if ages.action(ref) == "audit" or not ages.of(ref):
                    if ages.of(ref):
                        self._tell(ref, "audited", hold.candidate, hold.served, hold.until)
                    self._cooldown.promote(ref, hold)
                    continue
                until = ages.ripe_at(ref, self._sightings.see(ref, hold.candidate.digest))
                self._store.sights.hold(name, replace(hold, until=until))

    async def admit(self, ref: Reference, headers: HeaderList, variant: TagVariant, data: bytes) -> bool:
        """Takes up upstream's answer about a tag, and decides which image the tag leads to; False if it has no `min_age`."""
        cooldown = self._cooldown
        if not cooldown.active or not cooldown.ages.of(ref):
            self._store.sights.let_go(name_of(ref))
            return False
        sight = self._sightings.see(ref, variant.digest)
        unknown = sight.created is None and cooldown.ages.evidence(ref) == "any"
        if unknown and cooldown.is_held(ref, variant.digest, sight):
            await self._dates.look(ref, headers, variant, data)
            if not cooldown.ages.of(ref):
                return False  # The settings changed during this.
        self._decide(ref, variant)
        return True

    def lost(self, ref: Reference, digest: str, asked: frozenset[str]) -> None:
        """Makes the tag forget an earlier image that neither this cache nor upstream has any more."""
        hold = self._cooldown.hold(ref, asked)
        left = [variant for variant in self._cooldown.variants(ref) if variant.digest != digest]
        self._store.tags.delete(ref.registry, ref.repository, ref.reference)
        for variant in reversed(left):
            self._cooldown.set_tag(ref, variant)
        log.warning("min_age: %s: upstream no longer has %s, the image that was served before", name_of(ref), digest)
        if hold is not None:
            self._decide(ref, hold.candidate)

    def _decide(self, ref: Reference, variant: TagVariant) -> None:
        sights, cooldown, name = self._store.sights, self._cooldown, name_of(ref)
        sight = self._sightings.see(ref, variant.digest)
        before = cooldown.hold(ref, variant.asked)
        if before is not None and before.candidate.digest != variant.digest:
            # The tag has moved on, also for clients that asked with other types: they get the new image when they ask again.
            sights.drop(name, before.candidate.digest)
        if not cooldown.is_held(ref, variant.digest, sight):
            sights.let_go(name, variant.asked)
            cooldown.set_tag(ref, variant)
            return
        previous, action = cooldown.previous(ref, variant.asked), cooldown.ages.action(ref)
        until = cooldown.ages.ripe_at(ref, sight)
        does = "held" if previous is not None else "allowed" if action == "allow" else "refused"
        memorable = is_memorable(variant.asked)
        known = any(hold.candidate.digest == variant.digest for hold in sights.holds(name))
        if memorable and not known:
            self._tell(ref, "audited" if action == "audit" else does, variant, previous, until)
        if action == "audit" or (does == "allowed" and not cooldown.variants(ref)):
            sights.let_go(name, variant.asked)
            cooldown.set_tag(ref, variant)
            return
        # Other clients may have an older image. Then only clients that do not take the older image's type get the young one.
        if memorable:
            sights.hold(name, Hold(variant, previous, until))
        if previous is not None:
            # Upstream has just been asked: the tag leads to the older image until the cache asks upstream again.
            cooldown.set_tag(ref, replace(previous, asked=variant.asked, checked=variant.checked))

    def _tell(self, ref: Reference, action: str, variant: TagVariant, previous: TagVariant | None, until: float) -> None:
        self._events.held(ref.registry, action)
        does = {
            "held": "is held", "refused": "is refused", "audited": "would be held",
            "allowed": "would be held, and is allowed because no earlier image is known,",
        }[action]  # fmt: skip
        log.info(
            "min_age: %s: %s %s until %s; served before: %s",
            name_of(ref), variant.digest, does, shown(until), previous.digest if previous else "nothing",
        )  # fmt: skip
