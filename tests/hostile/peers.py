"""Peers that mean harm, on raw sockets, and what they cost the daemon: anonymous memory, and stalls of its event loop."""

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.faults.client import Client, request
from tests.faults.daemon import Daemon

MIB = 1 << 20
# What cacheyd waits for at most in these tests, so that none of them hangs (seconds).
PATIENCE = 20.0

type Handler = Callable[[socket.socket, bytes], None]


class RawOrigin:
    """Whatever `handler` writes: it gets each request's connection and head, in a thread of the connection.

    The connection is closed when the handler returns, unless it returns after `keep` was called for it.
    """

    def __init__(self, handler: Handler, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self._handler = handler
        self._host = host
        self._tls = tls
        self.heads: list[bytes] = []
        self.stopping = threading.Event()
        self._listener = socket.create_server((host, 0), backlog=1024)
        self._connections: list[socket.socket] = []
        self._lock = threading.Lock()
        self.port: int = self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"{'https' if self._tls else 'http'}://{self._host}:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stopping.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, ssl.SSLError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with self._lock:
                self._connections.append(connection)
            buffer = b""
            while b"\r\n\r\n" not in buffer:
                data = connection.recv(1 << 16)
                if not data:
                    return
                buffer += data
            self.heads.append(buffer)
            self._handler(connection, buffer)
        with suppress(OSError):
            connection.close()

    def drip(self, connection: socket.socket, piece: bytes, every: float, *, count: int = 1 << 30) -> None:
        """Sends the piece again and again, until the peer or the test has enough."""
        for _ in range(count):
            connection.sendall(piece)
            if self.stopping.wait(every):
                return


def head(status: int = 200, *fields: str, reason: str = "OK") -> bytes:
    """The bytes of a response head."""
    return "\r\n".join((f"HTTP/1.1 {status} {reason}", *fields, "", "")).encode("latin-1")


def whole(body: bytes, *fields: str, status: int = 200) -> bytes:
    """A whole response, after which the connection closes."""
    return head(status, f"Content-Length: {len(body)}", "Connection: close", *fields) + body


def rss_anon(pid: int) -> int:
    """Anonymous memory of a process in bytes: what it costs a pod, mapped files left out."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


class Watch:
    """The most anonymous memory (bytes), and the event loop's longest stall (seconds), while its `with` block runs."""

    def __init__(self, daemon: Daemon, *, stalls: bool = True) -> None:
        self._daemon = daemon
        self._ended = threading.Event()
        self._measures = [self._measure_memory, *([self._measure_stalls] if stalls else [])]
        self._threads: list[threading.Thread] = []
        self.before = 0
        self.peak = 0
        self.stall = 0.0
        self.error: Exception | None = None

    @property
    def grown(self) -> int:
        """How much the peak is above what it was before (bytes)."""
        return self.peak - self.before

    def __enter__(self) -> Self:
        self.before = self.peak = rss_anon(self._daemon.pid)
        self._threads = [threading.Thread(target=measure, daemon=True) for measure in self._measures]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE + 5)
        if self.error is not None and error is None:
            raise self.error

    def _measure_memory(self) -> None:
        with suppress(OSError, AssertionError):
            while True:
                self.peak = max(self.peak, rss_anon(self._daemon.pid))
                if self._ended.wait(0.01):
                    return

    def _measure_stalls(self) -> None:
        try:
            with Client(self._daemon.port, patience=PATIENCE) as client:
                while not self._ended.wait(0.005):
                    started = time.monotonic()
                    reply = client.exchange("/healthz")
                    assert reply.status == 200, reply
                    self.stall = max(self.stall, time.monotonic() - started)
        except Exception as error:
            self.error = error


@contextmanager
def leaving(daemon: Daemon, target: str, *, method: str = "GET") -> Iterator[Client]:
    """A client that asks and goes away without reading."""
    with Client(daemon.port, patience=PATIENCE) as client:
        client.send(request(target, method=method))
        yield client
