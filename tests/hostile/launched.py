"""Daemons that are started by the launcher, and what a test asks of their processes."""

import os
import signal
from pathlib import Path

from tests.faults.daemon import Daemon


class Launched(Daemon):
    """A daemon whose clock can be set and whose constants can be changed."""

    def argv(self) -> list[str]:
        python, _, _, *arguments = super().argv()
        return [python, "-m", "tests.hostile.launcher", *arguments]

    def set_clock_back(self) -> None:
        """By an hour."""
        os.kill(self.pid, signal.SIGUSR1)


def sockets(daemon: Daemon) -> int:
    """How many connections the daemon's port has that are not closed on its side (/proc/net/tcp: 01 to 05, 08 and 09)."""
    rows = [row.split() for row in Path(f"/proc/{daemon.pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[1].partition(":")[2], 16) == daemon.port and row[9] != "0" and row[3] != "0A" for row in rows)


def cpu_seconds(daemon: Daemon) -> float:
    """CPU time that the process has taken."""
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
