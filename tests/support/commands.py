"""Runs the commands of cacheyd beside a running cacheyd."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

REPOSITORY = Path(__file__).parents[2]


class Running(Protocol):
    """A running cache."""

    cache_dir: Path


def command(*args: str | Path) -> list[str]:
    """The argument vector of a command."""
    return [sys.executable, "-m", "cacheyd", *map(str, args)]


def run_command(
    cache: Running, *args: str | Path, data: bytes = b"", status: int = 0, seconds: float = 60
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command with the cache's directory. The command must end with the exit code `status` within `seconds`."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("CACHEYD_")}
    environment = {**settings, "CACHE_DIR": str(cache.cache_dir), "PYTHONPATH": str(REPOSITORY)}
    argv = command(*args)
    done = subprocess.run(argv, input=data, capture_output=True, timeout=seconds, check=False, env=environment)
    assert done.returncode == status, (argv, done.returncode, done.stdout.decode(), done.stderr.decode())
    return done


def names(done: subprocess.CompletedProcess[bytes]) -> Sequence[str]:
    """The lines of a command's output."""
    return done.stdout.decode().splitlines()
