"""Figures and what they are measured by."""

import statistics
from collections import defaultdict
from dataclasses import dataclass, field

MANIFEST, MANIFESTS, SMALL = "manifest hits", "manifest hits, many in turn", "4 KiB blob hits"
BLOB_1, BLOB_8 = "blob hits, 1 client", "blob hits, 8 clients"
COLD, STORED = "cold blob, 1 client", "cold blob, until stored"
HERD_COLD, HERD_WARM = "50 clients, cold blob", "50 clients, warm blob"
UNITS = {
    MANIFEST: "req/s",
    MANIFESTS: "req/s",
    SMALL: "req/s",
    BLOB_1: "MB/s",
    BLOB_8: "MB/s",
    COLD: "s",
    STORED: "s",
    HERD_COLD: "s",
    HERD_WARM: "s",
}
# How things grow with what is stored: of the store itself, then of the whole process.
FIND, HIT, HIT_FILE, TAG = "find an object", "hit, from memory", "hit, from its file", "tag to object"
COMMIT, EVICT = "commit", "eviction"
LOAD_STALL, RECONCILE_STALL = "longest stall: load, reconcile", "longest stall: reconcile again"
SAVE_STALL, EVICT_STALL = "longest stall: write all rows", "longest stall: evict"
FIRST_HIT, LOADED, RECONCILED = "start to first hit", "start to loaded", "start to reconciled"
START_WAIT, CALM_WAIT = "longest hit while starting", "longest hit afterwards"
HTTP_HITS = "hits over HTTP, all in turn"
MEMORY, TRACED = "anonymous RSS", "catalogue (tracemalloc)"
GROWTH = {
    FIND: "µs",
    HIT: "µs",
    HIT_FILE: "µs",
    TAG: "µs",
    COMMIT: "µs",
    EVICT: "µs",
    LOAD_STALL: "ms",
    RECONCILE_STALL: "ms",
    SAVE_STALL: "ms",
    EVICT_STALL: "ms",
    FIRST_HIT: "s",
    LOADED: "s",
    RECONCILED: "s",
    START_WAIT: "ms",
    CALM_WAIT: "ms",
    HTTP_HITS: "req/s",
    MEMORY: "MB",
    TRACED: "MB",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: `cpu` is the server's share of one core, `bodies` what the origin sent for it, if counted."""

    value: float
    cpu: float
    load: float
    bodies: int | None = None


@dataclass(frozen=True, slots=True)
class Goal:
    """`value` is a ratio or a count; None if it could not be measured."""

    text: str
    value: float | None
    reached: bool | None


@dataclass(slots=True)
class Results:
    """All samples by measure and system, those of growth by measure and number of objects, and what could not be measured.

    `lines` are the lines of code whose memory grows most, in bytes, by number of objects.
    """

    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=lambda: defaultdict(list))
    growth: dict[tuple[str, int], float] = field(default_factory=dict)
    lines: dict[int, dict[str, float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def failed(self, what: str, error: Exception) -> None:
        """Notes it once, however often it is tried."""
        text = f"{what}: {type(error).__name__}: {error}"
        if text not in self.failures:
            self.failures.append(text)

    def of(self, measure: str, system: str) -> list[Sample]:
        return self.samples.get((measure, system), [])

    def median(self, measure: str, system: str) -> float | None:
        samples = self.of(measure, system)
        return statistics.median(sample.value for sample in samples) if samples else None

    def spread(self, measure: str, system: str) -> float:
        """(highest - lowest) / median."""
        values = [sample.value for sample in self.of(measure, system)]
        return (max(values) - min(values)) / statistics.median(values) if values else 0.0

    def sizes(self) -> list[int]:
        """The numbers of objects that growth was measured with; 0 is the empty store."""
        return sorted({size for _, size in self.growth})

    def memory_per_object(self, measure: str) -> float | None:
        """Megabytes per 100,000 objects, by the largest store against the empty one."""
        sizes = self.sizes()
        most = self.growth.get((measure, sizes[-1])) if sizes else None
        return None if most is None else (most - self.growth.get((measure, 0), 0.0)) / sizes[-1] * 100_000

    def bodies(self, measure: str, system: str) -> list[int]:
        return [sample.bodies for sample in self.of(measure, system) if sample.bodies is not None]


def _ratio(text: str, value: float | None, other: float | None, least: float, *, inverse: bool = False) -> Goal:
    if not value or not other:
        return Goal(f"{text} ≥ {least:g}", None, None)
    ratio = other / value if inverse else value / other
    return Goal(f"{text} ≥ {least:g}", ratio, ratio >= least)


def goals(results: Results, parts: set[str], peak_bytes: int) -> list[Goal]:
    """The goals of the parts that ran. A cold speed is the inverse of its seconds."""

    def median(measure: str, system: str = "cacheyd") -> float | None:
        return results.median(measure, system)

    found: list[Goal] = []
    if "manifest" in parts:
        found.append(_ratio("manifest hits / docker-registry", median(MANIFEST), median(MANIFEST, "docker-registry"), 20))
        found.append(_ratio("manifest hits / nginx", median(MANIFEST), median(MANIFEST, "nginx"), 0.2))
    if "blob" in parts:
        found.append(_ratio("blob hits, 1 client / nginx", median(BLOB_1), median(BLOB_1, "nginx"), 0.9))
        found.append(_ratio("blob hits, 8 clients / nginx", median(BLOB_8), median(BLOB_8, "nginx"), 0.9))
    if "cold" in parts:
        name = "cold blob speed / docker-registry"
        found.append(_ratio(name, median(COLD), median(COLD, "docker-registry"), 0.7, inverse=True))
    if "herd" in parts:
        bodies = max(results.bodies(HERD_COLD, "cacheyd"), default=None)
        found.append(Goal("50 cold clients: upstream bodies = 1", bodies, None if bodies is None else bodies == 1))
        cold, warm, one = median(HERD_COLD), median(HERD_WARM), median(COLD)
        value = cold / (3 * warm + one) if cold and warm and one else None
        found.append(Goal("50 cold clients / (3 warm + one cold fetch) ≤ 1", value, None if value is None else value <= 1))
    if parts - {"growth"}:
        megabytes = peak_bytes / 1e6
        found.append(Goal("peak anonymous RSS ≤ 200 MB", megabytes or None, megabytes <= 200 if megabytes else None))
    if "growth" in parts:
        found += _growth_goals(results)
    return found


def _growth_goals(results: Results) -> list[Goal]:
    sizes = results.sizes()
    least, most = (min(filter(None, sizes), default=0), sizes[-1]) if sizes else (0, 0)
    first = results.growth.get((FIRST_HIT, most))
    memory = results.memory_per_object(MEMORY)
    found = [
        Goal(f"start to first hit, {most:,} objects ≤ 2 s", first, None if first is None else first <= 2),
        Goal("memory per 100,000 objects ≤ 60 MB", memory, None if memory is None else memory <= 60),
    ]
    for measure in (HIT, COMMIT, EVICT):
        few, many = results.growth.get((measure, least)), results.growth.get((measure, most))
        ratio = many / few if few and many else None
        found.append(Goal(f"{measure}: {most:,} / {least:,} objects ≤ 2", ratio, None if ratio is None else ratio <= 2))
    return found
