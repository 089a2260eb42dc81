"""The arithmetic of `min_age`: the dates in images, the age that a tag demands, the time from which an image may be served."""

import re
from datetime import UTC, datetime

from cacheyd.protocol.reference import Kind, Reference
from cacheyd.settings.ages import Ages
from cacheyd.settings.settings import Settings
from cacheyd.store.sights import Sight

# 2013-01-01: no image is older. Earlier dates mean nothing (0001-01-01, 1970-01-01, 1980-01-01 of reproducible builds).
EARLIEST = 1356998400.0
# Tags that are made of a digest belong to the image of that digest: signatures, attestations, older registries' referrers.
_OF_DIGEST = re.compile(r"sha(?:256-[a-f0-9]{64}|512-[a-f0-9]{128})(?:\.[A-Za-z0-9._-]+)?")
_CREATED = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)", re.IGNORECASE)


def parse_created(value: object) -> float | None:
    """A date from an image (RFC 3339 section 5.6), in seconds since the epoch; None for no date, or a date before EARLIEST."""
    match = _CREATED.fullmatch(value) if isinstance(value, str) and len(value) <= 64 else None
    if match is None:
        return None
    try:
        found = datetime.fromisoformat(match[1] + match[2].upper()).timestamp()
    except (ValueError, OverflowError):
        return None
    return found if found >= EARLIEST else None


def believed(created: float | None, now: float) -> float:
    """The date if it can be true, else 0: a date in the future proves no age."""
    return created if created is not None and EARLIEST <= created <= now else 0.0


def shown_since(sight: Sight, evidence: str) -> float:
    """The earliest time at which the image certainly existed (seconds since the epoch)."""
    return min(sight.first, sight.created) if evidence == "any" and sight.created else sight.first


def ripe_at(sight: Sight, min_age: float, evidence: str) -> float:
    """The time from which the image may be served, in seconds since the epoch."""
    return 0.0 if sight.released else shown_since(sight, evidence) + min_age


def why(sight: Sight, min_age: float, evidence: str) -> str:
    """The reason for a hold, for people."""
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


class MinAges:
    """The ages that settings demand."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ages = Ages(settings.min_ages)
        self.any = settings.has_min_age

    def of(self, ref: Reference) -> float:
        """How old an image has to be under this tag (seconds); 0 for digests, and for tags that are made of a digest."""
        if not self.any or ref.kind is not Kind.MANIFEST or ref.digest is not None or _OF_DIGEST.fullmatch(ref.reference):
            return 0.0
        found = self._ages.find(ref)
        return self._settings.registry(ref.registry).min_age if found is None else found

    def action(self, ref: Reference) -> str:
        """The setting for images that are too young: `refuse`, `allow` (both if no older image can be served) or `audit`."""
        return self._settings.registry(ref.registry).min_age_action

    def evidence(self, ref: Reference) -> str:
        """The dates that prove an age: `any`, or `seen` (only the time when this cache first saw the image)."""
        return self._settings.registry(ref.registry).min_age_evidence

    def ripe_at(self, ref: Reference, sight: Sight) -> float:
        """The time from which an image may be served under this tag, in seconds since the epoch."""
        return ripe_at(sight, self.of(ref), self.evidence(ref))
