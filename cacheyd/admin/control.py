"""The control socket: a Unix socket in the cache directory by which the tools talk to the process that has it.

A line of JSON asks: `{"command": "ls", "args": {...}}`. Lines of JSON answer: any number of `{"progress": {...}}` and
`{"rows": [...]}`, the first one at once, then one `{"result": {...}}` or `{"error": "text"}`. One request per connection.
Whoever may write to the socket's file (mode 0600) may do everything.
"""

import contextlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

NAME = "control.sock"


class Reply(TypedDict, total=False):
    """One line of an answer: it has one of these members."""

    progress: Any
    rows: Sequence[Any]
    result: Any
    error: str


class CommandError(Exception):
    """A command that cannot be carried out, in one line for people."""


@contextlib.contextmanager
def short_path(directory: Path) -> Iterator[str]:
    """The directory by a name short enough for a socket: its address has room for 107 bytes (unix(7))."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


async def closable[T](replies: AsyncIterator[T]) -> AsyncGenerator[T]:
    """The same replies. Closing this ends the generator behind them at once, and not some time later."""
    try:
        async for reply in replies:
            yield reply
    finally:
        if isinstance(replies, AsyncGenerator):
            await replies.aclose()


def encoded(line: Reply | Mapping[str, Any]) -> bytes:
    """A request or a reply as it goes over the socket."""
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"
