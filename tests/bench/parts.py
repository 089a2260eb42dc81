"""The timed parts. Systems take turns, so that a busy machine slows all of them."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.clients import download, requests_per_second, verify, verify_together
from tests.bench.content import Content, Item
from tests.bench.memory import cpu_seconds
from tests.bench.results import (
    BLOB_1,
    BLOB_8,
    COLD,
    HERD_COLD,
    HERD_WARM,
    MANIFEST,
    MANIFESTS,
    SMALL,
    STORED,
    UNITS,
    Results,
    Sample,
)
from tests.bench.systems import Lineup, Origin, System
from tests.real.procs import wait_until

NOISY = 0.25
MORE_ROUNDS = 2
CLIENTS = 50


@dataclass(frozen=True, slots=True)
class Bench:
    """What a part needs. `noise_until` and `enough` (monotonic seconds) end what can be left out."""

    origin: Origin
    lineup: Lineup
    content: Content
    results: Results
    repeats: int
    seconds: int
    noise_until: float
    enough: float
    scratch: Path
    say: Callable[[str], None]

    def sample(
        self, measure: str, system: System, timed: Callable[[], float], settle: Callable[[], int] | None = None
    ) -> None:
        """Runs `timed` and keeps what it gives; what fails is noted and the run goes on.

        `settle` waits for what is still going on afterwards, and counts the bodies that the origin sent.
        """
        load, cpu, started = os.getloadavg()[0], cpu_seconds(system.pid), time.perf_counter()
        try:
            value = timed()
            share = (cpu_seconds(system.pid) - cpu) / (time.perf_counter() - started)
            bodies = settle() if settle else None
        except Exception as error:
            self.results.failed(f"{measure}, {system.name}", error)
            return
        self.results.samples[measure, system.name].append(Sample(value, share, load, bodies))
        fetched = "" if bodies is None else f", upstream bodies: {bodies}"
        self.say(f"  {measure}, {system.name}: {value:,.2f} {UNITS[measure]}{fetched} (cpu {share:.0%}, load {load:.1f})")

    def take_turns(self, measure: str, timed: Callable[[System], float]) -> None:
        """`repeats` samples for each system; more for those that vary, while there is time."""
        systems = self.lineup.all()
        for n in range(self.repeats):
            for system in _rotated(systems, n):
                self.sample(measure, system, lambda system=system: timed(system))  # type: ignore[misc]
        for _ in range(MORE_ROUNDS):
            for system in systems:
                if self.results.spread(measure, system.name) > NOISY and time.monotonic() < self.noise_until:
                    self.sample(measure, system, lambda system=system: timed(system))  # type: ignore[misc]

    def warm(self, item: Item) -> None:
        """Every cache has it, and gives out the right bytes both as a miss and as a hit."""
        for system in self.lineup.all():
            verify(system.url(item), item)
            self.wait_stored(system, item)
            verify(system.url(item), item)

    def wait_stored(self, system: System, item: Item) -> None:
        """Until the cache has nothing more to do with it."""
        wait_until(lambda: system.stored(item), f"{system.name} has stored {item.digest}", seconds=60)


def _rotated(systems: Sequence[System], by: int) -> list[System]:
    return [*systems[by % len(systems) :], *systems[: by % len(systems)]]


def _hits(bench: Bench, measure: str, items: Sequence[Item]) -> None:
    for item in items:
        bench.warm(item)

    def timed(system: System) -> float:
        urls = [system.url(item) for item in items]
        return requests_per_second(urls, bench.seconds, bench.scratch / "wrk.lua")

    bench.take_turns(measure, timed)


def manifest(bench: Bench) -> None:
    """One manifest for all, as when many nodes pull the same; then more of them than cacheyd keeps replies for."""
    _hits(bench, MANIFEST, bench.content.manifests[:1])
    _hits(bench, MANIFESTS, bench.content.manifests)


def small(bench: Bench) -> None:
    """A blob as small as an image's config."""
    _hits(bench, SMALL, [bench.content.small])


def blob(bench: Bench) -> None:
    """MB/s of a large blob that is in the page cache."""
    item = bench.content.big
    bench.warm(item)
    for measure, clients, transfers in ((BLOB_1, 1, 5), (BLOB_8, 8, 1)):

        def timed(system: System, clients: int = clients, transfers: int = transfers) -> float:
            seconds = download(system.url(item), item.size, clients=clients, transfers=transfers)
            return item.size * clients * transfers / seconds / 1e6

        bench.take_turns(measure, timed)


def cold(bench: Bench) -> None:
    """Seconds for a blob that no cache has; it is in the origin's page cache.

    docker-registry fetches it twice, for the client and for itself: so also how long it has to do with it.
    """
    for n, item in enumerate(bench.content.cold):
        for system in _rotated(bench.lineup.caches(), n):
            _cold(bench, COLD, system, item, 1)
            system.forget(item)


def _cold(bench: Bench, measure: str, system: System, item: Item, clients: int) -> None:
    os.sync()
    _touch_pages(bench.scratch / "pages", 2 * item.size)
    before, started = bench.origin.bodies(item), time.perf_counter()

    def settle() -> int:
        bench.wait_stored(system, item)
        if measure == COLD:
            stored = Sample(time.perf_counter() - started, 0.0, os.getloadavg()[0])
            bench.results.samples[STORED, system.name].append(stored)
        time.sleep(0.1)  # nginx writes its line after the last byte.
        return bench.origin.bodies(item) - before

    bench.sample(measure, system, lambda: download(system.url(item), item.size, clients=clients), settle)


def _touch_pages(file: Path, size: int) -> None:
    """In a virtual machine free memory may have gone back to the host, and writing to a page that has to come from there
    takes up to ten times as long: so the page cache gets its pages before the clock starts.
    """
    piece = bytes(1 << 20)
    with file.open("wb", buffering=0) as out:
        for _ in range(size // len(piece)):
            out.write(piece)
    file.unlink()


def herd(bench: Bench) -> None:
    """Seconds until 50 clients have a blob: nobody had it before; everybody has it."""
    cacheyd, registry, content = bench.lineup.cacheyd, bench.lineup.registry, bench.content
    verify_together(cacheyd.url(content.check), content.check, CLIENTS)
    if not bench.results.of(COLD, cacheyd.name):
        _cold(bench, COLD, cacheyd, content.cold[0], 1)
    for n, item in enumerate(content.herd):
        _cold(bench, HERD_COLD, cacheyd, item, CLIENTS)
        _warm_herd(bench, cacheyd, item)
        verify(cacheyd.url(item), item)
        cacheyd.forget(item)
        if n == 0 or time.monotonic() < bench.enough:
            _warm_herd(bench, bench.lineup.nginx, item)
    if registry and time.monotonic() < bench.enough:
        # Once: it fetches the blob for each client.
        _cold(bench, HERD_COLD, registry, content.herd[0], CLIENTS)


def _warm_herd(bench: Bench, system: System, item: Item) -> None:
    bench.sample(HERD_WARM, system, lambda: download(system.url(item), item.size, clients=CLIENTS))


PARTS: dict[str, Callable[[Bench], None]] = {"manifest": manifest, "small": small, "blob": blob, "cold": cold, "herd": herd}
