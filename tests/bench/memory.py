"""What a process takes: anonymous memory, sampled, and processor time."""

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

INTERVAL = 0.05
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Processor time of the process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def anonymous_bytes(pid: int) -> int:
    """RssAnon: what cannot be dropped, unlike mapped files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


class MemoryWatch:
    """Samples RssAnon all the time; `peaks` has the highest of each part, in bytes."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self.part = "start"
        self.peaks: dict[str, int] = {}

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            try:
                now = anonymous_bytes(self._pid)
            except OSError:
                return
            self.peaks[self.part] = max(now, self.peaks.get(self.part, 0))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
