"""HTTP/1.1 of the test origin: requests as they came, and answers before they are written."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

Headers = tuple[tuple[str, str], ...]
MAX_HEAD = 256 * 1024


@dataclass(eq=False)
class Request:
    """One request as it was on the wire, and the progress of its answer.

    `target` is `path` and `query` as they came, without decoding. `at` is time.monotonic() when the head was complete.
    `body_sent` counts the body bytes that the kernel has taken (without chunk framing). `done` says that no more bytes are
    sent: the answer is complete, a fault cut it, or (`aborted`) the client left.
    """

    method: str
    target: str
    path: str
    query: str
    headers: list[tuple[str, str]]
    version: str = "HTTP/1.1"
    at: float = field(default_factory=time.monotonic)
    body_sent: int = 0
    done: bool = False
    aborted: bool = False

    @property
    def host(self) -> str:
        return self.header("Host") or ""

    def header(self, name: str) -> str | None:
        """The first value of a header; upper and lower case of the name do not matter."""
        return next(iter(self.header_all(name)), None)

    def header_all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def route(self) -> str:
        return unquote(self.path)

    @property
    def wants_close(self) -> bool:
        connection = (self.header("Connection") or "").lower()
        return connection == "close" or self.version == "HTTP/1.0"


@dataclass(frozen=True)
class Answer:
    """A whole answer. Its framing (Content-Length, chunks) is chosen when it is written. `ranges`: Range applies to it."""

    status: int
    headers: Headers = ()
    body: bytes = b""
    ranges: bool = False

    def with_headers(self, headers: Headers) -> Answer:
        """The answer with these headers in place of its headers of the same names."""
        kept = without(self.headers, [name for name, _ in headers])
        return replace(self, headers=kept + headers)


@dataclass(frozen=True)
class Part:
    """The bytes that a Range selects, from `start` to `end` (exclusive). An empty part means 416."""

    start: int
    end: int

    @property
    def satisfiable(self) -> bool:
        return self.start < self.end


def without(headers: Headers, names: list[str]) -> Headers:
    dropped = {name.lower() for name in names}
    return tuple((name, value) for name, value in headers if name.lower() not in dropped)


def oci_error(status: int, code: str, message: str = "", *headers: tuple[str, str]) -> Answer:
    """An error as JSON (OCI distribution-spec, "Error codes")."""
    error = {"code": code, "message": message or code.lower().replace("_", " "), "detail": {}}
    return json_answer(status, {"errors": [error]}, *headers)


def json_answer(status: int, value: object, *headers: tuple[str, str]) -> Answer:
    return Answer(status, (("Content-Type", "application/json"), *headers), json.dumps(value).encode())


def selected(request: Request, size: int, etag: str | None) -> Part | None:
    """The part that the request's Range asks for; None for the whole body.

    It works like Go's net/http (docker-registry): a Range that cannot be parsed means 416, also `500-0`; several ranges mean
    the whole body.
    """
    header = request.header("Range")
    if header is None or request.method != "GET" or not header.startswith("bytes=") or "," in header:
        return None
    if_range = request.header("If-Range")
    if if_range is not None and if_range != etag:
        return None
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    if match is None or match.group(1) == match.group(2) == "":
        return Part(0, 0)
    first, last = match.groups()
    if first == "":
        return Part(max(0, size - int(last)), size)
    return Part(int(first), min(size, int(last) + 1) if last else size)


def apply_range(request: Request, answer: Answer) -> tuple[Answer, Part]:
    """The answer (206, 416, or unchanged), and the part of the body to send."""
    size = len(answer.body)
    everything = Part(0, size)
    if not answer.ranges or answer.status != 200:
        return answer, everything
    etag = next((value for name, value in answer.headers if name == "ETag"), None)
    part = selected(request, size, etag)
    if part is None:
        return answer, everything
    if not part.satisfiable:
        refusal = oci_error(416, "RANGE_INVALID", "", ("Content-Range", f"bytes */{size}"))
        return refusal, Part(0, len(refusal.body))
    content_range = f"bytes {part.start}-{part.end - 1}/{size}"
    return replace(answer, status=206).with_headers((("Content-Range", content_range),)), part


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """Reads the next request, and drops its body. None if the client has ended or does not speak HTTP/1."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    request = parse_head(head)
    try:
        if request is not None:
            await _drop_body(request, reader)
    except (ValueError, asyncio.LimitOverrunError):
        return None
    return request


def parse_head(head: bytes) -> Request | None:
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1.") or not all(":" in line for line in lines):
        return None
    method, target, version = parts
    path, _, query = target.partition("?")
    pairs = (line.split(":", 1) for line in lines)
    return Request(method, target, path, query, [(name, value.strip()) for name, value in pairs], version)


async def _drop_body(request: Request, reader: asyncio.StreamReader) -> None:
    if (request.header("Transfer-Encoding") or "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            await reader.readexactly(size + 2)
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
    else:
        await reader.readexactly(int(request.header("Content-Length") or 0))
