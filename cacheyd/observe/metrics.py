"""All metrics, and their text form for `/metrics`."""

from collections.abc import Callable, Iterable
from http import HTTPStatus

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cacheyd import __version__
from cacheyd.observe.events import Events
from cacheyd.observe.report import Report

disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_LABELS = 50
# Statuses with their own label, and the labels of upstreams that gave no status.
_CODES = frozenset({*(str(int(status)) for status in HTTPStatus), "error", "timeout", "dead"})
_HITS = frozenset({"HIT", "STALE", "REVALIDATED", "HELD"})


class _Plain(Collector):
    """Counters with exactly the names that people know; prometheus_client's own Counter would append `_total`."""

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.ignored = 0

    def collect(self) -> Iterable[Metric]:
        """The three counters."""
        for name, text, value in (
            ("cache_hits", "Requests answered from disk", self.hits),
            ("cache_misses", "Requests for which cacheyd asked upstream", self.misses),
            (
                "cache_miss_by_ignore",
                "Requests for tags that cacheyd never answers without asking upstream, such as latest",
                self.ignored,
            ),
        ):
            family = CounterMetricFamily(name, text)
            family.name = name  # The constructor removes a `_total` here, and appends it to each sample's name.
            family.add_metric([], value)
            for index, sample in enumerate(family.samples):
                family.samples[index] = sample._replace(name=name)
            family.type = "gauge"  # With type counter, the library appends `_total` to the name; see `render`.
            yield family


# Gauges, then counters (their names without `_total`); cacheyd reads their values at each scrape.
_GAUGES: tuple[tuple[str, str, Callable[[Report], float]], ...] = (
    ("cacheyd_flights", "Objects that cacheyd fetches now", lambda now: now.flights),
    ("cacheyd_waiting", "Clients that wait for upstreams now", lambda now: now.waiting),
    (
        "cacheyd_upstreams_dead",
        "Origins that do not answer, and that cacheyd does not ask now",
        lambda now: now.upstreams_dead,
    ),
    ("cacheyd_tags_held", "Tags that are held now", lambda now: now.tags_held),
    ("cacheyd_store_bytes", "Bytes stored", lambda now: now.store.size),
    ("cacheyd_store_free_bytes", "Bytes free below CACHE_DIR", lambda now: now.store.free or 0),
    ("cacheyd_store_writable", "1 normally, 0 while the disk refuses writes", lambda now: now.store.writable),
    ("cacheyd_store_full", "1 while there is no room and the store can remove no object", lambda now: now.store.full),
    ("cacheyd_store_partial_bytes", "Bytes in the partial files of fetches", lambda now: now.store.partial_bytes),
)
_COUNTERS: tuple[tuple[str, str, Callable[[Report], float]], ...] = (
    ("cacheyd_scrub_bytes", "Stored bytes that the background check has read", lambda now: now.store.scrubbed),
    (
        "cacheyd_scrub_dropped",
        "Stored objects whose bytes no longer matched their digest",
        lambda now: now.store.scrub_dropped,
    ),
    ("cacheyd_store_write_errors", "Writes that the disk refused", lambda now: now.store.write_errors),
)


class _Watched(Collector):
    """The metrics of a running cache's state; each scrape takes one report for all of them."""

    def __init__(self, look: Callable[[], Report]) -> None:
        self._look = look

    def collect(self) -> Iterable[Metric]:
        now = self._look()
        for name, text, read in _GAUGES:
            yield GaugeMetricFamily(name, text, value=float(read(now)))
        for name, text, read in _COUNTERS:
            yield CounterMetricFamily(name, text, value=float(read(now)))
        family = GaugeMetricFamily("cacheyd_store_objects", "Objects stored", labels=["kind"])
        for kind, count in now.store.objects.items():
            family.add_metric([kind], count)
        yield family


class _Labels:
    """Names of registries as labels: the configured registries, and the first 50 others. A client can ask for any name, so
    the number is bounded.
    """

    def __init__(self, registries: Iterable[str]) -> None:
        self._known = set(registries)
        self._others: set[str] = set()

    def add(self, registries: Iterable[str]) -> None:
        """Adds configured registries."""
        self._known |= set(registries)

    def of(self, registry: str) -> str:
        """The label of a registry: its name, or `other`."""
        if registry in self._known or registry in self._others:
            return registry
        if len(self._others) < MAX_LABELS:
            self._others.add(registry)
            return registry
        return "other"


class _Requests:
    """The metrics of requests: results, bytes, tags served although upstream failed, held tags."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.results = Counter(
            "cacheyd_requests", "Requests by their result", ["registry", "kind", "result"], registry=registry
        )
        # The counter of each combination of labels. There are few, so each is looked up only once.
        self.children: dict[tuple[str, str, str], Counter] = {}
        self.bytes = Counter("cacheyd_bytes", "Body bytes sent to clients, by their source", ["source"], registry=registry)
        self.sources = {source: self.bytes.labels(source) for source in ("disk", "upstream")}
        self.stale = Counter("cacheyd_stale_served", "Tags served although upstream failed", ["registry"], registry=registry)
        self.held = Counter(
            "cacheyd_held",
            "Tags that led to an image younger than min_age, by cacheyd's action",
            ["registry", "action"],
            registry=registry,
        )


class _Upstreams:
    """The metrics of upstreams: answers, times, pulls left, wrong bytes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter("cacheyd_upstream_requests", "Requests to upstreams", ["registry", "code"], registry=registry)
        self.seconds = Histogram("cacheyd_upstream_seconds", "Time to the head of an upstream's response", registry=registry)
        self.remaining = Gauge(
            "cacheyd_ratelimit_remaining", "Pulls left, by the registry's last answer", ["registry"], registry=registry
        )
        self.wrong = Counter(
            "cacheyd_verify_failures", "Objects from upstreams whose bytes did not match their digest", registry=registry
        )


class _Objects:
    """The metrics of stored objects. What the store counts itself is in `_COUNTERS`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.evictions = Counter(
            "cacheyd_evictions", "Objects that the store removed, by reason", ["reason"], registry=registry
        )


class Metrics(Events):
    """Counts the events of a cache. `registries` are the configured registries, which always get their own label."""

    def __init__(self, registries: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry()
        self._plain = _Plain()
        self.registry.register(self._plain)
        ProcessCollector(registry=self.registry)
        self._requests = _Requests(self.registry)
        self._upstreams = _Upstreams(self.registry)
        self._objects = _Objects(self.registry)
        info = Gauge("cacheyd_build_info", "The version that runs", ["version"], registry=self.registry)
        info.labels(__version__).set(1)
        self._labels = _Labels(registries)

    @staticmethod
    def _code(code: str) -> str:
        """The label of a status. The labels are bounded: an upstream can invent statuses, and these count by their class."""
        if code in _CODES:
            return code
        return f"{code[0]}xx" if len(code) == 3 and code.isdecimal() and code[0] in "12345" else "other"

    def request(self, registry: str, kind: str, result: str, sent: int) -> None:
        """Counts a request that the cache answered with `sent` body bytes. `result` is X-Cache, empty for an error."""
        if result in _HITS:
            self._plain.hits += 1
        elif result:
            self._plain.misses += 1
        key = (self._labels.of(registry) if registry else "", kind, result.lower() or "error")
        requests = self._requests
        child = requests.children.get(key)
        if child is None:
            child = requests.children[key] = requests.results.labels(*key)
        child.inc()
        if result == "STALE":
            requests.stale.labels(key[0]).inc()
        if sent:
            requests.sources["disk" if result in _HITS else "upstream"].inc(sent)

    def held(self, registry: str, action: str) -> None:
        """Counts a tag that led to a too young image; `action` is `held`, `refused`, `allowed` or `audited`."""
        self._requests.held.labels(self._labels.of(registry), action).inc()

    def ignored(self) -> None:
        """Counts a request for a tag that cacheyd never answers without asking upstream."""
        self._plain.ignored += 1

    def upstream(self, registry: str, code: str, seconds: float) -> None:
        """Counts an answer of an upstream (or a failure: `error`, `timeout`, `dead`) after `seconds`."""
        self._upstreams.requests.labels(self._labels.of(registry), self._code(code)).inc()
        self._upstreams.seconds.observe(seconds)

    def ratelimit(self, registry: str, remaining: int) -> None:
        """Sets how many pulls are left at the registry."""
        self._upstreams.remaining.labels(self._labels.of(registry)).set(remaining)

    def evicted(self, reason: str, count: int) -> None:
        """Counts objects that the store removed."""
        self._objects.evictions.labels(reason).inc(count)

    def configure(self, registries: Iterable[str]) -> None:
        """Gives these registries their own label from now on."""
        self._labels.add(registries)

    def verify_failure(self, registry: str) -> None:
        """Counts an object from an upstream whose bytes do not match their digest."""
        self._upstreams.wrong.inc()

    def watch(self, look: Callable[[], Report]) -> None:
        """Adds the metrics of a running cache's state; each scrape calls `look`."""
        self.registry.register(_Watched(look))

    def totals(self) -> tuple[int, int]:
        """Hits and misses so far."""
        return self._plain.hits, self._plain.misses

    def sent(self) -> dict[str, int]:
        """Body bytes sent so far, from `disk` and from `upstream`."""
        return _by_label(self._requests.bytes, "source")

    def evictions(self) -> dict[str, int]:
        """Objects removed so far, by reason."""
        return _by_label(self._objects.evictions, "reason")

    def render(self) -> bytes:
        """The text format that Prometheus scrapes."""
        text = generate_latest(self.registry)
        for name in (b"cache_hits", b"cache_misses", b"cache_miss_by_ignore"):
            text = text.replace(b"# TYPE %s gauge" % name, b"# TYPE %s counter" % name)
        return text


def _by_label(counter: Counter, label: str) -> dict[str, int]:
    samples = [sample for family in counter.collect() for sample in family.samples]
    return {sample.labels[label]: int(sample.value) for sample in samples}
