"""The client's side of the control socket: by it, a tool reaches the cacheyd that has the cache directory."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from cacheyd.admin.control import NAME, CommandError, Reply, encoded, short_path
from cacheyd.admin.orders import Args

# How long a client waits for the first line of an answer (seconds): the server sends this line before any work.
ANSWER_WAIT = 10.0


class NoServer(Exception):
    """No process listens on the socket."""


class NotAnswering(Exception):
    """A process listens on the socket, but does not answer, or stopped in the middle of its answer."""


@contextlib.contextmanager
def as_owner(directory: Path) -> Iterator[None]:
    """A context in which root works as the directory's owner, as cacheyd could not write root's files. Raises OSError."""
    status = directory.stat()
    if os.geteuid() != 0 or not status.st_uid:
        yield
        return
    group = os.getegid()
    os.setegid(status.st_gid)
    try:
        os.seteuid(status.st_uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


def is_served(directory: Path) -> bool:
    """Whether a process listens on the directory's socket. Raises PermissionError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_WAIT)
        try:
            with short_path(directory) as short:
                connection.connect(f"{short}/{NAME}")
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return False
        except (TimeoutError, BlockingIOError, ConnectionError):
            return True  # A process listens, but is too busy to accept.
    return True


def request(directory: Path, command: str, args: Args, *, wait: float = ANSWER_WAIT) -> Iterator[Reply]:
    """Sends a command to the process that has the directory, and gives its replies. Blocks between replies.

    Waits `wait` seconds for the first reply. Raises NoServer, NotAnswering, PermissionError and CommandError.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(wait)
        try:
            with short_path(directory) as short:
                connection.connect(f"{short}/{NAME}")
            connection.sendall(encoded({"command": command, "args": args}))
            with connection.makefile("rb") as lines:
                first = _read_reply(lines.readline())
                connection.settimeout(None)
                yield first
                while True:
                    yield (reply := _read_reply(lines.readline()))
                    if "result" in reply:
                        return
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise NoServer from None
        except (TimeoutError, BlockingIOError, ConnectionError):
            raise NotAnswering from None


def _read_reply(line: bytes) -> Reply:
    try:
        reply = json.loads(line)
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        raise NotAnswering
    if "error" in reply:
        raise CommandError(str(reply["error"]))
    return cast(Reply, reply)
