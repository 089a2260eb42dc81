"""`min_age`: a tag leads to a new image only once that is old enough, and to the one before until then.

What shows an age is `first`, when this cache saw the digest first under a tag of that repository, or `created`, what the
image says itself; one of the two is enough. Tags in the store lead to what may be served; what may not yet is a `Hold`.
"""

import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from cacheyd.cache import freshness as policy
from cacheyd.protocol.accept import accepts
from cacheyd.protocol.errors import Code, RequestError, client_error
from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.images import ImageName
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.settings.ages import Ages
from cacheyd.settings.settings import Settings
from cacheyd.store.rows import TagVariant
from cacheyd.store.sights import Hold, Sight
from cacheyd.store.store import Store

log = logging.getLogger(__name__)

# 2013-01-01: no image is older, so dates before it say nothing (0001-01-01, 1970-01-01, 1980-01-01 of reproducible builds).
EARLIEST = 1356998400.0
# What was seen so much later than now was seen by a clock that was wrong (seconds).
CLOCK_ERROR = 86400.0
# Tags that are made of a digest belong to what has it: signatures, attestations, the referrers of older registries.
_OF_DIGEST = re.compile(r"sha(?:256-[a-f0-9]{64}|512-[a-f0-9]{128})(?:\.[A-Za-z0-9._-]+)?")
_CREATED = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)", re.IGNORECASE)

# Looks an image's own date up: its reference, who asks, what the tag leads to, and its bytes if they are known.
type Look = Callable[[Reference, HeaderList, TagVariant, bytes], Awaitable[None]]


def parse_created(value: object) -> float | None:
    """The seconds since the epoch of a date as images have it (RFC 3339 section 5.6); None for what is none, or too early."""
    match = _CREATED.fullmatch(value) if isinstance(value, str) and len(value) <= 64 else None
    if match is None:
        return None
    try:
        found = datetime.fromisoformat(match[1] + match[2].upper()).timestamp()
    except (ValueError, OverflowError):
        return None
    return found if found >= EARLIEST else None


def believed(created: float | None, now: float) -> float:
    """The date if it can be one, 0 if it says nothing: a date that is still to come shows no age."""
    return created if created is not None and EARLIEST <= created <= now else 0.0


def shown_since(sight: Sight, evidence: str) -> float:
    """Since when the image is there for certain, as far as is known."""
    return min(sight.first, sight.created) if evidence == "any" and sight.created else sight.first


def ripe_at(sight: Sight, min_age: float, evidence: str) -> float:
    """From when on the image may be served, in seconds since the epoch."""
    return 0.0 if sight.released else shown_since(sight, evidence) + min_age


def why(sight: Sight, min_age: float, evidence: str) -> str:
    """Why something is held, for people."""
    seen = f"first seen here {shown(sight.first)}"
    if evidence == "any" and sight.created:
        seen = f"created {shown(sight.created)}, {seen}"
    return f"younger than {_span(min_age)}: {seen}"


def shown(at: float) -> str:
    """A point in time for people and clients (RFC 3339)."""
    return datetime.fromtimestamp(int(at) if at < 1e11 else 1e11, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


class Ageless:
    """The ages that settings demand."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ages = Ages(settings.min_ages)
        self.any = settings.has_min_age

    def of(self, ref: Reference) -> float:
        """How old what this tag leads to has to be (seconds); 0 for what is no tag, and for tags made of a digest."""
        if not self.any or ref.kind is not Kind.MANIFEST or ref.digest is not None or _OF_DIGEST.fullmatch(ref.reference):
            return 0.0
        found = self._ages.find(ref)
        return self._settings.registry(ref.registry).min_age if found is None else found

    def action(self, ref: Reference) -> str:
        """What is done where nothing else can be served."""
        return self._settings.registry(ref.registry).min_age_action

    def evidence(self, ref: Reference) -> str:
        """What shows an age."""
        return self._settings.registry(ref.registry).min_age_evidence

    def ripe_at(self, ref: Reference, sight: Sight) -> float:
        """From when on an image may be served under this tag."""
        return ripe_at(sight, self.of(ref), self.evidence(ref))


def _ignore(registry: str, action: str) -> None:
    """Nobody counts."""


class Cooldown:
    """Which of the digests that upstream says a tag has may be served. `active` says whether any tag has a `min_age`."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        on_held: Callable[[str, str], None] = _ignore,
    ) -> None:
        self._store = store
        self._clock, self._monotonic = clock, monotonic
        self._wall, self._began = clock(), monotonic()
        self._on_held = on_held
        # Whose wait began anew by a clock that may itself be wrong.
        self._anew: set[str] = set()
        self.look: Look | None = None
        self._ages = Ageless(settings)
        self.active = self._ages.any
        store.sights.configure(settings.registries.keys())

    def configure(self, settings: Settings) -> None:
        """New settings: what they hold no more is served, and what they hold is held from its next look upstream on."""
        self._ages = Ageless(settings)
        self.active = self._ages.any
        self._store.sights.configure(settings.registries.keys())
        for name in list(self._store.sights.held):
            ref = reference_of(name)
            for hold in self._store.sights.holds(name):
                if self._ages.action(ref) == "audit" or not self._ages.of(ref):
                    if self._ages.of(ref):
                        self._tell(ref, "audited", hold.candidate, hold.served, hold.until)
                    self._promote(ref, hold)
                    continue
                until = self._ages.ripe_at(ref, self._see(ref, hold.candidate.digest))
                self._store.sights.hold(name, replace(hold, until=until))

    def now(self) -> float:
        """The time, but never ahead of what has really passed since the start: a clock that jumps ahead makes nothing older.

        One that was set right since the start (it began before there were images) is believed.
        """
        return min(self._clocks())

    def _clocks(self) -> tuple[float, float]:
        """The clock, and what it would be if nobody had set it since the start."""
        wall, passed = self._clock(), self._monotonic()
        if self._wall < EARLIEST:
            self._wall, self._began = wall, passed
        return wall, self._wall + passed - self._began

    # What upstream said

    async def admit(self, ref: Reference, headers: HeaderList, variant: TagVariant, data: bytes) -> bool:
        """Takes up what upstream says that a tag is, and decides what the store is told; False if it is none of ours."""
        if not self.active or not self._ages.of(ref):
            self._store.sights.let_go(_name(ref))
            return False
        sight = self._see(ref, variant.digest)
        unknown = sight.created is None and self._ages.evidence(ref) == "any"
        if self.look is not None and unknown and self._is_held(ref, variant.digest, sight):
            await self.look(ref, headers, variant, data)
            if not self._ages.of(ref):
                return False  # The settings are others now.
        self._decide(ref, variant)
        return True

    def learn(self, ref: Reference, digest: str, created: float | None) -> None:
        """What the image says of its age."""
        sight = self._see(ref, digest)
        self._store.sights.seen.set(_key(ref, digest), replace(sight, created=believed(created, self.now())))

    def _see(self, ref: Reference, digest: str) -> Sight:
        key = _key(ref, digest)
        sight = self._store.sights.sight(key)
        wall, passed = self._clocks()
        now, set_ahead = max(wall, passed), wall > passed + CLOCK_ERROR
        if set_ahead and self._anew:
            self._begin_again(now)
            sight = self._store.sights.sight(key)
        in_future = sight is not None and sight.first > now + CLOCK_ERROR and wall >= EARLIEST
        if in_future and not set_ahead:
            self._anew.add(key)
        if sight is None or sight.first < EARLIEST <= wall or in_future:
            # New, or seen when the clock was not set yet, or was far ahead: the wait begins now, by the later of the two
            # clocks, whichever of them is wrong.
            sight = Sight(now) if sight is None else replace(sight, first=now)
            self._store.sights.seen.set(key, sight)
        return sight

    def _begin_again(self, now: float) -> None:
        """The clock was behind when these waits began: set right, it would make them older than they are."""
        for key in self._anew:
            if (sight := self._store.sights.sight(key)) is not None:
                self._store.sights.seen.set(key, replace(sight, first=now))
        self._anew.clear()

    def _decide(self, ref: Reference, variant: TagVariant) -> None:
        sights, name = self._store.sights, _name(ref)
        sight = self._see(ref, variant.digest)
        before = self.hold(ref, variant.asked)
        if before is not None and before.candidate.digest != variant.digest:
            # The tag has moved on, for those who asked with other types, too: they find out when they ask again.
            sights.drop(name, before.candidate.digest)
        if not self._is_held(ref, variant.digest, sight):
            sights.let_go(name, variant.asked)
            self._set_tag(ref, variant)
            return
        previous, action = self.previous(ref, variant.asked), self._ages.action(ref)
        until = self._ages.ripe_at(ref, sight)
        does = "held" if previous is not None else "allowed" if action == "allow" else "refused"
        memorable = policy.is_memorable(variant.asked)
        known = any(hold.candidate.digest == variant.digest for hold in sights.holds(name))
        if memorable and not known:
            self._tell(ref, "audited" if action == "audit" else does, variant, previous, until)
        if action == "audit" or (does == "allowed" and not self._variants(ref)):
            sights.let_go(name, variant.asked)
            self._set_tag(ref, variant)
            return
        # Where others have one before, what is allowed for want of one of these types is so for these clients alone.
        if memorable:
            sights.hold(name, Hold(variant, previous, until))
        if previous is not None:
            # Upstream was asked just now: until the next time this is what the tag is.
            self._set_tag(ref, replace(previous, asked=variant.asked, checked=variant.checked))

    def _set_tag(self, ref: Reference, variant: TagVariant) -> None:
        if policy.is_memorable(variant.asked):
            self._store.set_tag(ref.registry, ref.repository, ref.reference, variant)
            # Whoever waits for what the tag leads to now has no reason to.
            self._store.sights.drop(_name(ref), variant.digest)

    def _tell(self, ref: Reference, action: str, variant: TagVariant, previous: TagVariant | None, until: float) -> None:
        self._on_held(ref.registry, action)
        does = {
            "held": "is held", "refused": "is refused", "audited": "would be held",
            "allowed": "would be held, and is allowed as nothing is known before it,",
        }[action]  # fmt: skip
        log.info(
            "min_age: %s: %s %s until %s; served before: %s",
            _name(ref), variant.digest, does, shown(until), previous.digest if previous else "nothing",
        )  # fmt: skip

    # What may be served

    def _is_approved(self, ref: Reference, digest: str) -> bool:
        """Whether this tag has led there before, for whatever client."""
        return any(variant.digest == digest for variant in self._variants(ref))

    def _variants(self, ref: Reference) -> Sequence[TagVariant]:
        return self._store.tag_variants(ref.registry, ref.repository, ref.reference)

    def _is_held(self, ref: Reference, digest: str, sight: Sight) -> bool:
        return self.now() < self._ages.ripe_at(ref, sight) and not self._is_approved(ref, digest)

    def held_until(self, ref: Reference, digest: str) -> float | None:
        """Until when a tag does not lead to this digest; None if it may."""
        if not self._ages.of(ref) or self._ages.action(ref) == "audit":
            return None
        # One that has no digest, or was not looked at as it is too large, waits for its time all the same.
        sight = self._see(ref, digest) if digest else Sight(self._clock())
        return self._ages.ripe_at(ref, sight) if self._is_held(ref, digest, sight) else None

    def covers(self, ref: Reference) -> bool:
        """Whether this is a tag with a `min_age`."""
        return self.active and self._ages.of(ref) > 0

    def allows(self, ref: Reference) -> bool:
        """Whether what is too young is served where nothing else can be."""
        return self._ages.action(ref) == "allow"

    def previous(self, ref: Reference, asked: frozenset[str]) -> TagVariant | None:
        """What clients that ask with these types get meanwhile: what they had before, else what is of a type they take."""
        variants = self._variants(ref)
        held = [hold.served for hold in self._store.sights.holds(_name(ref)) if hold.served is not None]
        found = policy.find_variant(variants, asked, asked)
        others = (variant for variant in (*variants, *held) if accepts(asked, variant.media_type))
        return found or max(others, key=lambda variant: variant.checked, default=None)

    def lost(self, ref: Reference, digest: str, asked: frozenset[str]) -> None:
        """What was served before is not to be had any more, neither here nor upstream: it is as if it was never known."""
        hold = self.hold(ref, asked)
        left = [variant for variant in self._variants(ref) if variant.digest != digest]
        self._store.delete_tag(ref.registry, ref.repository, ref.reference)
        for variant in reversed(left):
            self._set_tag(ref, variant)
        log.warning("min_age: %s: %s, which was served before, is gone upstream", _name(ref), digest)
        if hold is not None:
            self._decide(ref, hold.candidate)

    def hold(self, ref: Reference, asked: frozenset[str]) -> Hold | None:
        """The hold of a tag for clients that ask with these types."""
        return next((hold for hold in self._store.sights.holds(_name(ref)) if hold.candidate.asked == asked), None)

    def ripen(self, ref: Reference) -> None:
        """Serves from now on what is old enough by now, and here."""
        for hold in self._store.sights.holds(_name(ref)):
            digest = hold.candidate.digest
            if self.held_until(ref, digest) is None and self._store.find(digest) is not None:
                self._promote(ref, hold)

    def _promote(self, ref: Reference, hold: Hold) -> None:
        self._store.sights.let_go(_name(ref), hold.candidate.asked)
        self._set_tag(ref, hold.candidate)

    def refusal(self, ref: Reference, digest: str, until: float) -> RequestError:
        """403 with the time from which on it is served."""
        wait = max(1, int(until - self.now()) + 1)
        message = "this tag leads to an image that is too young (min_age), and none before it is known"
        known = {"digest": digest} if digest else {}
        return client_error(
            403, Code.DENIED, f"{message}; it is served from {shown(until)} on",
            headers=(("Retry-After", str(wait)),), until=shown(until), **known,
        )  # fmt: skip

    def count(self) -> int:
        """How many tags are held now."""
        held, now = self._store.sights.held, self.now()
        return sum(any(hold.until > now for hold in held.get(name) or ()) for name in held)


@dataclass(frozen=True, slots=True)
class Held:
    """A row of `cacheyd held`. Times in seconds since the epoch."""

    image: str
    digest: str
    served: str
    since: float
    until: float
    reason: str


def listed(store: Store, settings: Settings, now: float) -> Iterator[Held]:
    """The tags that are held now, by name."""
    ages = Ageless(settings)
    for name in sorted(store.sights.held):
        ref, seen = reference_of(name), dict[str, Held]()
        for hold in store.sights.holds(name):
            digest = hold.candidate.digest
            sight = store.sights.sight(_key(ref, digest)) or Sight(now)
            until = ages.ripe_at(ref, sight)
            if now < until and ages.of(ref) and ages.action(ref) != "audit" and (hold.served or digest not in seen):
                reason = why(sight, ages.of(ref), ages.evidence(ref))
                seen[digest] = Held(name, digest, hold.served.digest if hold.served else "", sight.first, until, reason)
        yield from seen.values()


def release(store: Store, image: ImageName, now: float) -> list[str]:
    """Lets through what an image's tag is held from, or a digest that is named itself; the digests."""
    ref = image.part(Kind.MANIFEST, image.reference)
    holds = () if image.digest else store.sights.holds(_name(ref))
    digests = [image.digest] if image.digest else list(dict.fromkeys(hold.candidate.digest for hold in holds))
    for digest in digests:
        key = _key(ref, digest)
        store.sights.seen.set(key, replace(store.sights.sight(key) or Sight(now), released=True))
        log.info("min_age: %s: %s is released", image.name if image.digest else _name(ref), digest)
    for hold in holds:
        store.set_tag(ref.registry, ref.repository, ref.reference, hold.candidate)
    store.sights.let_go(_name(ref))
    return digests


def reference_of(name: str) -> Reference:
    """The reference of a tag (`registry/repository:tag`)."""
    rest, _, tag = name.rpartition(":")
    registry, _, repository = rest.partition("/")
    return Reference(registry, repository, Kind.MANIFEST, tag, None, "")


def _name(ref: Reference) -> str:
    return f"{ref.name}:{ref.reference}"


def _key(ref: Reference, digest: str) -> str:
    return f"{ref.name}@{digest}"
