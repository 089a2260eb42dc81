"""Programs that a test writes: correct and wrong credential helpers and providers."""

import json
import os
import time
from pathlib import Path

PROVIDER = "credentialprovider.kubelet.k8s.io/v1"


def write_program(path: Path, body: str) -> Path:
    """Writes an executable shell script. Replaces an old script as a whole, because the old one is perhaps running."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(f"#!/bin/sh\n{body}\n")
    new.chmod(0o755)
    new.rename(path)
    return path


def says(username: str, secret: str, server: str = "") -> str:
    """The body of a docker credential helper that gives this login."""
    answer = json.dumps({"ServerURL": server, "Username": username, "Secret": secret})
    return f"cat > /dev/null; printf '%s' '{answer}'"


def provides(auth: dict[str, tuple[str, str]] | None, *, key: str = "Registry", duration: str | None = "1h0m0s") -> str:
    """The body of a credential provider that gives these logins, by pattern."""
    logins = None if auth is None else auth.items()
    entries = logins and {pattern: {"username": name, "password": word} for pattern, (name, word) in logins}
    answer = {"apiVersion": PROVIDER, "kind": "CredentialProviderResponse", "cacheKeyType": key, "auth": entries}
    if duration is not None:
        answer["cacheDuration"] = duration
    return f"cat > /dev/null; printf '%s' '{json.dumps(answer)}'"


def counted(body: str, runs: Path) -> str:
    """The same body, with a first command that adds a line to `runs` on each run."""
    return f'echo "$$" >> {runs}\n{body}'


def runs_of(runs: Path) -> int:
    """The number of runs of a `counted` program."""
    return len(runs.read_text().splitlines()) if runs.exists() else 0


def is_alive(pid: int) -> bool:
    """Whether a process runs. A zombie does not run."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def left_alive(pids: Path, seconds: float = 5.0) -> list[int]:
    """The processes in this file that still run after `seconds`: a killed process takes a moment to end."""
    deadline = time.monotonic() + seconds
    while (left := [pid for pid in map(int, pids.read_text().split()) if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left
