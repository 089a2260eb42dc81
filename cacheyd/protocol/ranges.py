"""Parses and computes Range, If-Range and Content-Range (RFC 9110 section 14)."""

import re
from dataclasses import dataclass

_SPEC = re.compile(r"([0-9]{0,19})-([0-9]{0,19})")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")
MAX_PARTS = 64


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes `start` to `end` (exclusive) of a representation."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """The length of the part (bytes)."""
        return self.end - self.start

    def content_range(self, size: int) -> str:
        """The Content-Range of this part (RFC 9110 section 14.4)."""
        return f"bytes {self.start}-{self.end - 1}/{size}"


class Unsatisfiable(Exception):
    """The request asks for no byte of the representation. The answer is 416 with `Content-Range: bytes */size`."""


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """A parsed Range header, before the size is known: pairs of first and last byte, each None if missing."""

    specs: tuple[tuple[int | None, int | None], ...]

    @property
    def start(self) -> int | None:
        """The first byte of a single range; None for a suffix and for several ranges."""
        return self.specs[0][0] if len(self.specs) == 1 else None

    @property
    def bounded(self) -> int | None:
        """How many bytes a single `first-last` range asks for; None for an open range, a suffix or several ranges."""
        if len(self.specs) != 1:
            return None
        first, last = self.specs[0]
        return None if first is None or last is None else last - first + 1

    def parts(self, size: int) -> tuple[Part, ...]:
        """The satisfiable parts of a representation of `size` bytes, clamped to its size. Raises Unsatisfiable if none."""
        found = []
        for first, last in self.specs:
            if first is None:
                start, end = max(0, size - (last or 0)), size
            else:
                start, end = first, size if last is None else min(size, last + 1)
            if start < end:
                found.append(Part(start, end))
        if not found:
            raise Unsatisfiable
        return tuple(found)


def parse_range(header: str | None) -> RangeRequest | None:
    """A Range header in bytes, or None if the cache must ignore it (other units, bad syntax, too many ranges).

    `bytes=500-0` stays as a range without bytes, so that the answer is 416, as the OCI conformance suite expects.
    """
    if not header:
        return None
    unit, _, spec_list = header.partition("=")
    if unit.strip().lower() != "bytes" or spec_list.count(",") >= MAX_PARTS:
        return None
    specs: list[tuple[int | None, int | None]] = []
    for item in spec_list.split(","):
        match = _SPEC.fullmatch(item.strip())
        if not match or match.group(0) == "-":
            return None
        specs.append((int(match[1]) if match[1] else None, int(match[2]) if match[2] else None))
    return RangeRequest(tuple(specs))


def if_range_holds(header: str | None, etag: str) -> bool:
    """Whether the Range counts: there is no If-Range, or If-Range is the strong ETag of this representation.

    A date never matches: a content-addressed object has no date (RFC 9110 section 13.1.5).
    """
    return header is None or header.strip() == etag


def parse_content_range(header: str | None) -> tuple[int, int, int | None] | None:
    """Start, end (exclusive) and size (None if unknown) of a Content-Range in bytes; None if the header is not valid."""
    match = _CONTENT_RANGE.fullmatch((header or "").strip())
    if not match or int(match[2]) < int(match[1]):
        return None
    size = None if match[3] == "*" else int(match[3])
    if size is not None and int(match[2]) >= size:
        return None
    return int(match[1]), int(match[2]) + 1, size
