"""Looks at files that other processes can remove at any time."""

from contextlib import suppress
from pathlib import Path
from stat import S_ISREG


def sizes(directory: Path) -> dict[Path, int]:
    """The sizes of the files below a directory (bytes). Leaves out files that are removed during the call."""
    found = {}
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            if S_ISREG(status.st_mode):
                found[path] = status.st_size
    return found
