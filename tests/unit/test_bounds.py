"""The page of bounds says what the code does."""

import importlib
import re
from pathlib import Path

import pytest

from cacheyd.settings.load import load

PAGE = Path(__file__).parents[2] / "docs" / "bounds.md"
UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "s": 1, "min": 60, "KiB/s": 1 << 10}
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in PAGE.read_text().splitlines()
    if line.startswith("| ") and not line.startswith(("| what", "| ---"))
]
DEFAULTS = load(environ={})


def numbers(text: str) -> set[float]:
    """Each number in a cell, in bytes or seconds; words that stand for one, too."""
    text = text.replace(",", "").replace("a tenth", "10")
    found = re.findall(r"(\d+(?:\.\d+)?)(?: (KiB/s|KiB|MiB|min|s)\b)?", text)
    return {float(number) * UNITS[unit] for number, unit in found}


def value(name: str) -> float:
    """What a constant or the default of a setting is."""
    if "." not in name:
        return float(getattr(DEFAULTS if hasattr(DEFAULTS, name) else DEFAULTS.defaults, name))
    module, _, constant = name.rpartition(".")
    return float(getattr(importlib.import_module(module), constant))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:50])
def test_each_bound_is_what_the_page_says(row: tuple[str, str, str]) -> None:
    what, bound, where = row
    names = re.findall(r"`([\w.]+)`", where)
    assert names, what
    stated = numbers(bound)
    assert {value(name) for name in names} <= stated, (what, [value(name) for name in names], stated)


def test_the_page_is_not_empty() -> None:
    assert len(ROWS) > 40
