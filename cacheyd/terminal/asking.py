"""Runs the work of a tool: in the running cacheyd, or in the tool's own process."""

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from cacheyd.admin import client, control
from cacheyd.admin.client import NoServer, NotAnswering
from cacheyd.admin.control import Reply
from cacheyd.admin.orders import Order
from cacheyd.settings.settings import Settings

# How long a tool waits until a process that has just taken the directory makes its socket (seconds).
SOCKET_WAIT = 3.0

# The names in a directory that cacheyd has used: one of them is enough.
_TRACES = ("oci-layout", "blobs", "index", "lock")

type Consumer = Callable[[Reply], None]


class ToolError(Exception):
    """A tool cannot do its work; the message says why, in one line."""


def carry_out(settings: Settings, order: Order, consume: Consumer) -> None:
    """Runs an order, in the cacheyd that has the directory or in this process. Raises ToolError, CommandError."""
    directory = settings.cache_dir
    try:
        _check_directory(directory)
        _ask_or_do(settings, order, consume)
    except BrokenPipeError:
        raise  # Nobody reads the tool's output any more.
    except OSError as error:
        raise ToolError(why_unusable(error, directory)) from None


def why_unusable(error: OSError, directory: Path) -> str:
    """The reason why a tool cannot use a directory, in one line."""
    where = error.filename or directory
    if error.errno == errno.EROFS:
        return f"nothing can be written to {where} (read-only file system), and no cacheyd that runs answers there"
    if isinstance(error, PermissionError):
        return f"no permission for {where}: run this as the user that cacheyd runs as"
    return f"{where}: {error.strerror or error}"


def _check_directory(directory: Path) -> None:
    """Raises ToolError if the directory is not a cache's: the store would make any directory into a cache."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        raise ToolError(f"there is no directory {directory}") from None
    if names and not {*_TRACES, control.NAME}.intersection(names):
        raise ToolError(f"{directory} is not the directory of a cache")


def _ask_or_do(settings: Settings, order: Order, consume: Consumer) -> None:
    from cacheyd.store.lock import DirectoryInUse  # noqa: PLC0415

    directory, deadline = settings.cache_dir, time.monotonic() + SOCKET_WAIT
    while True:
        try:
            for reply in client.request(directory, order.command, order.args()):
                consume(reply)
            return
        except NoServer:
            pass
        except NotAnswering:
            raise ToolError(f"{_holder(directory)} does not answer on {directory / control.NAME}") from None
        from cacheyd.admin import commands  # noqa: F401, PLC0415 - the directory's owner perhaps cannot read the code.

        try:
            with client.as_owner(directory):
                asyncio.run(_do(settings, order, consume))
            return
        except DirectoryInUse as error:
            if time.monotonic() > deadline:
                raise ToolError(f"{error}, which does not answer on {directory / control.NAME}") from None
        time.sleep(0.1)


def _holder(directory: Path) -> str:
    try:
        return f"the cacheyd that has {directory} (process {int((directory / 'lock').read_text())})"
    except (OSError, ValueError):
        return f"the cacheyd that has {directory}"


async def _do(settings: Settings, order: Order, consume: Consumer) -> None:
    """Runs the order in this process, which has the directory during this time."""
    from cacheyd.admin.commands import Commands  # noqa: PLC0415
    from cacheyd.store.store import Store  # noqa: PLC0415

    _check_access(settings.cache_dir)
    set_up_log()
    store = Store(settings.cache_dir, settings)
    await store.start(background=False)
    try:
        if not store.upkeep.watch.lock.is_held():
            raise ToolError(f"{settings.cache_dir} cannot be locked")
        async with contextlib.aclosing(control.closable(Commands(store).run(order.command, order.args()))) as replies:
            async for reply in replies:
                consume(reply)
    finally:
        await store.stop()


def _check_access(directory: Path) -> None:
    """Raises OSError if this process cannot write the directory: the store would go on without it, and the tool do nothing."""
    for path in (directory, *(directory / name for name in ("blobs", "blobs/sha256", "index", "index/cache.db", "lock"))):
        mode = os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)
        if path.exists() and not os.access(path, mode):
            number = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(number, os.strerror(number), str(path))


def set_up_log(level: int = logging.NOTSET) -> None:
    """Sends the log of a tool's process to the terminal."""
    handler = logging.StreamHandler()
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter("cacheyd: %(message)s"))
    logging.getLogger().handlers[:] = [handler]
