"""Checks the head of an upstream's response, once and here: later, cacheyd stores, sends and logs parts of the head.

cacheyd refuses a response that can be read in two ways. cacheyd leaves out a header that is only useless.
"""

import re

from h11._readers import Http10Reader
from h11._receivebuffer import ReceiveBuffer
from mitmproxy import http
from mitmproxy.proxy import commands, events, layer, layers
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import ErrorCode, ReceiveHttp, RequestHeaders, ResponseEndOfMessage, ResponseProtocolError
from mitmproxy.proxy.layers.http._base import HttpEvent
from mitmproxy.proxy.layers.http._http1 import Http1Client

from cacheyd.protocol.headers import HeaderList
from cacheyd.upstream.port import UpstreamBroken

# The most header lines of a response, and the longest value of a line (bytes). `FetchReader` bounds the whole head.
MAX_LINES, MAX_VALUE = 100, 8 << 10
# The most bytes of all Transfer-Encoding lines together: with many blanks, mitmproxy takes the square of the length in time.
MAX_CODING = 120
# The most interim responses before the final response.
MAX_INTERIM = 8
# The longest Content-Type (bytes): type and subtype have 127 characters each at most (RFC 6838 section 4.2).
MAX_CONTENT_TYPE = 255

_HEAD_END = re.compile(rb"\n\r?\n")
_INTERIM = re.compile(rb"HTTP/1\.[0-9] 1(?!01)[0-9][0-9][ \r\n]")
# If the reason is empty, the blank before it can be missing, too (RFC 9112 section 4 wants the blank).
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] [0-9]{3}(?: [^\x00]*)?")
_LENGTHS = re.compile(rb"[\t ]*[0-9]{1,18}[\t ]*(?:,[\t ]*[0-9]{1,18}[\t ]*)*")
_EMPTY = "its response begins with an empty line"
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105
_NAME = re.compile(_TOKEN.encode())
_BREAK = re.compile(rb"[\x00\r\n]")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_CONTENT_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}[ \t]*(?:;.*)?")
# Headers that may occur once. Only the first value is kept, so that no later reader takes another value.
_SINGLE = frozenset(
    {
        "accept-ranges", "age", "content-length", "content-range", "content-type", "date",
        "docker-content-digest", "docker-distribution-api-version", "etag", "last-modified", "location", "retry-after",
    }
)  # fmt: skip


class StrictHttp1Client(Http1Client):
    """Checks a response's head before mitmproxy parses it, and skips interim responses (RFC 9110 section 15.2)."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._interim = 0
        # Whether any byte came since the request, and whether the body came to its end. Both are set before the addons' hooks.
        self.heard = False
        self.ended = False

    def send(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        """As in the base class."""
        if isinstance(event, RequestHeaders):
            self.heard = self.ended = False
        yield from super().send(event)

    @property
    def ends_with_the_connection(self) -> bool:
        """Whether only the end of the connection says where the body ends (RFC 9112 section 6.3)."""
        return self.state == self.read_body and isinstance(self.body_reader, Http10Reader)

    def read_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        """As in the base class."""
        for command in super().read_body(event):
            if isinstance(command, ReceiveHttp) and isinstance(command.event, ResponseEndOfMessage):
                self.ended = True
            yield command

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        """As in the base class."""
        self.heard = self.heard or isinstance(event, events.DataReceived)
        if isinstance(event, events.DataReceived) and self.request and b"\n" in event.data:
            head, problem = self._next_head(), None
            while head and _INTERIM.match(head) and self._interim < MAX_INTERIM:
                self._interim += 1
                self.buf.maybe_extract_at_most(len(head))
                head = self._next_head()
            if problem := problem_of(head) if head else _EMPTY if bytes(self.buf)[:1] in (b"\r", b"\n") else None:
                yield commands.CloseConnection(self.conn)
                yield ReceiveHttp(ResponseProtocolError(self.stream_id or 1, problem, ErrorCode.GENERIC_SERVER_ERROR))
                return
            if not self.buf:
                return
            self._interim = 0 if head else self._interim
            if head and (one := with_one_length(head)) is not head:
                self._replace(head, one)
        yield from super().read_headers(event)

    def _replace(self, head: bytes, other: bytes) -> None:
        behind = bytes(self.buf)[len(head) :]
        self.buf = ReceiveBuffer()
        self.buf += other + behind

    def _next_head(self) -> bytes:
        """The next head in the buffer, with its empty line; empty if the head is incomplete."""
        end = _HEAD_END.search(data := bytes(self.buf))
        return data[: end.end()] if end else b""


# mitmproxy makes its HTTP/1 connections to upstreams from the class with this name: the only seam. A contract test pins it.
layers.http.Http1Client = StrictHttp1Client  # type: ignore[misc]


def problem_of(head: bytes) -> str | None:
    """Why cacheyd refuses a raw head before mitmproxy parses it; None if it does not."""
    lines = head.splitlines()
    if not lines[0]:
        return _EMPTY
    if not _STATUS_LINE.fullmatch(lines[0]):
        return "its response has no status line of HTTP/1"
    if len(lines) > MAX_LINES + 2:
        return f"its response has more than {MAX_LINES} header lines"
    if any(line[:1] in (b" ", b"\t") for line in lines):
        return "its response has a folded header line"
    if not all(_LENGTHS.fullmatch(line.partition(b":")[2]) for line in lines if _is_length(line)):
        return "its response has a malformed Content-Length"
    codings = [line for line in lines if line[:17].lower() == b"transfer-encoding"]
    if sum(map(len, codings)) > MAX_CODING:
        return "its response has an absurd Transfer-Encoding"
    # cacheyd did not ask for another coding (RFC 9110 section 10.1.4), and cannot decode one.
    others = [line for line in codings if line.partition(b":")[2].strip(b" \t").lower() != b"chunked"]
    return "its response has a Transfer-Encoding other than chunked" if others else None


def with_one_length(head: bytes) -> bytes:
    """The head with one plain Content-Length, if it repeats the same length (RFC 9110 section 8.6) or writes it with zeros.

    `problem_of` has accepted the form of each Content-Length before.
    """
    lines = head.splitlines(keepends=True)
    stated = [line.partition(b":")[2].rstrip(b"\r\n") for line in lines if _is_length(line)]
    if not stated:
        return head
    numbers = [int(number) for value in stated for number in value.split(b",")]
    plain = b"%d" % numbers[0]
    if len(set(numbers)) > 1 or [value.strip(b" \t") for value in stated] == [plain]:
        return head
    kept = [line for line in lines if not _is_length(line)]
    return b"".join((*kept[:1], b"Content-Length: %s\r\n" % plain, *kept[1:]))


def _is_length(line: bytes) -> bool:
    return line[:15].lower() == b"content-length:"


def take_head(response: http.Response) -> tuple[int, HeaderList]:
    """Status and headers of a response, one character for each byte (latin-1). Raises UpstreamBroken.

    Refuses: a status that is not final (RFC 9110 section 15); more than 100 lines; a line break or NUL in a value (RFC 9110
    section 5.5), also in a folded line, which a proxy may refuse (RFC 9112 section 5.2). Leaves out: values with other control
    bytes; values over 8 KiB; malformed Content-Types; the repetition of a header that may occur once.
    """
    if not 200 <= response.status_code <= 599:
        raise UpstreamBroken("its response has no status that ends a request")
    fields = response.headers.fields
    if len(fields) > MAX_LINES:
        raise UpstreamBroken(f"its response has more than {MAX_LINES} header lines")
    kept: list[tuple[str, str]] = []
    seen: set[str] = set()
    for name, value in fields:
        if _BREAK.search(value) or not _NAME.fullmatch(name):
            raise UpstreamBroken("its response has a header that is broken")
        text, key = value.decode("latin-1").strip(" \t"), name.decode("ascii").lower()
        if len(value) <= MAX_VALUE and _VALUE.fullmatch(value) and key not in seen and _is_useful(key, text):
            kept.append((name.decode("ascii"), text))
            if key in _SINGLE:
                seen.add(key)
    return response.status_code, tuple(kept)


def _is_useful(key: str, value: str) -> bool:
    if key != "content-type":
        return True
    return len(value) <= MAX_CONTENT_TYPE and _CONTENT_TYPE.fullmatch(value) is not None
