"""The state of a running cache, as a value. `admin.status` makes it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreReport:
    """The state of the store. Sizes are in bytes; `free` is None if unknown; `trouble` says why the store keeps no objects."""

    cache_dir: str
    objects: Mapping[str, int]
    size: int
    free: int | None
    partial_bytes: int
    writable: bool
    full: bool
    scrubbed: int
    scrub_dropped: int
    write_errors: int
    trouble: str


@dataclass(frozen=True, slots=True)
class Report:
    """The state now, and the counts since the start. `uptime` is in seconds; `sent` holds the bytes sent, by source."""

    uptime: float
    hits: int
    misses: int
    sent: Mapping[str, int]
    evictions: Mapping[str, int]
    flights: int
    waiting: int
    upstreams_dead: int
    tags_held: int
    registries: tuple[str, ...]
    store: StoreReport
