"""The commands about images at the terminal: through the running cacheyd, or one that runs as long as the command."""

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

from cacheyd.admin import control
from cacheyd.admin.control import CommandError, NoServer, NotAnswering
from cacheyd.settings.settings import ConfigError, Settings
from cacheyd.store.check import check_directory
from cacheyd.terminal import images
from cacheyd.terminal.tools import set_up_log, why_unusable

# A process that is about to end, or has just begun, gets so long to let go of the directory or to answer (seconds).
PATIENCE = 3.0
# A cacheyd of the command's own has to answer within this time (seconds).
START_WAIT = 30.0


class SessionError(Exception):
    """Why there is no cache to ask, in one line."""


def run(args: Namespace, settings: Settings) -> int:
    """Runs `warm`, `export` or `import`; the exit code."""

    def call(command: str, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for reply in control.request(settings.cache_dir, command, options):
            if value := reply.get("progress"):
                yield value

    try:
        with _cache(settings, make=args.command != "export"):
            return images.run(args, call, settings.cache_dir)
    except (SessionError, CommandError) as error:
        print(f"cacheyd: {error}", file=sys.stderr)
    except (NoServer, NotAnswering):
        print(f"cacheyd: the cacheyd that has {settings.cache_dir} does not answer", file=sys.stderr)
    except BrokenPipeError:
        raise  # Nobody reads what it prints.
    except OSError as error:
        print(f"cacheyd: {why_unusable(error, settings.cache_dir)}", file=sys.stderr)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 1


@contextmanager
def _cache(settings: Settings, *, make: bool) -> Iterator[None]:
    """Somebody who answers on the control socket meanwhile."""
    if control.is_served(settings.cache_dir):
        yield
        return
    if not make and not settings.cache_dir.is_dir():
        raise SessionError(f"{settings.cache_dir} does not exist")
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    with control.as_owner(settings.cache_dir):
        _check_writable(settings.cache_dir)
    from cacheyd.proxy import daemon  # noqa: F401, PLC0415 - the directory's owner need not be able to read the code.

    with control.as_owner(settings.cache_dir):
        own = _Own(settings)
        own.start()
        try:
            own.wait()
            yield
        finally:
            own.stop()


def _check_writable(directory: Path) -> None:
    """Raises OSError where a cacheyd would go on without the directory, and answer nobody. A full disk may get room."""
    try:
        check_directory(directory)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise


class _Own(threading.Thread):
    """A cacheyd on a free port of the loopback: transfers need all of it but the clients."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="cacheyd")
        self._settings = replace(settings, host="127.0.0.1", port=0, grace=0.0, tls_cert=None, tls_key=None, client_ca=None)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._daemon: Any = None
        self._ended = threading.Event()

    def run(self) -> None:
        """The thread."""
        try:
            asyncio.run(self._serve())
        except ConfigError as error:
            print(f"cacheyd: {error}", file=sys.stderr)
        finally:
            self._ended.set()

    async def _serve(self) -> None:
        # mitmproxy takes most of a second to import.
        from cacheyd.proxy.daemon import Daemon  # noqa: PLC0415

        set_up_log(logging.ERROR)
        self._daemon = Daemon(self._settings, lambda: self._settings, None, patience=PATIENCE)
        self._loop = asyncio.get_running_loop()
        await self._daemon.run()

    def wait(self) -> None:
        """Until it answers. Raises SessionError, after it has said why, if it does not."""
        deadline = time.monotonic() + START_WAIT
        while not control.is_served(self._settings.cache_dir):
            if self._ended.wait(0.05) or time.monotonic() > deadline:
                raise SessionError(f"{self._settings.cache_dir} cannot be used")

    def stop(self) -> None:
        """Ends it, and waits for that."""
        if self._loop is not None and not self._ended.is_set():
            with suppress(RuntimeError):  # It has just ended.
                self._loop.call_soon_threadsafe(self._daemon.stop)
        self.join()
