"""The state of a running cache in one report, for the status page, for `cacheyd stats` and for the metrics."""

import html
import time
from collections.abc import Callable

from cacheyd import __version__
from cacheyd.cache.cache import Cache
from cacheyd.cache.fetch import Fetcher
from cacheyd.observe.metrics import Metrics
from cacheyd.observe.report import Report, StoreReport
from cacheyd.observe.wording import counted, shown_size
from cacheyd.protocol.reference import Kind
from cacheyd.settings.live import Live
from cacheyd.store.store import Store
from cacheyd.upstream.origins import Origins


class Reporter:
    """Makes reports. The time since the start counts from the construction of this object."""

    def __init__(
        self,
        live: Live,
        metrics: Metrics,
        store: Store,
        origins: Origins,
        fetcher: Fetcher,
        cache: Cache,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._live = live
        self._metrics = metrics
        self._store = store
        self._origins = origins
        self._fetcher = fetcher
        self._cache = cache
        self._monotonic = monotonic
        self._started = monotonic()

    def report(self) -> Report:
        """The state of the cache now."""
        hits, misses = self._metrics.totals()
        return Report(
            uptime=self._monotonic() - self._started,
            hits=hits,
            misses=misses,
            sent=self._metrics.sent(),
            evictions=self._metrics.evictions(),
            flights=len(self._fetcher.flights),
            waiting=self._cache.waiting,
            upstreams_dead=len(self._origins.breaker.dead()),
            tags_held=self._cache.cooldown.count(),
            registries=tuple(sorted(self._live.settings.registries)),
            store=self._store_report(),
        )

    def _store_report(self) -> StoreReport:
        store = self._store
        return StoreReport(
            cache_dir=str(self._live.settings.cache_dir),
            objects={str(kind): count for kind, count in store.counts.items()},
            size=store.size,
            free=store.blobs.free(),
            partial_bytes=store.partials.size,
            writable=not (store.health.refusal or store.health.lost_directory),
            full=store.bounds.full,
            scrubbed=store.upkeep.scrub.scrubbed,
            scrub_dropped=store.upkeep.scrub.dropped,
            write_errors=store.health.write_errors,
            trouble=store.trouble,
        )

    def counters(self) -> dict[str, object]:
        """The counters since the start, for `cacheyd stats`."""
        now = self.report()
        total = now.hits + now.misses
        return {
            "version": __version__, "uptime": now.uptime, "hits": now.hits, "misses": now.misses,
            "hit_ratio": now.hits / total if total else None, "bytes": dict(now.sent),
            "evictions": dict(now.evictions), "flights": now.flights, "waiting": now.waiting,
        }  # fmt: skip


def kept_nothing(trouble: str) -> str:
    """The warning, in one line, that the cache serves requests but keeps nothing."""
    return f"{trouble}: nothing is kept"


def _duration(seconds: float) -> str:
    minutes, _ = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h {minutes} min"


def render(report: Report) -> bytes:
    """The status page as HTML. The page has no scripts, and loads nothing from other servers."""
    store, total = report.store, report.hits + report.misses
    ratio = f"{100 * report.hits / total:.1f} %" if total else "no requests yet"
    free = "unknown" if store.free is None else shown_size(store.free)
    manifests, blobs = store.objects[Kind.MANIFEST], store.objects[Kind.BLOB]
    rows = [
        ("Version", __version__),
        ("Running for", _duration(report.uptime)),
        ("Hits", f"{report.hits} of {total} requests ({ratio})"),
        ("Stored", f"{counted(manifests, 'manifest')} and {counted(blobs, 'blob')}, {shown_size(store.size)}"),
        ("Being fetched", str(report.flights)),
        ("Cache directory", f"{store.cache_dir} ({free} free)"),
        ("Configured registries", ", ".join(report.registries) or "none: any registry is served"),
    ]
    alarm = f'<p role="alert"><strong>{html.escape(kept_nothing(store.trouble))}</strong></p>' if store.trouble else ""
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>cacheyd</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
body {{ max-width: 44rem; margin: 3rem auto; padding: 0 1rem }}
th {{ text-align: left; vertical-align: top; padding: .3rem 2rem .3rem 0; white-space: nowrap; font-weight: 600 }}
td {{ padding: .3rem 0; overflow-wrap: anywhere }}
</style></head>
<body><h1>cacheyd</h1>{alarm}<p>A pull-through cache for container registries.</p><table>{cells}</table>
<p><a href="/metrics">Metrics</a></p></body></html>
""".encode()
