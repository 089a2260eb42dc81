"""Clients on raw sockets: slow ones, rude ones, and ones that see exactly how an answer ends."""

import contextlib
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

MAX_HEAD = 64 << 10
PATIENCE = 5.0


class End(StrEnum):
    """How an answer ended."""

    COMPLETE = "complete"
    """It has the length that it announced, or its last chunk."""
    FIN = "fin"
    """The connection was closed in an orderly way before that, or to end a body without a length."""
    RST = "rst"
    """The connection was reset before that."""


@dataclass(frozen=True)
class Head:
    """The head of an answer; header names in lower case."""

    status: int
    headers: tuple[tuple[str, str], ...]
    raw: bytes = b""

    def header(self, name: str) -> str | None:
        """The value of a header that may be there once."""
        values = [value for key, value in self.headers if key == name.lower()]
        assert len(values) < 2, f"{name} twice: {values}"
        return values[0] if values else None

    @property
    def length(self) -> int:
        """Content-Length, which must be there."""
        value = self.header("Content-Length")
        assert value is not None, self.headers
        return int(value)

    @property
    def cache(self) -> str | None:
        """X-Cache."""
        return self.header("X-Cache")


@dataclass(frozen=True)
class Reply(Head):
    """A head, what came of the body, and how it ended."""

    body: bytes = b""
    end: End = End.COMPLETE


class ClosedError(Exception):
    """The connection ended where a head was to come."""

    def __init__(self, end: End, had: bytes) -> None:
        super().__init__(f"{end} after {had!r}")
        self.end = end
        self.had = had


class Client:
    """One connection to the cache. Everything on it has a deadline: a hang is a TimeoutError."""

    def __init__(self, port: int, *, patience: float = PATIENCE, receive_buffer: int | None = None) -> None:
        self.sock = socket.socket()
        if receive_buffer is not None:  # Before connecting: it decides the window.
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(patience)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        self._end: End | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.sock.close()

    # Sending

    def send(self, data: bytes) -> None:
        """Sends these bytes; a server that has closed already is no error, its answer may be read all the same."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(data)

    def ask(self, target: str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> None:
        """Sends a request without a body."""
        self.send(request(target, headers, method=method))

    def finish_sending(self) -> None:
        """FIN towards the server; its answer may still come."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def leave(self, *, reset: bool = False) -> None:
        """Closes in the middle of whatever there is."""
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # Receiving

    def _fill(self) -> bool:
        """Takes what has come; False at the end of the connection."""
        if self._end is None:
            try:
                data = self.sock.recv(1 << 20)
            except (ConnectionResetError, BrokenPipeError):
                self._end = End.RST
            else:
                self._buffer += data
                if not data:
                    self._end = End.FIN
        return self._end is None

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _until(self, mark: bytes) -> bytes:
        """Up to and with `mark`; raises ClosedError."""
        start = 0
        while (at := self._buffer.find(mark, start)) < 0:
            start = max(0, len(self._buffer) - len(mark))
            if not self._fill():
                assert self._end is not None
                raise ClosedError(self._end, bytes(self._buffer))
        return self._take(at + len(mark))

    def read(self, size: int) -> bytes:
        """Exactly so many bytes, fewer only at the end of the connection."""
        while len(self._buffer) < size and self._fill():
            pass
        return self._take(size)

    def rest(self) -> tuple[bytes, End]:
        """Everything until the connection ends, and how it ended."""
        while self._fill():
            pass
        assert self._end is not None
        return self._take(len(self._buffer)), self._end

    def read_head(self) -> Head:
        """The next head, checked for its form; raises ClosedError."""
        return parse_head(self._until(b"\r\n\r\n"))

    def read_reply(self, *, method: str = "GET") -> Reply:
        """The next whole answer; raises ClosedError if there is no head."""
        return self.read_body(self.read_head(), method=method)

    def read_body(self, head: Head, *, method: str = "GET") -> Reply:
        """The body that belongs to this head (RFC 9112 section 6.3)."""
        if method == "HEAD" or head.status in (204, 304):
            return Reply(head.status, head.headers, head.raw)
        if (head.header("Transfer-Encoding") or "").lower() == "chunked":
            body, end = self._chunks()
        elif head.header("Content-Length") is not None:
            body = self.read(head.length)
            end = End.COMPLETE if len(body) == head.length else self.rest()[1]
        else:
            body, end = self.rest()
        return Reply(head.status, head.headers, head.raw, body, end)

    def _chunks(self) -> tuple[bytes, End]:
        body = bytearray()
        try:
            while size := int(self._until(b"\r\n").split(b";")[0], 16):
                body += self.read(size)
                self._until(b"\r\n")
            while self._until(b"\r\n") != b"\r\n":
                pass
        except ClosedError as error:
            return bytes(body), error.end
        return bytes(body), End.COMPLETE

    def exchange(self, target: str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Reply:
        """A request and its whole answer."""
        self.ask(target, headers, method=method)
        return self.read_reply(method=method)


def request(target: str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> bytes:
    """The bytes of a request without a body."""
    lines = [f"{method} {target} HTTP/1.1", "Host: cache.test", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def parse_head(raw: bytes) -> Head:
    """A response head with its empty line; AssertionError if a strict client would refuse it."""
    lines = raw.removesuffix(b"\r\n\r\n").split(b"\r\n")
    version, status, reason = lines[0].split(b" ", 2)
    assert version == b"HTTP/1.1", lines[0]
    assert len(status) == 3, lines[0]
    assert reason, lines[0]
    headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        assert colon, line
        assert name == name.strip(), line
        assert name, line
        headers.append((name.decode("ascii").lower(), value.strip().decode("latin-1")))
    head = Head(int(status), tuple(headers), raw)
    assert not (head.header("Content-Length") and head.header("Transfer-Encoding")), raw
    return head


def get(
    port: int, target: str, headers: Mapping[str, str] | None = None, *, method: str = "GET", patience: float = PATIENCE
) -> Reply:
    """One request on a connection of its own."""
    with Client(port, patience=patience) as client:
        return client.exchange(target, headers, method=method)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    @classmethod
    @contextlib.contextmanager
    def started(cls) -> Iterator[Self]:
        """One for a `with` block."""
        yield cls()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started
