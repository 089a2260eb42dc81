"""Readers of bodies: the interface of all readers, and the readers of stored objects."""

import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

from cacheyd.protocol.ranges import Part
from cacheyd.store.mapped import Mapped

# Large bodies are sent in windows of this size (bytes); each complete window has one mapping for all its readers.
WINDOW = 4 << 20


class BodyBroken(Exception):
    """A body that cannot go on: cacheyd closes the client's connection before Content-Length is reached."""


class Source(Protocol):
    """A body that is read piece by piece, from a stored object or a flight."""

    async def read(self) -> bytes | memoryview:
        """The next piece, empty at the end. Raises BodyBroken."""

    def close(self) -> None:
        """Ends the reading."""


class MappedReader:
    """Reads part of a stored object in windows of its shared mapping. Calls `on_broken` if the file cannot be read."""

    def __init__(self, mapped: Mapped, start: int, end: int, on_broken: Callable[[], None] = lambda: None) -> None:
        self._mapped = mapped
        self._at = start
        self._end = end
        self._on_broken = on_broken
        self._first: memoryview | None = None

    def begin(self) -> bool:
        """Whether the first window can be read, so that a head may promise the body."""
        try:
            self._first = self.take()
        except BodyBroken:
            return False
        return True

    async def read(self) -> bytes | memoryview:
        """The next window, empty at the end."""
        return self.take()

    def take(self) -> memoryview:
        """The next window, empty at the end. Raises BodyBroken."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        start, self._at = self._at, min(self._end, self._at + WINDOW)
        try:
            return self._mapped.view(start, self._at)
        except OSError as error:
            self._on_broken()
            raise BodyBroken(f"the file cannot be read: {error.strerror}") from error

    def close(self) -> None:
        """Does nothing: views keep the mapping."""


class MultipartReader:
    """Reads several parts of a stored object as multipart/byteranges (RFC 9110 section 14.6)."""

    def __init__(
        self, view: Callable[[int, int], bytes | memoryview], parts: Sequence[Part], size: int, content_type: str
    ) -> None:
        self.boundary = secrets.token_hex(16)
        head = f"--{self.boundary}\r\nContent-Type: {content_type}\r\nContent-Range: "
        self._pieces: list[bytes | Part] = []
        for part in parts:
            self._pieces += [f"{head}{part.content_range(size)}\r\n\r\n".encode(), part, b"\r\n"]
        self._pieces.append(f"--{self.boundary}--\r\n".encode())
        self._pieces.reverse()
        self._view = view
        self.length = sum(piece.length if isinstance(piece, Part) else len(piece) for piece in self._pieces)

    async def read(self) -> bytes | memoryview:
        """The next piece, empty at the end."""
        if not self._pieces:
            return b""
        piece = self._pieces.pop()
        if isinstance(piece, bytes):
            return piece
        end = min(piece.end, piece.start + WINDOW)
        if end < piece.end:
            self._pieces.append(Part(end, piece.end))
        return self._view(piece.start, end)

    def close(self) -> None:
        """Does nothing: views keep the mapping."""
