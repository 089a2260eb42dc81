"""Decodes content codings (RFC 9110 section 8.4.1) piece by piece: some upstreams compress although nobody asked for it.

It knows gzip, x-gzip, deflate (with zlib's frame as RFC 1950 has it, or bare) and zstd (RFC 8878). A body has one of them.
"""

import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import zstandard

from cacheyd.protocol.headers import HeaderList

# How many codings a body may have, one inside the other. Each one multiplies what an attacker's byte costs; nobody sends two.
MAX_CODINGS = 1
# The most that is decoded at once: the largest zstd block. And how much input is looked at at once (bytes).
PIECE, LOOK = 128 << 10, 64 << 10
# A decoded body has at most so many times the bytes that came, and this many more (bytes). Layers have ten times as many.
EXPANSION, SLACK = 200, 1 << 20
# The window of a zstd frame (bytes), as RFC 9659 has it for a content coding.
WINDOW = 8 << 20
# How many members, frames and blocks a body may have; one more for so many bytes in, and out. Each costs a kilobyte's time.
PARTS, IN_OF_PART, OUT_OF_PART = 1000, 64, 1024
# Processor time for decoding (seconds): a body in memory; a blob, and so much more for each MiB in and out. Honest bodies
# take a tenth of it. A gzip of empty blocks decodes to nothing for as long as it comes.
SECONDS, BLOB_SECONDS, SECONDS_OF_MIB = 0.5, 1.0, 0.03
_NAMES = {"x-gzip": "gzip"}
_ZSTD, _SKIPPABLE = b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18"


class BadCoding(ValueError):
    """The body is not in the coding that its header names, or it is made to fill memory."""


class UnknownCoding(BadCoding):
    """A coding that nobody asked for and that is not known here."""


def codings_of(headers: HeaderList) -> tuple[str, ...]:
    """The codings that Content-Encoding names, in the order in which they were applied; identity is none."""
    lines = [value for key, value in headers if key.lower() == "content-encoding"]
    names = [name.strip(" \t").lower() for line in lines for name in line.split(",")]
    return tuple(_NAMES.get(name, name) for name in names if name not in ("", "identity"))


def check_known(codings: Sequence[str]) -> None:
    """Raises UnknownCoding unless this is one coding that can be decoded."""
    if len(codings) > MAX_CODINGS:
        raise UnknownCoding("it has several codings, one in the other")
    unknown = [name for name in codings if name not in _STAGES]
    if unknown or not codings:
        raise UnknownCoding(f"its coding {''.join(unknown[:1])[:40]!r} is not known")


class _Stage(Protocol):
    parts: int

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What these bytes decode to, up to PIECE at once. Raises BadCoding."""

    def finish(self) -> None:
        """Raises BadCoding if it ends too early."""


class Decoder:
    """Decodes one body in `seconds` of processor time, and `more` for each MiB in and out. Raises UnknownCoding."""

    def __init__(self, codings: Sequence[str], seconds: float = SECONDS, more: float = 0.0) -> None:
        check_known(codings)
        self._stage: _Stage = _STAGES[codings[0]]()
        self._seconds, self._more = seconds, more / (1 << 20)
        self._came = self._made = 0
        self._spent = 0.0

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """What these bytes decode to, up to 128 KiB at once. Raises BadCoding."""
        view = memoryview(data)
        for at in range(0, len(view), LOOK):
            look = bytes(view[at : at + LOOK])
            self._came += len(look)
            pieces = self._stage.feed(look)
            while True:
                began = time.thread_time()
                piece = next(pieces, None)
                self._spent += time.thread_time() - began
                self._made += len(piece or b"")
                self._check()
                if piece is None:
                    break
                yield piece

    def _check(self) -> None:
        if self._made > SLACK + EXPANSION * self._came:
            raise BadCoding("it decodes to absurdly much")
        if self._stage.parts > PARTS + self._came // IN_OF_PART + self._made // OUT_OF_PART:
            raise BadCoding("it comes in absurdly small parts")
        if self._spent > self._seconds + self._more * (self._came + self._made):
            raise BadCoding("decoding it takes absurdly long")

    def finish(self) -> None:
        """Nothing more comes. Raises BadCoding if it ends too early; nothing at all is a body, too."""
        if self._came:
            self._stage.finish()


class _Inflate:
    """What zlib knows, one member after the other."""

    def __init__(self, wbits: int = 31) -> None:
        self.parts = 0
        self._wbits = wbits
        self._engine = zlib.decompressobj(wbits)

    def feed(self, data: bytes) -> Iterator[bytes]:
        full = False
        while data or full:
            if self._engine.eof and data:
                self._next_member()
            try:
                piece = self._engine.decompress(data, PIECE)
            except zlib.error:
                raise BadCoding("it is not compressed as it says") from None
            full = len(piece) == PIECE and not self._engine.eof
            data = self._engine.unused_data if self._engine.eof else self._engine.unconsumed_tail
            # Also an empty piece, so that the bounds are checked after each of a thousand members.
            yield piece

    def _next_member(self) -> None:
        self.parts += 1
        self._engine = zlib.decompressobj(self._wbits)

    def finish(self) -> None:
        if not self._engine.eof:
            raise BadCoding("it ends too early")


class _Deflate(_Inflate):
    """zlib's format, which is what deflate means, or bare deflate, which is what some take it for."""

    def __init__(self) -> None:
        super().__init__(zlib.MAX_WBITS)
        self._first: bytes | None = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._first is not None:
            data = self._first + data
            if len(data) < 2:
                self._first = data
                return
            self._first = None
            if data[0] & 0x0F != zlib.DEFLATED or int.from_bytes(data[:2]) % 31:
                self._engine = zlib.decompressobj(-zlib.MAX_WBITS)
        yield from super().feed(data)

    def _next_member(self) -> None:
        raise BadCoding("something follows its end")


class _Zstandard:
    """Frame after frame. The library gets one block at a time: it decodes all that it gets, and returns it at once."""

    def __init__(self) -> None:
        self.parts = 0
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW)
        self._engine: zstandard.ZstdDecompressionObj | None = None
        self._buffer = bytearray()
        self._skip = 0
        # What stands behind the last block of this frame (bytes).
        self._tail = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._buffer += data
        at = 0
        while size := self._next(at):
            self.parts += 1
            part = bytes(memoryview(self._buffer)[at : at + size])
            at += size
            yield self._decode(part) if self._engine is not None else b""
        del self._buffer[:at]

    def _next(self, at: int) -> int:
        """The size of the next part: a frame's header, a block, or what is skipped; 0 if not all of it is there."""
        there = len(self._buffer) - at
        if self._skip:
            size = min(self._skip, there)
            self._skip -= size
            return size
        size = self._header(at, there) if self._engine is None else self._block(at, there)
        return size if size <= there else 0

    def _header(self, at: int, there: int) -> int:
        magic = self._buffer[at : at + 4]
        if magic[1:] == _SKIPPABLE and magic[0] & 0xF0 == 0x50:
            if there >= 8:
                self._skip = int.from_bytes(self._buffer[at + 4 : at + 8], "little")
            return 8
        if not _ZSTD.startswith(magic[:4]) and not (there < 4 and _SKIPPABLE.startswith(magic[1:])):
            raise BadCoding("it is not compressed as it says")
        if there < 5:
            return there + 1
        flags = self._buffer[at + 4]
        single = flags >> 5 & 1
        size = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
        if size <= there:
            self._engine = self._decompressor.decompressobj()
            self._tail = 4 * (flags >> 2 & 1)
        return size

    def _block(self, at: int, there: int) -> int:
        if there < 3:
            return there + 1
        header = int.from_bytes(self._buffer[at : at + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if size > PIECE:
            raise BadCoding("it is not compressed as it says")
        return 3 + (1 if kind == 1 else size) + last * self._tail

    def _decode(self, part: bytes) -> bytes:
        assert self._engine is not None
        try:
            piece = self._engine.decompress(part)
        except zstandard.ZstdError:
            raise BadCoding("it is not compressed as it says") from None
        if self._engine.eof:
            self._engine = None
        return piece

    def finish(self) -> None:
        if self._buffer or self._skip or self._engine is not None:
            raise BadCoding("it ends too early")


_STAGES: dict[str, type[_Inflate] | type[_Zstandard]] = {"gzip": _Inflate, "deflate": _Deflate, "zstd": _Zstandard}


def decode(data: bytes | bytearray, codings: Sequence[str], limit: int) -> bytearray:
    """All of a body, `limit` bytes at most. Raises BadCoding."""
    decoder, found = Decoder(codings), bytearray()
    for piece in decoder.feed(data):
        if len(found) + len(piece) > limit:
            raise BadCoding(f"it decodes to more than {limit} bytes")
        found += piece
    decoder.finish()
    return found
