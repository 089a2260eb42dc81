"""Numbers in words for people: in the log, on the status page, in what the tools print."""


def shown_size(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def counted(count: int, noun: str) -> str:
    """A number of things for people."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
