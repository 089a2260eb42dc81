"""Every metric, and their text form for `/metrics`."""

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

disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_LABELS = 50
# Statuses with a label of their own, and what is counted of an upstream that gave none.
_CODES = frozenset({*(str(int(status)) for status in HTTPStatus), "error", "timeout", "dead"})
_HITS = frozenset({"HIT", "STALE", "REVALIDATED", "HELD"})


class _Plain(Collector):
    """Counters under exactly the names that people know; prometheus_client's own Counter would append `_total`."""

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.ignored = 0

    def collect(self) -> Iterable[Metric]:
        """The three counters."""
        for name, text, value in (
            ("cache_hits", "Requests answered from disk", self.hits),
            ("cache_misses", "Requests that upstream was asked for", self.misses),
            (
                "cache_miss_by_ignore",
                "Requests for tags that are always asked of upstream first, such as latest",
                self.ignored,
            ),
        ):
            family = CounterMetricFamily(name, text)
            family.name = name
            family.add_metric([], value)
            for index, sample in enumerate(family.samples):
                family.samples[index] = sample._replace(name=name)
            family.type = "gauge"  # Else `_total` is put after the name; see `render`.
            yield family


class _Watched(Collector):
    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()


class Metrics(Events):
    """What happened so far. `registries` are the configured ones, which always get a label of their own."""

    def __init__(self, registries: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry()
        self._plain = _Plain()
        self.registry.register(self._plain)
        ProcessCollector(registry=self.registry)
        r = self.registry
        self._requests = Counter(
            "cacheyd_requests", "Requests by what became of them", ["registry", "kind", "result"], registry=r
        )
        self._bytes = Counter("cacheyd_bytes", "Body bytes sent to clients, by where they came from", ["source"], registry=r)
        self._upstream = Counter("cacheyd_upstream_requests", "Requests to upstreams", ["registry", "code"], registry=r)
        self._seconds = Histogram("cacheyd_upstream_seconds", "Time to the head of an upstream's response", registry=r)
        self._remaining = Gauge(
            "cacheyd_ratelimit_remaining", "Pulls left, as the registry's last answer said", ["registry"], registry=r
        )
        self._stale = Counter("cacheyd_stale_served", "Tags served although upstream failed", ["registry"], registry=r)
        self._held = Counter(
            "cacheyd_held",
            "Tags that led to something too young, by what was done",
            ["registry", "action"],
            registry=r,
        )
        self._evictions = Counter("cacheyd_evictions", "Objects removed to make room", ["reason"], registry=r)
        self._verify = Counter("cacheyd_verify_failures", "Objects whose bytes did not have their digest", registry=r)
        info = Gauge("cacheyd_build_info", "The version that runs", ["version"], registry=r)
        info.labels(__version__).set(1)
        self._known = set(registries)
        self._others: set[str] = set()
        self._children: dict[tuple[str, str, str], Counter] = {}
        self._sources = {source: self._bytes.labels(source) for source in ("disk", "upstream")}

    def _label(self, registry: str) -> str:
        """Bounded: configured registries and the first 50 others; anybody may ask for any name."""
        if registry in self._known or registry in self._others:
            return registry
        if len(self._others) < MAX_LABELS:
            self._others.add(registry)
            return registry
        return "other"

    @staticmethod
    def _code(code: str) -> str:
        """Bounded: an upstream may make up statuses, which count by their class."""
        if code in _CODES:
            return code
        return f"{code[0]}xx" if len(code) == 3 and code.isdecimal() and code[0] in "12345" else "other"

    def request(self, registry: str, kind: str, result: str, sent: int) -> None:
        """A request was answered with `sent` body bytes. `result` is X-Cache in lower case, or `error`."""
        if result in _HITS:
            self._plain.hits += 1
        elif result:
            self._plain.misses += 1
        key = (self._label(registry) if registry else "", kind, result.lower() or "error")
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._requests.labels(*key)
        child.inc()
        if result == "STALE":
            self._stale.labels(key[0]).inc()
        if sent:
            self._sources["disk" if result in _HITS else "upstream"].inc(sent)

    def held(self, registry: str, action: str) -> None:
        """A tag led to something too young: `held`, `refused`, `allowed` or `audited`."""
        self._held.labels(self._label(registry), action).inc()

    def ignored(self) -> None:
        """A tag that is always asked of upstream was asked for."""
        self._plain.ignored += 1

    def upstream(self, registry: str, code: str, seconds: float) -> None:
        """An upstream answered (or failed: `error`, `timeout`, `dead`) after `seconds`."""
        self._upstream.labels(self._label(registry), self._code(code)).inc()
        self._seconds.observe(seconds)

    def ratelimit(self, registry: str, remaining: int) -> None:
        """The registry said how many pulls are left."""
        self._remaining.labels(self._label(registry)).set(remaining)

    def evicted(self, reason: str, count: int) -> None:
        """Objects were removed to make room."""
        self._evictions.labels(reason).inc(count)

    def configure(self, registries: Iterable[str]) -> None:
        """These registries have a label of their own from now on."""
        self._known |= set(registries)

    def verify_failure(self, registry: str) -> None:
        """An upstream sent bytes that do not have their digest."""
        self._verify.inc()

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge that is read when somebody looks."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def watch_total(self, name: str, text: str, read: Callable[[], int]) -> None:
        """A counter (`name` without `_total`) that is kept elsewhere."""

        def collect() -> Iterable[Metric]:
            yield CounterMetricFamily(name, text, value=read())

        self.registry.register(_Watched(collect))

    def watch_kinds(self, name: str, text: str, read: Callable[[], dict[str, float]]) -> None:
        """A gauge by kind that is read when somebody looks."""

        def collect() -> Iterable[Metric]:
            family = GaugeMetricFamily(name, text, labels=["kind"])
            for kind, value in read().items():
                family.add_metric([kind], value)
            yield family

        self.registry.register(_Watched(collect))

    def totals(self) -> tuple[int, int]:
        """Hits and misses so far."""
        return self._plain.hits, self._plain.misses

    def sent(self) -> dict[str, int]:
        """Body bytes sent so far, from `disk` and from `upstream`."""
        found = self.registry.get_sample_value
        return {source: int(found("cacheyd_bytes_total", {"source": source}) or 0) for source in self._sources}

    def evictions(self) -> dict[str, int]:
        """Objects removed so far, by reason."""
        samples = [sample for family in self._evictions.collect() for sample in family.samples]
        return {sample.labels["reason"]: int(sample.value) for sample in samples}

    def render(self) -> bytes:
        """The text format that Prometheus scrapes."""
        text = generate_latest(self.registry)
        for name in (b"cache_hits", b"cache_misses", b"cache_miss_by_ignore"):
            text = text.replace(b"# TYPE %s gauge" % name, b"# TYPE %s counter" % name)
        return text
