"""Formats numbers for people: in the log, on the status page, in the output of the tools."""


def shown_size(size: float) -> str:
    """A size in bytes as a short text, such as `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def counted(count: int, noun: str) -> str:
    """A number with its noun, in singular or plural."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
