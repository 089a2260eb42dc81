"""Decodes content codings (RFC 9110 section 8.4.1) piece by piece: some upstreams compress although no client asked for it.

The decoder knows gzip, x-gzip, deflate (with zlib's frame of RFC 1950, or bare) and zstd (RFC 8878). A body has one coding.
"""

import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import zstandard

from cacheyd.protocol.headers import HeaderList

# The most codings of a body, one inside the other. Each coding multiplies the cost of an attacker's byte; no server uses two.
MAX_CODINGS = 1
# The most bytes that one step decodes to (the largest zstd block), and the most bytes of input of one step.
PIECE, LOOK = 128 << 10, 64 << 10
# The most bytes of a decoded body: EXPANSION times the bytes that came, and SLACK bytes more. Layers expand ten times.
EXPANSION, SLACK = 200, 1 << 20
# The largest window of a zstd frame (bytes), by RFC 9659 for a content coding.
WINDOW = 8 << 20
# The most members, frames and blocks of a body: PARTS, one more for each IN_OF_PART bytes of input, and one more for each
# OUT_OF_PART bytes of output. Each part costs as much time as a kilobyte.
PARTS, IN_OF_PART, OUT_OF_PART = 1000, 64, 1024
# The most processor time for decoding (seconds): for a body in memory; for a blob; more for each MiB of a blob's input and
# output. Honest bodies take a tenth of this time. A gzip of empty blocks decodes to nothing for as long as it lasts.
SECONDS, BLOB_SECONDS, SECONDS_OF_MIB = 0.5, 1.0, 0.03
_NAMES = {"x-gzip": "gzip"}
_ZSTD, _SKIPPABLE = b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18"


class BadCoding(ValueError):
    """The body does not have the coding that its header names, or somebody made it to fill memory."""


class UnknownCoding(BadCoding):
    """The body has a coding that no client asked for and that this module does not know."""


def codings_of(headers: HeaderList) -> tuple[str, ...]:
    """The codings that Content-Encoding names, in the order in which the server applied them; without identity."""
    lines = [value for key, value in headers if key.lower() == "content-encoding"]
    names = [name.strip(" \t").lower() for line in lines for name in line.split(",")]
    return tuple(_NAMES.get(name, name) for name in names if name not in ("", "identity"))


def check_known(codings: Sequence[str]) -> None:
    """Raises UnknownCoding unless `codings` is a single coding that this module can decode."""
    if len(codings) > MAX_CODINGS:
        raise UnknownCoding("it has several codings, one in the other")
    unknown = [name for name in codings if name not in _STAGES]
    if unknown or not codings:
        raise UnknownCoding(f"its coding {''.join(unknown[:1])[:40]!r} is not known")


class _Stage(Protocol):
    parts: int

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The decoded bytes of `data`, in pieces of up to PIECE bytes. Raises BadCoding."""

    def finish(self) -> None:
        """Raises BadCoding if the input ends too early."""


class Decoder:
    """Decodes one body in at most `seconds` of processor time, and `more` seconds for each MiB of input and output.

    Raises UnknownCoding.
    """

    def __init__(self, codings: Sequence[str], seconds: float = SECONDS, more: float = 0.0) -> None:
        check_known(codings)
        self._stage: _Stage = _STAGES[codings[0]]()
        self._seconds, self._more = seconds, more / (1 << 20)
        self._came = self._made = 0
        self._spent = 0.0

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """The decoded bytes of `data`, in pieces of up to 128 KiB. Raises BadCoding."""
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
            raise BadCoding("it decodes to far too many bytes")
        if self._stage.parts > PARTS + self._came // IN_OF_PART + self._made // OUT_OF_PART:
            raise BadCoding("its parts are far too small")
        if self._spent > self._seconds + self._more * (self._came + self._made):
            raise BadCoding("decoding it takes absurdly long")

    def finish(self) -> None:
        """Ends the input. Raises BadCoding if the input ends too early; an empty input is a valid body."""
        if self._came:
            self._stage.finish()


class _Inflate:
    """Decodes the formats of zlib, one member after the other."""

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
            # Yields an empty piece, too, so that the caller checks the bounds after each of a thousand members.
            yield piece

    def _next_member(self) -> None:
        self.parts += 1
        self._engine = zlib.decompressobj(self._wbits)

    def finish(self) -> None:
        if not self._engine.eof:
            raise BadCoding("it ends too early")


class _Deflate(_Inflate):
    """Decodes zlib's format, which is the meaning of `deflate`, or bare deflate, which some servers send instead."""

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
    """Decodes zstd, frame after frame. The library gets one block at a time: it decodes all its input at once."""

    def __init__(self) -> None:
        self.parts = 0
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW)
        self._engine: zstandard.ZstdDecompressionObj | None = None
        self._buffer = bytearray()
        self._skip = 0
        # How many bytes follow the last block of this frame (its checksum).
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
        """The size of the next part (bytes): a frame's header, a block, or bytes to skip; 0 if the part is not complete."""
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
    """The whole decoded body, at most `limit` bytes. Raises BadCoding."""
    decoder, found = Decoder(codings), bytearray()
    for piece in decoder.feed(data):
        if len(found) + len(piece) > limit:
            raise BadCoding(f"it decodes to more than {limit} bytes")
        found += piece
    decoder.finish()
    return found
