"""Real processes for tests: loopback only, logs in files, ended by their pid, gone when the test run is gone."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

STOP_SECONDS = 25.0


class StartError(Exception):
    """A process did not come up; carries the end of its log."""


def find(program: str) -> str | None:
    """The path of `program`; daemons live in /usr/sbin, which is not on everybody's PATH."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin")


def program(name: str) -> str:
    """Like `find`, for one that a fixture has checked already."""
    path = find(name)
    assert path, f"{name} is not installed"
    return path


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def listening(port: int) -> bool:
    """Whether somebody accepts connections on this loopback port."""
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def tail(path: Path, size: int = 4000) -> str:
    """The last `size` bytes of a log."""
    if not path.is_file():
        return ""
    return path.read_bytes()[-size:].decode("utf-8", "replace")


def wait_until(check: Callable[[], bool], what: str, *, seconds: float = 20.0) -> None:
    """Polls `check`; raises TimeoutError that says `what` did not come."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.02)


class Process:
    """One running program. A context manager: leaving it ends the program."""

    def __init__(self, argv: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.argv, self.log_file = list(argv), log
        # The kernel ends it when the test run is killed and no fixture is left to do so. The pid stays: setpriv execs.
        guard = [setpriv, "--pdeathsig", "KILL"] if (setpriv := shutil.which("setpriv")) else []
        with log.open("ab") as out:
            self._popen = subprocess.Popen(
                [*guard, *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=log.parent,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def wait_ready(self, check: Callable[[], bool], *, seconds: float = 20.0) -> None:
        """Until `check` holds; ends the program and raises StartError with its log if it does not come up."""

        def up() -> bool:
            if not self.running:
                raise StartError(f"{self.argv[0]} ended with {self._popen.returncode}:\n{tail(self.log_file)}")
            return check()

        try:
            wait_until(up, f"{self.argv[0]} is ready", seconds=seconds)
        except TimeoutError as error:
            self.kill()
            raise StartError(f"{error}:\n{tail(self.log_file)}") from None

    def wait(self, seconds: float) -> int:
        """Its exit code, when it ends by itself; SIGKILL and TimeoutExpired if it does not."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM, and its exit code; SIGKILL if it takes longer than `seconds`."""
        if self.running:
            self._popen.send_signal(signal.SIGTERM)
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL, and its exit code."""
        self._popen.kill()
        return self._popen.wait()


class Service:
    """A server that is a `Process`, can be started again, and ends with its `with` block."""

    process: Process

    def start(self) -> None:
        raise NotImplementedError

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.running

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        return self.process.stop()

    def kill(self) -> int:
        """SIGKILL; the exit code."""
        return self.process.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def log(self) -> str:
        """All that it has written so far."""
        return self.process.log_file.read_text("utf-8", "replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
