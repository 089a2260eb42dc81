"""The real daemon as a process, and what a test needs to look into it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from tests.faults.client import Client, Reply, get
from tests.real.cache import REPOSITORY, Cacheyd

# Never right in a log, whatever its level.
CRASHES = ("Traceback", "Unhandled", "mitmproxy has crashed", "never retrieved", "was never awaited", "Fatal error")

# Short enough for tests, long enough for a busy machine with two cores.
QUICK_SETTINGS: Mapping[str, str] = {
    "connect_timeout": "1s",
    "head_timeout": "1s",
    "progress_timeout": "1s",
    "retries": "2",
    "grace": "5s",
}


class Daemon(Cacheyd):
    """`python -m cacheyd serve` of this checkout; `settings` are those of QUICK_SETTINGS with changes.

    Settings go into the environment, registries into the configuration file.
    """

    def __init__(
        self,
        directory: Path,
        registries: str,
        settings: Mapping[str, str] | None = None,
        *,
        env: Mapping[str, str] | None = None,
    ) -> None:
        variables = {f"CACHEYD_{name.upper()}": value for name, value in {**QUICK_SETTINGS, **(settings or {})}.items()}
        self.expected: list[re.Pattern[str]] = []
        super().__init__(directory, registries, env={"PYTHONPATH": str(REPOSITORY), **variables, **(env or {})})

    def get(self, target: str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Reply:
        """One request on a connection of its own."""
        return get(self.port, target, headers, method=method)

    def connect(self, *, receive_buffer: int | None = None) -> Client:
        """A connection."""
        return Client(self.port, receive_buffer=receive_buffer)

    # Its log

    def expect(self, pattern: str) -> None:
        """Lines of level error with this in them are right in this test."""
        self.expected.append(re.compile(pattern))

    def log_size(self) -> int:
        """How many bytes of whole lines the log has, for `problems`."""
        return self.process.log_file.read_bytes().rfind(b"\n") + 1

    def lines(self, since: int = 0) -> list[str]:
        """The log's whole lines from that byte on."""
        log = self.process.log_file.read_bytes()
        return log[since : log.rfind(b"\n") + 1].decode("utf-8", "replace").splitlines()

    def problems(self, since: int = 0) -> list[str]:
        """Lines that must not be there: crashes, and errors that nobody expects."""
        return [line for line in self.lines(since) if self._is_problem(line)]

    def _is_problem(self, line: str) -> bool:
        if any(crash in line for crash in CRASHES):
            return True
        try:
            level = json.loads(line).get("level")
        except (ValueError, AttributeError):
            return True  # Whatever does not come through the log is somebody's stray print or a crash.
        return level in ("error", "critical") and not any(pattern.search(line) for pattern in self.expected)

    # What it keeps

    def blob_file(self, digest: str) -> Path:
        """Where an object is once it is kept."""
        return self.cache_dir / "blobs" / digest.replace(":", "/")

    def has(self, digest: str) -> bool:
        """Whether the object is on disk."""
        return self.blob_file(digest).is_file()

    def descriptors(self) -> int:
        """How many files and sockets it has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))
