"""A table of raw answers of an upstream. It says how the bytes look, how h11 reads them, and why cacheyd is stricter."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import h11

type Framed = Callable[[bytes, str], bytes]


@dataclass(frozen=True)
class Row:
    """An answer for any body: its status line, its fields without Content-Type, and the framing of the body.

    `closes`: the origin closes the connection after the answer. `stricter`: why cacheyd answers 502 although h11 accepts it.
    """

    name: str
    line: str = "HTTP/1.1 200 OK"
    fields: tuple[str, ...] = ()
    frame: Framed = field(default=lambda body, method: b"" if method == "HEAD" else body)
    length: bool = True
    closes: bool = False
    eol: str = "\r\n"
    before: bytes = b""
    behind: bytes = b""
    stricter: str = ""

    def answer(self, body: bytes, media_type: str, method: str) -> bytes:
        """The bytes of the answer with this body."""
        size = str(len(body))
        stated = [f"Content-Length: {size}"] if self.length else []
        fields = [f"Content-Type: {media_type}", *stated, *(line.replace("SIZE", size) for line in self.fields)]
        head = self.eol.join((self.line, *fields, "", "")).encode("latin-1")
        return self.before + head + self.frame(body, method) + self.behind


def chunks(size: int = 7, *, extension: str = "", form: str = "x", trailers: str = "") -> Framed:
    """A framing with chunks of `size` bytes."""

    def frame(body: bytes, method: str) -> bytes:
        if method == "HEAD":
            return b""
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        parts = [f"{len(piece):{form}}{extension}\r\n".encode() + piece + b"\r\n" for piece in pieces]
        return b"".join((*parts, f"0{extension}\r\n{trailers}\r\n".encode()))

    return frame


def altered(change: Callable[[bytes], bytes], framed: Framed | None = None) -> Framed:
    """A framing that changes the framed body; empty for HEAD."""

    def frame(body: bytes, method: str) -> bytes:
        return b"" if method == "HEAD" else change(framed(body, method) if framed else body)

    return frame


def _interim(*statuses: int) -> bytes:
    return b"".join(f"HTTP/1.1 {status} Wait\r\nLink: </x>; rel=preload\r\n\r\n".encode() for status in statuses)


TE = ("Transfer-Encoding: chunked",)
ROWS = (
    Row("plain"),
    Row("plain, closed", closes=True),
    # Where a body ends (RFC 9112 section 6.3)
    Row("1.0 to the end", "HTTP/1.0 200 OK", length=False, closes=True),
    Row("close to the end", fields=("Connection: close",), length=False, closes=True),
    Row("to the end without a word", length=False, closes=True),
    Row("1.0 with a length", "HTTP/1.0 200 OK", closes=True),
    Row("1.0 kept", "HTTP/1.0 200 OK", fields=("Connection: keep-alive",)),
    Row("Close with a length", fields=("Connection: Close",), closes=True),
    Row("chunked", fields=TE, length=False, frame=chunks()),
    Row("chunked, name in capitals", fields=("TRANSFER-ENCODING: Chunked",), length=False, frame=chunks()),
    Row("chunk extensions", fields=TE, length=False, frame=chunks(extension=';a=b;c="d e"')),
    Row("chunks of one byte", fields=TE, length=False, frame=chunks(1)),
    Row("chunks with zeros and capitals", fields=TE, length=False, frame=chunks(171, form="06X")),
    Row("trailers", fields=(*TE, "Trailer: X-Sum"), length=False, frame=chunks(trailers="X-Sum: 1\r\nX-Other: 2\r\n")),
    Row("chunked, closed", fields=(*TE, "Connection: close"), length=False, frame=chunks(), closes=True),
    Row("no last chunk", fields=TE, length=False, closes=True, frame=altered(lambda data: data[:-5], chunks())),
    Row("a chunk's size is none", fields=TE, length=False, closes=True, frame=altered(lambda data: b"x" + data, chunks())),
    Row("a chunk's size with 0x", fields=TE, length=False, closes=True, frame=altered(lambda data: b"0x" + data, chunks())),
    Row("a negative chunk", fields=TE, length=False, closes=True, frame=altered(lambda data: b"-" + data, chunks())),
    Row("a chunk longer than it says", fields=TE, length=False, closes=True,
        frame=altered(lambda data: data.replace(b"\r\n", b"\r\n!", 1), chunks())),
    Row("chunks with LF", fields=TE, length=False, closes=True,
        frame=altered(lambda data: data.replace(b"\r\n", b"\n"), chunks())),
    Row("too short", closes=True, frame=altered(lambda data: data[:-3])),
    Row("more behind it", frame=altered(lambda data: data + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")),
    Row("a body behind a HEAD", frame=lambda body, method: body),
    # Content-Length and Transfer-Encoding
    Row("the same length in two lines", fields=("Content-Length: SIZE",)),
    Row("the same length in a list", fields=("Content-Length: SIZE, SIZE",), length=False),
    Row("the same length in lists and lines", fields=("content-length:SIZE ,SIZE", "CONTENT-LENGTH:  SIZE"), length=False),
    Row("a length with zeros", fields=("Content-Length: 00SIZE",), length=False),
    Row("two lengths in two lines", fields=("Content-Length: 1SIZE",), closes=True),
    Row("two lengths in a list", fields=("Content-Length: SIZE, 1SIZE",), length=False, closes=True),
    Row("half a list", fields=("Content-Length: SIZE,",), length=False, closes=True),
    Row("a length with a sign", fields=("Content-Length: +SIZE",), length=False, closes=True),
    Row("a negative length", fields=("Content-Length: -SIZE",), length=False, closes=True),
    Row("an empty length", fields=("Content-Length:",), length=False, closes=True),
    Row("a huge length", fields=("Content-Length: 9" + "9" * 40,), length=False, closes=True),
    Row("length and chunks", fields=TE, frame=chunks(), closes=True,
        stricter="RFC 9112 section 6.3: ought to be handled as an error"),
    Row("chunked twice", fields=(*TE, *TE), length=False, frame=chunks(), closes=True),
    Row("gzip, chunked", fields=("Transfer-Encoding: gzip, chunked",), length=False, frame=chunks(), closes=True),
    Row("gzip to the end", fields=("Transfer-Encoding: gzip",), length=False, closes=True),
    Row("identity to the end", fields=("Transfer-Encoding: identity",), length=False, closes=True),
    Row("1.0 chunked", "HTTP/1.0 200 OK", fields=TE, length=False, frame=chunks(), closes=True,
        stricter="RFC 9112 section 6.1: the framing is faulty"),
    # Interim responses (RFC 9110 section 15.2)
    Row("100", before=_interim(100)),
    Row("102", before=_interim(102)),
    Row("103", before=_interim(103)),
    Row("several", before=_interim(100, 102, 103, 103), fields=TE, length=False, frame=chunks()),
    Row("several, to the end", before=_interim(100, 103), length=False, closes=True),
    Row("1xx with LF and no reason", before=b"HTTP/1.1 100\n\nHTTP/1.0 102 \r\n\r\n"),
    Row("nine", before=_interim(*[103] * 9), closes=True, stricter="no more than eight"),
    Row("101", "HTTP/1.1 101 Switching Protocols", fields=("Upgrade: x", "Connection: upgrade"), length=False,
        frame=lambda body, method: b""),
    Row("100 and 101", "HTTP/1.1 101 Switching Protocols", fields=("Upgrade: x", "Connection: upgrade"), length=False,
        frame=lambda body, method: b"", before=_interim(100)),
    Row("100 and nothing", before=_interim(100), closes=True, line="", length=False, frame=lambda body, method: b""),
    # Statuses
    Row("204", "HTTP/1.1 204 No Content", length=False, frame=lambda body, method: b""),
    Row("205", "HTTP/1.1 205 Reset Content", fields=("Content-Length: 0",), length=False, frame=lambda body, method: b""),
    Row("206", "HTTP/1.1 206 Partial Content"),
    Row("304", "HTTP/1.1 304 Not Modified", frame=lambda body, method: b""),
    Row("300", "HTTP/1.1 300 Multiple Choices"),
    Row("600", "HTTP/1.1 600 Beyond"),
    # The form of a head (RFC 9112 sections 2 and 4)
    Row("no reason", "HTTP/1.1 200 "),
    Row("no reason, no blank", "HTTP/1.1 200"),
    Row("another reason", "HTTP/1.1 200 Sure\tthing \xfc"),
    Row("LF", eol="\n"),
    Row("an empty line before", before=b"\r\n", closes=True),
    Row("an empty line with LF before", before=b"\n", closes=True),
    Row("names in capitals", fields=("DOCKER-DISTRIBUTION-API-VERSION: registry/2.0", "CONNECTION: KEEP-ALIVE")),
    Row("no blank behind a colon", fields=("X-Y:z", "X-Empty:", "X-Tabs:\t\tz\t")),
    Row("bytes of Latin-1", fields=("X-Y: \xfc\xff",)),
    Row("a fold", fields=("X-Y: z", " more"), closes=True, stricter="RFC 9112 section 5.2 lets a proxy refuse"),
    Row("a fold first", fields=(), line="HTTP/1.1 200 OK\r\n X: y", closes=True),
    Row("a blank before a colon", fields=("X-Y : z",), closes=True),
    Row("no colon", fields=("X-Y",), closes=True),
    Row("no name", fields=(": x",), closes=True),
    Row("a NUL", fields=("X-Y: a\0b",), closes=True),
    Row("a CR", fields=("X-Y: a\rb",), closes=True),
    Row("a sign in the status", "HTTP/1.1 +200 OK", closes=True),
    Row("an underscore in the status", "HTTP/1.1 2_00 OK", closes=True),
    Row("two blanks", "HTTP/1.1  200 OK", closes=True),
    Row("another version", "HTTP/1.9 200 OK"),
    Row("version 2", "HTTP/2.0 200 OK", closes=True, stricter="another protocol (RFC 9110 section 2.5)"),
    Row("version in small letters", "http/1.1 200 OK", closes=True),
    Row("no version", "200 OK", closes=True),
    Row("a request", "GET / HTTP/1.1", closes=True),
    Row("too many lines", fields=tuple(f"X-{n}: y" for n in range(101)), closes=True, stricter="no more than 100"),
    Row("text", "Go away", closes=True),
    Row("TLS", before=b"\x15\x03\x03\x00\x02\x02\x28", closes=True),
)  # fmt: skip


def verdict(row: Row, body: bytes, method: str) -> Literal["right", "refused", "cut"]:
    """The expected outcome, from h11's reading: right (200 with the whole body), cut (the body breaks), or refused."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "reg.test")]))
    connection.send(h11.EndOfMessage())
    data, status = bytearray(), 0
    try:
        connection.receive_data(row.answer(body, "a/b", method))
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                assert row.closes, f"{row.name}: the answer has no end: set closes=True"
                connection.receive_data(b"")
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                data += event.data
            elif not isinstance(event, h11.InformationalResponse) or event.status_code == 101:
                return "refused"
    except h11.RemoteProtocolError:
        return "refused" if not status else "cut"
    if row.stricter or status != 200:
        return "refused"
    return "right" if data == (b"" if method == "HEAD" else body) else "cut"
