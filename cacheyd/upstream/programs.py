"""Runs programs that give logins, and checks their answers.

A program runs without a shell, in its own session, with this process's environment. Logins are `user:password`.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from cacheyd.protocol.bounded_json import parse_object

# The most bytes that a program can write to standard output, and the most bytes of its errors that cacheyd reads.
OUTPUT_MAX, ERRORS_MAX = 64 << 10, 4 << 10
# The most characters of a login.
LOGIN_MAX = 16 << 10
# How long one run can take, and how long cacheyd waits after its end for output that a child still holds open (seconds).
DEADLINE, LINGER = 10.0, 0.5
# The most characters of a program's errors that are searched for secrets, and the most that go into the log.
_LOOKED_AT, _SAID = 1000, 300
# Words before a secret, with the secret; words that are long enough to be a secret.
_NAMED = re.compile(
    r"""(?i)((?:pass\w*|pwd|secret\w*|token\w*|key\w*|auth\w*|credential\w*)["']?[:=] ?(?:(?:bearer|basic) )?"""
    r"""|(?:password|passwd|pwd|secret|token|key|bearer|basic) (?:(?:password|secret|token|key|is|was) )*)\S+"""
)
_LONG = re.compile(r"[A-Za-z0-9+/=_.~-]{20,}")
_USER_INFO = re.compile(r"//[^/@\s]*@")
_SECRET_NAMES = ("PASS", "SECRET", "TOKEN", "KEY", "AUTH", "CREDENTIAL")


class HelperError(Exception):
    """A program or a file gave no login. The message is one line without secrets."""


def find(program: str) -> str | None:
    """The path of a program, from PATH if `program` is a bare name; None if there is none."""
    return shutil.which(program)


async def run(argv: Sequence[str], data: bytes, deadline: float = DEADLINE) -> bytes:
    """Runs a program with `data` as its input; returns its output. Raises HelperError.

    If the program takes longer than `deadline` seconds, writes more than 64 KiB or fails, kills it with its children.
    """
    name = os.path.basename(argv[0])
    path = find(argv[0])
    if path is None:
        raise HelperError(f"{name} cannot be found, or is not executable")
    loop = asyncio.get_running_loop()
    try:
        transport, program = await loop.subprocess_exec(partial(_Program, name), path, *argv[1:], start_new_session=True)
    except (OSError, ValueError) as error:
        raise HelperError(f"{name} cannot be run: {getattr(error, 'strerror', None) or error}") from None
    ok = False
    try:
        stdin = cast(asyncio.WriteTransport, transport.get_pipe_transport(0))
        stdin.write(data)
        stdin.close()
        async with asyncio.timeout(deadline):
            await program.ended
        code = transport.get_returncode()
        if code:
            said = clean(program.errors, program.output) or clean(program.output)
            raise HelperError(f"{name} failed: {_status(code)}{f': {said}' if said else ''}")
        ok = True
        return bytes(program.output)
    except TimeoutError:
        said = clean(program.errors, program.output)
        raise HelperError(f"{name} did not end within {deadline:g} s{f': {said}' if said else ''}") from None
    finally:
        if not ok:
            await _kill(transport.get_pid(), program.exited)
        transport.close()


async def _kill(pid: int, exited: asyncio.Event) -> None:
    """Kills a program and its children, and waits for its end: otherwise `close` would take its exit status first."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            await exited.wait()


def _status(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"status {code}"


class _Program(asyncio.SubprocessProtocol):
    """Collects the output of a program. `ended` is done when the program has ended, and fails if it writes too much."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.output, self.errors = bytearray(), bytearray()
        self.exited = asyncio.Event()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd != 1:
            self.errors += data[: ERRORS_MAX - len(self.errors)]
        elif len(self.output) + len(data) <= OUTPUT_MAX:
            self.output += data
        elif not self.ended.done():
            self.ended.set_exception(HelperError(f"{self._name} wrote more than {OUTPUT_MAX >> 10} KiB"))

    def process_exited(self) -> None:
        self.exited.set()
        # An agent that the program started can hold the output open forever.
        asyncio.get_running_loop().call_later(LINGER, self._end)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


def clean(said: bytes | bytearray, secret: bytes | bytearray = b"") -> str:
    """The beginning of a program's output as one line, without possible secrets: words of its answer (`secret`), values of
    secrets in the environment, words after a word such as `password`, and long words.
    """
    text = " ".join(bytes(said).decode("utf-8", "replace").split())
    text = "".join(char if char.isprintable() else "?" for char in text)
    hidden = {value for name, value in os.environ.items() if any(word in name.upper() for word in _SECRET_NAMES)}
    hidden.update(re.split(r'[\s"\',:{}\[\]]+', bytes(secret).decode("utf-8", "replace")))
    for value in sorted((value for value in hidden if len(value) > 3), key=len, reverse=True):
        text = text.replace(value, "…")
    text = _USER_INFO.sub("//…@", text)
    text = _NAMED.sub(r"\1…", text[:_LOOKED_AT])
    return _LONG.sub("…", text)[:_SAID]


def parse_answer(name: str, output: bytes) -> dict[str, Any]:
    """The JSON object that a program wrote. Raises HelperError."""
    try:
        return parse_object(output)
    except ValueError as error:
        raise HelperError(f"{name}: its answer is {error}") from None


def checked_login(name: str, username: object, password: object) -> str:
    """The login of a name and a password; empty if both are empty. `name` is the name of the program, for errors.

    Raises HelperError, also for a line break, or a colon in the username: either would make another login.
    """
    if not (isinstance(username, str) and isinstance(password, str)):
        raise HelperError(f"{name}: its answer has no name and password")
    login = f"{username}:{password}"
    if ":" in username or len(login) > LOGIN_MAX or any(ord(char) < 32 or 0xD800 <= ord(char) < 0xE000 for char in login):
        raise HelperError(f"{name}: its answer has a name or a password that cannot be sent")
    return login if login != ":" else ""
