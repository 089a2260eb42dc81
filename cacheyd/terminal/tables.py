"""Makes tables and pairs as text, and short forms for their cells."""

import sys
from collections.abc import Sequence

# The most rows of a table that rich writes: rich measures each cell, which is slow.
RICH_ROWS = 2000

type Row = tuple[str, ...]


def pairs(rows: Sequence[Row]) -> str:
    """Lines with a name and a value each."""
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:{width}}  {_clean(value)}\n" for name, value in rows)


def table(head: Row, body: Sequence[Row], right: set[int]) -> str:
    """A table: by rich on a terminal, else in plain columns. `right` has the numbers of the columns that are aligned right."""
    if sys.stdout.isatty() and len(body) <= RICH_ROWS:
        return _rich_table(head, body, right)
    rows = [tuple(map(_clean, row)) for row in (head, *body)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(_line(row, widths, right) for row in rows)


def _line(row: Row, widths: Sequence[int], right: set[int]) -> str:
    cells = [
        cell.rjust(width) if n in right else cell.ljust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip() + "\n"


def _rich_table(head: Row, body: Sequence[Row], right: set[int]) -> str:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for n, name in enumerate(head):
        table.add_column(name, justify="right" if n in right else "left", overflow="fold", no_wrap=n in right)
    for row in body:
        table.add_row(*(Text(_clean(cell)) for cell in row))
    console = Console(file=sys.stdout, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _clean(text: str) -> str:
    """The text without characters that could control a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def shown_digest(digest: str, short: bool) -> str:
    """The digest, or with `short` its first 12 digits, which are enough for `cacheyd rm`."""
    algorithm, _, encoded = digest.partition(":")
    return f"{algorithm}:{encoded[:12]}" if short else digest


def some(names: Sequence[str]) -> str:
    """The first of several names, and the number of the other names."""
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else "".join(names) or "-"


def ago(at: float, now: float) -> str:
    """The time since `at`, for people. Both times are in seconds since the epoch."""
    return f"{span(now - at)} ago" if at > 0 else "-"


def span(seconds: float) -> str:
    """A duration for people, in its largest unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
