"""The parts of a cache, and the function that puts them together."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cacheyd.cache.cache import Cache
from cacheyd.cache.fetch import Fetcher
from cacheyd.observe.metrics import Metrics
from cacheyd.resources.budget import Budget
from cacheyd.settings.live import Live
from cacheyd.store.store import Store
from cacheyd.upstream.auth import Authorizer
from cacheyd.upstream.origins import Origins
from cacheyd.upstream.port import Transport


class ServiceTransport(Transport, Protocol):
    """A transport that lives as long as a service."""

    budget: Budget
    """The most memory that the bodies of running responses can take (bytes)."""

    def close(self) -> None:
        """Closes the connections that are not in use."""


@dataclass(frozen=True, slots=True)
class Components:
    """A store, upstreams, and the cache between them. Each part listens to changes of settings itself, in this order."""

    metrics: Metrics
    store: Store
    authorizer: Authorizer
    origins: Origins
    fetcher: Fetcher
    cache: Cache


def assemble(
    live: Live,
    transport: ServiceTransport,
    *,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> Components:
    """Makes the parts. Opens nothing yet: no directory, no connection."""
    settings = live.settings
    metrics = Metrics(settings.registries)
    store = Store(settings.cache_dir, live, clock=clock, monotonic=monotonic, events=metrics)
    authorizer = Authorizer(live, monotonic)
    origins = Origins(transport, authorizer, live, metrics)
    fetcher = Fetcher(
        store, origins, live, budget=transport.budget, clock=clock, monotonic=monotonic, events=metrics
    )  # fmt: skip
    cache = Cache(store, fetcher, live, clock=clock, monotonic=monotonic, events=metrics, policy=origins)
    components = Components(metrics, store, authorizer, origins, fetcher, cache)
    live.listen(lambda settings: metrics.configure(settings.registries))
    return components
