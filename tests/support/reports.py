"""The state of a cache in which nothing happened yet. A test replaces what it is about."""

from cacheyd.observe.report import Report, StoreReport

STORE = StoreReport(
    cache_dir="/cache",
    objects={"manifest": 1, "blob": 2},
    size=2048,
    free=None,
    partial_bytes=0,
    writable=True,
    full=False,
    scrubbed=0,
    scrub_dropped=0,
    write_errors=0,
    trouble="",
)
REPORT = Report(
    uptime=86_460.0,
    hits=0,
    misses=0,
    sent={},
    evictions={},
    flights=3,
    waiting=0,
    upstreams_dead=0,
    tags_held=0,
    registries=(),
    store=STORE,
)
