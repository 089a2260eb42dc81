"""The server's side of the control socket: keeps the socket in the cache directory, and runs the command of each request."""

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from cacheyd.admin.control import NAME, CommandError, Reply, closable, encoded, short_path

log = logging.getLogger(__name__)

type Runner = Callable[[str, dict[str, Any]], AsyncIterator[Reply]]

# The longest request (bytes), how long a request can take to come, and how often the server looks for its socket (seconds).
REQUEST_MAX, REQUEST_WAIT, LOOK_EVERY = 1 << 20, 10.0, 2.0

_BACKLOG = 16

_ANSWERING = b'{"progress": {}}\n'


class ControlServer:
    """Answers on the socket. `run` runs a command; `is_ours` says whether this process has the cache directory."""

    def __init__(self, directory: Path, run: Runner, is_ours: Callable[[], bool] = lambda: True) -> None:
        self._directory = directory
        self._run = run
        self._is_ours = is_ours
        self._server: asyncio.Server | None = None
        self._file: tuple[int, int] | None = None
        self._failing = False
        self._keeping: asyncio.Task[None] | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listens, and makes the socket again if it is removed. Raises nothing: the cache also works without the socket."""
        await self.ensure()
        self._keeping = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await self.ensure()

    async def ensure(self) -> None:
        """Makes the socket if it is missing: somebody can wipe the directory at any time."""
        if not self._is_ours() or (self._file is not None and self._identify() == self._file):
            return
        try:
            await self._listen()
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.warning("no tools can be used beside this process: %s: %s", self._path(), error.strerror or error)
            self._failing = True

    async def _listen(self) -> None:
        """Makes a new socket in place of an old file, for example the socket of a killed process. Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The mode is set before the socket has a name, so that no other user can connect before.
            os.fchmod(listener.fileno(), 0o600)
            with short_path(self._directory) as directory:
                new = f"{directory}/.{NAME}.{os.getpid()}"
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(new)
                listener.bind(new)
                status = os.stat(new)
                os.rename(new, f"{directory}/{NAME}")
                server = await asyncio.start_unix_server(self._connected, sock=listener, limit=REQUEST_MAX, backlog=_BACKLOG)
        except BaseException:
            listener.close()
            raise
        if self._server is not None:
            self._server.close()
        self._server, self._file = server, (status.st_dev, status.st_ino)

    def _path(self) -> Path:
        return self._directory / NAME

    def _identify(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._path())
        except OSError:
            return None
        return status.st_dev, status.st_ino

    async def close(self) -> None:
        """Removes the socket, and ends the running commands."""
        if self._keeping is not None:
            self._keeping.cancel()
        if self._server is not None:
            self._server.close()
        if self._file is not None and self._identify() == self._file:
            with contextlib.suppress(OSError):
                os.unlink(self._path())
        self._file = None
        for client in self._clients:
            client.cancel()
        tasks = [*self._clients, *([self._keeping] if self._keeping else [])]
        await asyncio.gather(*tasks, return_exceptions=True)

    # Connections

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            await self._serve(reader, writer)
        except ConnectionError:
            pass  # The client has left.
        except asyncio.CancelledError:
            pass  # The server is closing. The callback of asyncio's streams would report this as an error.
        except Exception:
            log.exception("the control socket failed")
        finally:
            self._clients.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_ANSWERING)
        try:
            async with asyncio.timeout(REQUEST_WAIT):
                line = await reader.readline()
            command, args = _parse_request(line)
        except TimeoutError:
            return
        except ValueError as error:
            writer.write(encoded({"error": f"not a request: {error}"}))
            await writer.drain()
            return
        work = asyncio.create_task(self._answer(command, args, writer))
        left = asyncio.create_task(_hang_up(reader))
        try:
            await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            left.cancel()
            await asyncio.gather(work, left, return_exceptions=True)

    async def _answer(self, command: str, args: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        try:
            async with contextlib.aclosing(closable(self._run(command, args))) as replies:
                async for reply in replies:
                    writer.write(encoded(reply))
                    await writer.drain()
        except CommandError as error:
            writer.write(encoded({"error": str(error)}))
        except ConnectionError:
            return
        except Exception:
            log.exception("the command %r failed", command)
            writer.write(encoded({"error": f"{command} failed; the log of the running cacheyd says why"}))
        with contextlib.suppress(ConnectionError):
            await writer.drain()


async def _hang_up(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(1 << 16):
            pass


def _parse_request(line: bytes) -> tuple[str, dict[str, Any]]:
    try:
        request = json.loads(line)
    except RecursionError:
        raise ValueError("too deep") from None
    if not isinstance(request, dict):
        raise ValueError("expected an object")
    command, args = request.get("command"), request.get("args", {})
    if not isinstance(command, str) or not isinstance(args, dict):
        raise ValueError("expected a command and its args")
    return command, args
