"""The status page, for people who open the cache in a browser."""

import html
import time
from dataclasses import dataclass

from cacheyd import __version__
from cacheyd.observe.wording import counted, shown_size


@dataclass(frozen=True, slots=True)
class Status:
    """What the page shows. `started` is in seconds since the epoch, sizes are in bytes; `trouble` says why nothing is kept."""

    started: float
    hits: int
    misses: int
    manifests: int
    blobs: int
    stored: int
    flights: int
    cache_dir: str
    free: int | None
    registries: tuple[str, ...]
    trouble: str = ""


def kept_nothing(trouble: str) -> str:
    """What there is to say while requests are served and nothing is kept, in one line."""
    return f"{trouble}: nothing is kept"


def _duration(seconds: float) -> str:
    minutes, _ = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h {minutes} min"


def render(status: Status) -> bytes:
    """The page: no scripts, nothing from elsewhere."""
    total = status.hits + status.misses
    ratio = f"{100 * status.hits / total:.1f} %" if total else "no requests yet"
    free = "unknown" if status.free is None else shown_size(status.free)
    rows = [
        ("Version", __version__),
        ("Running for", _duration(time.time() - status.started)),
        ("Hits", f"{status.hits} of {total} requests ({ratio})"),
        (
            "Stored",
            f"{counted(status.manifests, 'manifest')} and {counted(status.blobs, 'blob')}, {shown_size(status.stored)}",
        ),
        ("Being fetched", str(status.flights)),
        ("Cache directory", f"{status.cache_dir} ({free} free)"),
        ("Configured registries", ", ".join(status.registries) or "none: any registry is served"),
    ]
    alarm = f'<p role="alert"><strong>{html.escape(kept_nothing(status.trouble))}</strong></p>' if status.trouble else ""
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
