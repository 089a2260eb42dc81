"""The control socket: a Unix socket in the cache directory. By it, the tools talk to the process that has the directory.

The request is a line of JSON: `{"command": "ls", "args": {...}}`. The answer is lines of JSON: any number of
`{"progress": {...}}` and `{"rows": [...]}`, the first line at once, then one `{"result": {...}}` or `{"error": "text"}`. There
is one request per connection. A user who can write to the socket's file (mode 0600) can use all commands.
"""

import contextlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

NAME = "control.sock"


class Reply(TypedDict, total=False):
    """One line of an answer, with one of these members."""

    progress: Any
    rows: Sequence[Any]
    result: Any
    error: str


class CommandError(Exception):
    """A command cannot be carried out; the message is one line for people."""


@contextlib.contextmanager
def short_path(directory: Path) -> Iterator[str]:
    """A context with a short path to the directory: the address of a socket has room for 107 bytes (unix(7))."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


async def closable[T](replies: AsyncIterator[T]) -> AsyncGenerator[T]:
    """Gives the same replies. If the caller closes this generator, the generator behind it ends at once, and not later."""
    try:
        async for reply in replies:
            yield reply
    finally:
        if isinstance(replies, AsyncGenerator):
            await replies.aclose()


def encoded(line: Reply | Mapping[str, Any]) -> bytes:
    """The bytes of a request or a reply on the socket."""
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"
