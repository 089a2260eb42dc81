"""Shows the progress of a tool, on a terminal or in a log."""

import sys
import time
from typing import Any, TextIO

from cacheyd.observe.wording import counted, shown_size

# How often progress is printed if there is no terminal (seconds).
LINE_EVERY = 2.0


class Lines:
    """Prints progress as lines, for logs."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._said = float("-inf")

    def show(self, progress: dict[str, Any]) -> None:
        """Prints the progress, every LINE_EVERY seconds and at the end."""
        done, total = progress["done"], progress["total"]
        if done < total and time.monotonic() - self._said < LINE_EVERY:
            return
        self._said = time.monotonic()
        print(f"{done} of {counted(total, 'object')}, {shown_size(progress['bytes'])}", file=self._stream, flush=True)

    def close(self) -> None:
        """Does nothing: lines leave nothing open."""


class Bar:
    """Shows progress as a bar on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=None)
        self._bar.start()

    def show(self, progress: dict[str, Any]) -> None:
        """Moves the bar."""
        size = shown_size(progress["bytes"])
        self._bar.update(self._task, completed=progress["done"], total=progress["total"], description=size)

    def close(self) -> None:
        """Removes the bar."""
        self._bar.stop()
