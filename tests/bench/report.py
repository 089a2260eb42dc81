"""The table for people and the JSON for machines."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.results import GROWTH, MEMORY, TRACED, UNITS, Goal, Results

SYSTEMS = ("cacheyd", "docker-registry", "nginx")
# Where less is better, the ratio is turned round: more than 1 always says that cacheyd is faster.
_SECONDS = "s"


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a figure depends on. Sizes in bytes; load averages of the last minute at the start and at the end."""

    blob_size: int
    load_before: float
    load_after: float
    seconds: float
    memory_peaks: dict[str, int]

    def text(self) -> str:
        machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
        load = f"load {self.load_before:.1f} before, {self.load_after:.1f} after"
        return f"{machine}; blobs of {self.blob_size / 1e6:.0f} MB; {load}; {self.seconds:.0f} s in all"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


def _cell(results: Results, measure: str, system: str) -> str:
    median = results.median(measure, system)
    if median is None:
        return "-"
    count = len(results.of(measure, system))
    return f"{_number(median)} ±{results.spread(measure, system) / 2:.0%} ({count})"


def _against(results: Results, measure: str, system: str) -> str:
    mine, other = results.median(measure, "cacheyd"), results.median(measure, system)
    if not mine or not other:
        return "-"
    return f"{other / mine if UNITS[measure] == _SECONDS else mine / other:.2f}x"


def _bodies(results: Results, measure: str) -> str:
    found = [f"{max(bodies)}" for system in SYSTEMS if (bodies := results.bodies(measure, system))]
    return " / ".join(found)


def table(results: Results) -> str:
    """A row for each measure: median, half the spread, number of samples; then cacheyd's speed relative to each peer."""
    rows = [["", "unit", *SYSTEMS, "÷ registry", "÷ nginx", "upstream bodies"]]
    for measure, unit in UNITS.items():
        cells = [_cell(results, measure, system) for system in SYSTEMS]
        if set(cells) != {"-"}:
            ratios = [_against(results, measure, system) for system in SYSTEMS[1:]]
            rows.append([measure, unit, *cells, *ratios, _bodies(results, measure)])
    return _align(rows) if rows[1:] else ""


def growth_table(results: Results) -> str:
    """A row for each measure by number of stored objects; the last column is the largest against the smallest."""
    sizes = [size for size in results.sizes() if size]
    if not sizes:
        return ""
    rows = [["objects stored", "unit", *(f"{size:,}" for size in sizes), "growth"]]
    for measure, unit in GROWTH.items():
        values = [results.growth.get((measure, size)) for size in sizes]
        first, last = values[0], values[-1]
        ratio = f"{last / first:.2f}x" if first and last else "-"
        rows.append([measure, unit, *("-" if value is None else _number(value) for value in values), ratio])
    per = ", ".join(
        f"{measure} {value:.1f}" for measure in (MEMORY, TRACED) if (value := results.memory_per_object(measure)) is not None
    )
    lines = ", ".join(f"{line} {size / 1e6:.1f}" for line, size in results.lines.get(sizes[-1], {}).items())
    return f"{_align(rows)}\n\nMB per 100,000 objects: {per}\nMB by line of code, {sizes[-1]:,} objects: {lines}"


def goal_table(found: list[Goal]) -> str:
    """A row for each goal: what it is, what it is now, whether it is reached."""
    rows = [["goal", "now", ""]]
    for goal in found:
        verdict = {None: "not measured", True: "reached", False: "NOT reached"}[goal.reached]
        rows.append([goal.text, "-" if goal.value is None else f"{goal.value:,.2f}", verdict])
    return _align(rows)


def _align(rows: list[list[str]]) -> str:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def write_json(path: Path, results: Results, found: list[Goal], circumstances: Circumstances) -> None:
    """Everything, each sample included."""
    measures = {
        measure: {
            "unit": unit,
            "systems": {
                system: {"median": results.median(measure, system), "samples": [asdict(s) for s in samples]}
                for system in SYSTEMS
                if (samples := results.of(measure, system))
            },
        }
        for measure, unit in UNITS.items()
        if any(results.of(measure, system) for system in SYSTEMS)
    }
    document = {
        "circumstances": asdict(circumstances),
        "measures": measures,
        "growth": {
            measure: {
                "unit": unit,
                "objects": {size: v for size in results.sizes() if (v := results.growth.get((measure, size)))},
            }
            for measure, unit in GROWTH.items()
        },
        "goals": [asdict(goal) for goal in found],
        "failures": results.failures,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
