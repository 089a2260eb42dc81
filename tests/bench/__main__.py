"""One run: starts everything on loopback, measures, prints. Exit code 1 if something could not be measured."""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.bench.content import Content, make_content
from tests.bench.growth import measure_growth
from tests.bench.memory import MemoryWatch
from tests.bench.parts import PARTS, Bench
from tests.bench.report import Circumstances, goal_table, growth_table, table, write_json
from tests.bench.results import Results, goals
from tests.bench.systems import CacheydSystem, Lineup, Missing, Nginx, Origin, RegistryProxy


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: bytes of the large blobs, rounds, seconds of each wrk run. After `noise_until` seconds what
    varies is not measured again, after `enough` what can be left out is left out. `objects`: how many are stored, in turn,
    for growth.
    """

    size: int
    repeats: int
    cold: int
    herd: int
    seconds: int
    noise_until: float
    enough: float
    objects: tuple[int, ...]


FULL = Plan(
    size=400_000_000, repeats=3, cold=5, herd=3, seconds=3, noise_until=150, enough=270, objects=(1000, 10_000, 100_000)
)
QUICK = Plan(size=100_000_000, repeats=2, cold=3, herd=2, seconds=1, noise_until=40, enough=70, objects=(1000, 10_000))
# More than the 512 replies that cacheyd keeps ready.
MANIFESTS = 700
# Not beside the peers.
ALONE = "growth"
ALL = (*PARTS, ALONE)


def _parts(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := set(chosen) - set(ALL):
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(sorted(unknown))}")
    return [part for part in ALL if part in chosen]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="blobs of 100 MB and fewer rounds: a minute, rough figures")
    parser.add_argument("--only", type=_parts, default=list(ALL), metavar="PARTS", help=f"some of {','.join(ALL)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there, too")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where the files go for the time (a disk)")
    return parser.parse_args(argv)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _registry(running: ExitStack, directory: Path, origin: Origin, results: Results) -> RegistryProxy | None:
    try:
        return running.enter_context(RegistryProxy(directory, origin))
    except Missing as error:
        results.failed("docker-registry", error)
        return None


def _measure(plan: Plan, parts: list[str], directory: Path, content: Content, results: Results) -> dict[str, int]:
    """Fills `results`; returns the peak of cacheyd's anonymous memory in each part, in bytes."""
    started = time.monotonic()
    noise_until, enough = started + plan.noise_until, started + plan.enough
    with ExitStack() as running:
        origin = running.enter_context(Origin(directory / "origin", content.root))
        nginx = running.enter_context(Nginx(directory / "nginx", content.root))
        cacheyd = CacheydSystem(directory / "cacheyd", origin)
        running.callback(cacheyd.stop)
        registry = _registry(running, directory / "registry", origin, results)
        lineup = Lineup(cacheyd, registry, nginx)
        memory = running.enter_context(MemoryWatch(cacheyd.pid))
        bench = Bench(origin, lineup, content, results, plan.repeats, plan.seconds, noise_until, enough, directory, _say)
        for part in parts:
            _say(f"{part} …")
            memory.part = part
            try:
                PARTS[part](bench)
            except Exception as error:  # The other parts can still be measured.
                results.failed(part, error)
        return memory.peaks


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; speed is reported, never asserted."""
    arguments = _arguments(argv)
    plan = QUICK if arguments.quick else FULL
    started, load_before, results = time.monotonic(), os.getloadavg()[0], Results()
    peaks: dict[str, int] = {}
    # So that the processes and files go when the run is ended from outside.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="cacheyd-bench-", dir=arguments.dir) as name:
        _say(f"files in {name}; load {load_before:.1f}")
        try:
            if beside := [part for part in arguments.only if part in PARTS]:
                content = make_content(
                    Path(name) / "root", size=plan.size, manifests=MANIFESTS, cold=plan.cold, herd=plan.herd
                )
                peaks = _measure(plan, beside, Path(name), content, results)
            if ALONE in arguments.only:
                _say(f"{ALONE} …")
                measure_growth(Path(name) / ALONE, plan.objects, plan.seconds, results, _say)
        except Exception as error:  # Said below, with whatever was measured.
            results.failed("the run", error)
    where = Circumstances(plan.size, load_before, os.getloadavg()[0], time.monotonic() - started, peaks)
    found = goals(results, set(arguments.only), max(peaks.values(), default=0))
    print("\n" + "\n\n".join(filter(None, (where.text(), table(results), growth_table(results), goal_table(found)))))
    if peaks:
        memory = ", ".join(f"{part} {peak / 1e6:.0f}" for part, peak in peaks.items())
        print(f"\ncacheyd's peak anonymous memory, MB: {memory}")
    for failure in results.failures:
        print(f"could not be measured: {failure}")
    if arguments.json:
        write_json(arguments.json, results, found, where)
    return 1 if results.failures or any(goal.reached is None for goal in found) else 0


if __name__ == "__main__":
    sys.exit(main())
