"""Runs the commands about images: in the running cacheyd, or in a cacheyd that runs as long as the command."""

import asyncio
import errno
import logging
import signal
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cacheyd.admin import client
from cacheyd.admin.client import NoServer, NotAnswering
from cacheyd.admin.control import CommandError
from cacheyd.admin.orders import Order
from cacheyd.settings.settings import ConfigError, Settings
from cacheyd.store.check import check_directory
from cacheyd.terminal.asking import set_up_log, why_unusable
from cacheyd.terminal.images import Call, UsageError
from cacheyd.terminal.layout.words import LayoutError
from cacheyd.terminal.transfer import run_export, run_import
from cacheyd.terminal.warm import run_warm

# How long the command waits for another process that has the directory: until it ends, or answers (seconds).
PATIENCE = 3.0
# How long the command's own cacheyd can take until it answers (seconds).
START_WAIT = 30.0

RUN = {"warm": run_warm, "export": run_export, "import": run_import}


class SessionError(Exception):
    """There is no cache to ask; the message says why, in one line."""


def run(args: Namespace, settings: Settings) -> int:
    """Runs `warm`, `export` or `import`. Gives the exit code."""

    def call(order: Order) -> Iterator[dict[str, Any]]:
        for reply in client.request(settings.cache_dir, order.command, order.args()):
            if value := reply.get("progress"):
                yield value

    try:
        with _cache(settings, make=args.command != "export"):
            return run_with(args, call, settings.cache_dir)
    except (SessionError, CommandError) as error:
        print(f"cacheyd: {error}", file=sys.stderr)
    except (NoServer, NotAnswering):
        print(f"cacheyd: the cacheyd that has {settings.cache_dir} does not answer", file=sys.stderr)
    except BrokenPipeError:
        raise  # Nobody reads the command's output any more.
    except OSError as error:
        print(f"cacheyd: {why_unusable(error, settings.cache_dir)}", file=sys.stderr)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 1


def run_with(args: Namespace, call: Call, root: Path) -> int:
    """Runs one of the three commands with the cache in `root`. Gives the exit code. Does not catch the errors of `call`."""
    try:
        return RUN[args.command](args, call, root)
    except UsageError as error:
        print(f"cacheyd: {error}", file=sys.stderr)
        return 2
    except LayoutError as error:
        print(f"cacheyd: {error}", file=sys.stderr)
    except BrokenPipeError:
        raise  # Nobody reads the command's output any more.
    except OSError as error:
        print(f"cacheyd: {error.filename or 'the tar file'}: {error.strerror or error}", file=sys.stderr)
    return 1


@contextmanager
def _cache(settings: Settings, *, make: bool) -> Iterator[None]:
    """A context in which a cacheyd answers on the control socket: the running one, or one that this starts and stops."""
    if client.is_served(settings.cache_dir):
        yield
        return
    if not make and not settings.cache_dir.is_dir():
        raise SessionError(f"{settings.cache_dir} does not exist")
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    with client.as_owner(settings.cache_dir):
        _check_writable(settings.cache_dir)
    from cacheyd.proxy import daemon  # noqa: F401, PLC0415 - the directory's owner perhaps cannot read the code.

    with client.as_owner(settings.cache_dir):
        own = _OwnCacheyd(settings)
        own.start()
        try:
            own.wait()
            yield
        finally:
            own.stop()


def _check_writable(directory: Path) -> None:
    """Raises OSError if a cacheyd would go on without the directory, and not answer. A full disk is no error here."""
    try:
        check_directory(directory)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise


class _OwnCacheyd(threading.Thread):
    """A cacheyd in a thread, as long as the command runs, on a free port of the loopback. No client uses the port."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="cacheyd")
        self._settings = replace(settings, host="127.0.0.1", port=0, grace=0.0, tls_cert=None, tls_key=None, client_ca=None)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._daemon: Any = None
        self._ended = threading.Event()

    def run(self) -> None:
        """Runs the cacheyd: the thread's function."""
        try:
            asyncio.run(self._serve())
        except ConfigError as error:
            print(f"cacheyd: {error}", file=sys.stderr)
        finally:
            self._ended.set()

    async def _serve(self) -> None:
        # The import of mitmproxy takes almost a second.
        from cacheyd.proxy.daemon import Daemon  # noqa: PLC0415

        set_up_log(logging.ERROR)
        self._daemon = Daemon(self._settings, lambda: self._settings, None, patience=PATIENCE)
        self._loop = asyncio.get_running_loop()
        await self._daemon.run()

    def wait(self) -> None:
        """Waits until the cacheyd answers. Raises SessionError if it does not; then the reason was printed before."""
        deadline = time.monotonic() + START_WAIT
        while not client.is_served(self._settings.cache_dir):
            if self._ended.wait(0.05) or time.monotonic() > deadline:
                raise SessionError(f"{self._settings.cache_dir} cannot be used")

    def stop(self) -> None:
        """Stops the cacheyd, and waits for its end."""
        if self._loop is not None and not self._ended.is_set():
            with suppress(RuntimeError):  # The cacheyd has just ended.
                self._loop.call_soon_threadsafe(self._daemon.stop)
        self.join()
