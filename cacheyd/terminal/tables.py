"""Tables and pairs as text, and short forms for their cells."""

import sys
from collections.abc import Sequence

# More rows than this are written without rich, which measures each cell.
RICH_ROWS = 2000

type Row = tuple[str, ...]


def pairs(rows: Sequence[Row]) -> str:
    """Lines of a name and a value each."""
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:{width}}  {_clean(value)}\n" for name, value in rows)


def table(head: Row, body: Sequence[Row], right: set[int]) -> str:
    """A table: with rich on a terminal, else plain columns. `right` are the columns that are aligned right."""
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
    """Without what could talk to a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def shown_digest(digest: str, short: bool) -> str:
    """Enough of it for `cacheyd rm` to know it."""
    algorithm, _, encoded = digest.partition(":")
    return f"{algorithm}:{encoded[:12]}" if short else digest


def some(names: Sequence[str]) -> str:
    """The first of several names, and how many more there are."""
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else "".join(names) or "-"


def ago(at: float, now: float) -> str:
    """How long ago something was (seconds since the epoch), for people."""
    return f"{span(now - at)} ago" if at > 0 else "-"


def span(seconds: float) -> str:
    """A duration for people, in its largest unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
