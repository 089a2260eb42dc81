"""A look at files that others remove at any time."""

from contextlib import suppress
from pathlib import Path
from stat import S_ISREG


def sizes(directory: Path) -> dict[Path, int]:
    """The files below; what goes meanwhile is left out."""
    found = {}
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            if S_ISREG(status.st_mode):
                found[path] = status.st_size
    return found
