"""Parses request heads strictly (RFC 9112), and renders response heads."""

import re
from dataclasses import dataclass

from h11._receivebuffer import ReceiveBuffer

from cacheyd.cache.answer import Answer
from cacheyd.protocol.errors import reason

# The longest head (bytes) and the most header lines of a request; a larger head gets 431. mitmproxy itself has no bound.
MAX_HEAD = 64 << 10
MAX_LINES = 256

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}")
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")
_VERSION = re.compile(rb"HTTP/(\d)\.(\d)")
_LENGTH = re.compile(rb"\d{1,18}")
_EMPTY_LINES = re.compile(rb"(?:\r\n)+")
_BARE_LF = re.compile(rb"(?<!\r)\n")


class BadHead(Exception):
    """A request head that cacheyd refuses with `status` (400, 431, 501 or 505). cacheyd closes the connection after it."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Head:
    """A request head. Header names are in lower case. `body` is the announced length (bytes), None for a chunked body."""

    method: str
    target: str
    http10: bool
    headers: tuple[tuple[str, str], ...]
    keep_alive: bool
    body: int | None

    def get(self, name: str) -> str | None:
        """The first value of a header; None if the header is missing."""
        return next((value for key, value in self.headers if key == name), None)

    def get_all(self, name: str) -> tuple[str, ...]:
        """All values of a header, one for each line, in order."""
        return tuple(value for key, value in self.headers if key == name)


class HeadBuffer(ReceiveBuffer):
    """The bytes that a client has sent and that nobody has read yet. If a head comes in pieces, each byte is searched once."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = 0

    def _extract(self, count: int) -> bytearray:
        self._seen = 0
        return super()._extract(count)

    def next_head(self) -> bytes | None:
        """Takes the next complete head out of the buffer, without its empty line; None if it is incomplete. Raises BadHead."""
        data = self._data
        if not data:
            return None
        # A server ignores empty lines before a request (RFC 9112 section 2.2).
        if data[:2] == b"\r\n" and (empty := _EMPTY_LINES.match(data)):
            self._extract(empty.end())
        end = data.find(b"\r\n\r\n", max(0, self._seen - 3))
        if end > MAX_HEAD or (end < 0 and len(data) > MAX_HEAD):
            raise BadHead("the request head is too large", 431)
        if end < 0:
            self._check_begun(data)
            return None
        head = bytes(data[:end])
        # The same as `_extract`, which would copy the head a second time.
        del data[: end + 4]
        self._seen = self._next_line_search = self._multiple_lines_search = 0
        return head

    def _check_begun(self, data: bytearray) -> None:
        if data and not data[:1].isalpha() and data != b"\r":
            # For example TLS: skopeo tries TLS first, and would wait for an answer.
            raise BadHead("this is not HTTP")
        if _BARE_LF.search(data, self._seen):
            raise BadHead("lines end with CR LF")
        self._seen = len(data)


def parse_head(raw: bytes) -> Head:
    """Parses a head without its empty line. Raises BadHead for a head that RFC 9112 forbids, or that can smuggle a request."""
    lines = raw.split(b"\r\n")
    parts = lines[0].split(b" ")
    if len(parts) != 3 or not _METHOD.fullmatch(parts[0]) or not _TARGET.fullmatch(parts[1]):
        raise BadHead("bad request line")
    version = _VERSION.fullmatch(parts[2])
    if version is None:
        raise BadHead("bad request line")
    if version[1] != b"1":
        raise BadHead("cacheyd speaks only HTTP/1.1 and HTTP/1.0", 505)
    if len(lines) > MAX_LINES + 1:
        raise BadHead("the request head has too many lines", 431)
    http10 = version[2] == b"0"
    headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        value = value.strip(b" \t")
        if not colon or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise BadHead("bad header line")
        headers.append((name.lower().decode("ascii"), value.decode("latin-1")))
    found = tuple(headers)
    hosts = sum(name == "host" for name, _ in found)
    if hosts > 1 or (hosts == 0 and not http10):
        raise BadHead("a request has exactly one Host header")
    target = parts[1].decode("latin-1")
    return Head(
        parts[0].decode("ascii"),
        _origin_form(target),
        http10,
        found,
        _keeps_alive(found, http10),
        _body_length(found, http10),
    )


def _origin_form(target: str) -> str:
    if target.startswith("/"):
        return target
    match = re.fullmatch(r"https?://[^/?#]+(/[^#]*)?", target, re.IGNORECASE)
    if match:
        return match[1] or "/"
    raise BadHead("bad request target")


def _keeps_alive(headers: tuple[tuple[str, str], ...], http10: bool) -> bool:
    tokens = {token.strip().lower() for name, value in headers if name == "connection" for token in value.split(",")}
    return "close" not in tokens and (not http10 or "keep-alive" in tokens)


def _body_length(headers: tuple[tuple[str, str], ...], http10: bool) -> int | None:
    lengths = [value for name, value in headers if name == "content-length"]
    codings = [value for name, value in headers if name == "transfer-encoding"]
    if codings:
        if lengths or http10 or len(codings) > 1:
            raise BadHead("the length of the body is ambiguous")
        if codings[0].lower() != "chunked":
            raise BadHead("unknown transfer coding", 501)
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0].encode("latin-1")):
        raise BadHead("the length of the body is ambiguous")
    return int(lengths[0])


def render_head(answer: Answer, *, keep_alive: bool, http10: bool = False) -> bytes:
    """The bytes of a response head, for a body of known length or no body."""
    lines = [f"HTTP/1.1 {answer.status} {reason(answer.status)}"]
    lines += [f"{name}: {value}" for name, value in answer.headers]
    if answer.length is not None:
        lines.append(f"Content-Length: {answer.length}")
    if not keep_alive:
        lines.append("Connection: close")
    elif http10:
        lines.append("Connection: keep-alive")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
