"""The strict parser of request heads: what RFC 9112 forbids, and what smugglers try."""

import time

import pytest
from h11._receivebuffer import ReceiveBuffer
from hypothesis import example, given
from hypothesis import strategies as st

from cacheyd.cache.answer import Answer
from cacheyd.proxy.inbound.head import MAX_LINES, BadHead, Head, HeadBuffer, parse_head, render_head


def head(*lines: str, request: str = "GET /v2/ HTTP/1.1", host: str | None = "cache:3000") -> Head:
    return parse_head(raw(*lines, request=request, host=host))


def raw(*lines: str, request: str = "GET /v2/ HTTP/1.1", host: str | None = "cache:3000") -> bytes:
    hosts = [] if host is None else [f"Host: {host}"]
    return "\r\n".join([request, *hosts, *lines]).encode("latin-1")


def refusal(data: bytes) -> int:
    with pytest.raises(BadHead) as caught:
        parse_head(data)
    return caught.value.status


def head_or_refusal(data: bytes) -> Head | BadHead:
    try:
        return parse_head(data)
    except BadHead as error:
        return error


def test_an_ordinary_head() -> None:
    parsed = head("Accept: a/b", "ACCEPT: c/d, */*", "User-Agent: \t containerd/2.0 \t")

    assert parsed.method == "GET"
    assert parsed.target == "/v2/"
    assert parsed.headers == (
        ("host", "cache:3000"),
        ("accept", "a/b"),
        ("accept", "c/d, */*"),
        ("user-agent", "containerd/2.0"),
    )
    assert (parsed.http10, parsed.keep_alive, parsed.body) == (False, True, 0)


def test_headers_are_found_by_name() -> None:
    parsed = head("Accept: a/b", "Accept: c/d", "Empty:")

    assert parsed.get("accept") == "a/b"
    assert parsed.get_all("accept") == ("a/b", "c/d")
    assert parsed.get("empty") == ""
    assert parsed.get("range") is None
    assert parsed.get_all("range") == ()


# The request line


@pytest.mark.parametrize(
    "request_line",
    [
        "",
        "GET",
        "GET /v2/",
        "GET  /v2/ HTTP/1.1",
        "GET /v2/  HTTP/1.1",
        " GET /v2/ HTTP/1.1",
        "GET /v2/ HTTP/1.1 ",
        "GET /v2/\tHTTP/1.1",
        "GET /v2/ x HTTP/1.1",
        "GET /v2/\x00 HTTP/1.1",
        "GET /v2/\n HTTP/1.1",
        "GET /v2/\r HTTP/1.1",
        "GET /v2/\x7f HTTP/1.1",
        "G(T /v2/ HTTP/1.1",
        "GÉT /v2/ HTTP/1.1",
        "G" * 33 + " /v2/ HTTP/1.1",
        "GET /v2/ http/1.1",
        "GET /v2/ HTTP/1",
        "GET /v2/ HTTP/1.10",
        "GET /v2/ HTTP/11.1",
        "GET /v2/ HTP/1.1",
        "\x16\x03\x01\x02\x00 /v2/ HTTP/1.1",
    ],
)
def test_bad_request_lines(request_line: str) -> None:
    assert refusal(raw(request=request_line)) == 400


@pytest.mark.parametrize("version", ["HTTP/0.9", "HTTP/2.0", "HTTP/3.0"])
def test_other_versions(version: str) -> None:
    assert refusal(raw(request=f"GET /v2/ {version}")) == 505


def test_the_preface_of_http2_is_refused() -> None:
    assert refusal(b"PRI * HTTP/2.0") in (400, 505)


@pytest.mark.parametrize(
    ("target", "origin_form"),
    [
        ("/v2/", "/v2/"),
        ("/v2/a/manifests/1?ns=127.0.0.1%3A16001", "/v2/a/manifests/1?ns=127.0.0.1%3A16001"),
        ("http://cache:3000/v2/?ns=ghcr.io", "/v2/?ns=ghcr.io"),
        ("HTTPS://CACHE/v2/", "/v2/"),
        ("http://cache:3000", "/"),
        ("http://cache:3000/", "/"),
    ],
)
def test_a_target_comes_out_in_origin_form(target: str, origin_form: str) -> None:
    assert head(request=f"GET {target} HTTP/1.1").target == origin_form


@pytest.mark.parametrize(
    "target", ["*", "v2/", "cache:443", "http://", "http:///v2/", "ftp://cache/v2/", "http:/v2/", "?ns=x"]
)
def test_targets_that_are_not_for_a_server(target: str) -> None:
    assert refusal(raw(request=f"GET {target} HTTP/1.1")) == 400


# Header lines


@pytest.mark.parametrize(
    "line",
    [
        "no colon",
        ": no name",
        "Name : space before the colon",
        "Na me: x",
        "Näme: x",
        "Name\x00: x",
        "(Name): x",
        " folded: after the request line",
        "",
        "X: nul \x00 inside",
        "X: escape \x1b inside",
        "X: delete \x7f inside",
        "X: a bare \n line feed",
        "X: a bare \r carriage return",
        "X: a\nTransfer-Encoding: chunked",
        "X: a\n\nGET /smuggled HTTP/1.1",
        "X: a\r\n folded",
        "X: a\r\n\tfolded",
        "Content-Length: 1\n0",
    ],
)
def test_bad_header_lines(line: str) -> None:
    assert refusal(raw(line)) == 400
    assert refusal(raw(line, "Accept: */*")) == 400


def test_a_folded_line_right_after_the_request_line_is_refused() -> None:
    assert refusal(b"GET /v2/ HTTP/1.1\r\n Host: a\r\nHost: b") == 400


@pytest.mark.parametrize("ending", [b"\n", b"\r"])
def test_bare_line_ends_are_refused(ending: bytes) -> None:
    assert refusal(ending.join([b"GET /v2/ HTTP/1.1", b"Host: cache", b"Accept: */*"])) == 400


def test_values_may_hold_what_old_clients_send() -> None:
    assert head("X-Name: Bücher\t!").get("x-name") == "Bücher\t!"


def test_exactly_one_host() -> None:
    assert refusal(raw(host=None)) == 400
    assert refusal(raw("Host: other")) == 400
    assert head(request="GET /v2/ HTTP/1.0", host=None).http10


def test_two_hosts_are_refused_in_http10_too() -> None:
    """RFC 9112 section 3.2: 400 to *any* request message that has more than one Host line."""
    assert refusal(raw("Host: other", request="GET /v2/ HTTP/1.0")) == 400


# How long the body is


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        ([], 0),
        (["Content-Length: 0"], 0),
        (["Content-Length: 17"], 17),
        (["Content-Length: 0017"], 17),
        (["Transfer-Encoding: chunked"], None),
        (["transfer-encoding:Chunked "], None),
    ],
)
def test_the_body_that_is_announced(lines: list[str], body: int | None) -> None:
    assert head(*lines, request="POST /v2/ HTTP/1.1").body == body


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5", "Content-Length: 5"],
        ["Content-Length: 5, 5"],
        ["Content-Length: +5"],
        ["Content-Length: -5"],
        ["Content-Length: 0x5"],
        ["Content-Length: 5 5"],
        ["Content-Length: 5.0"],
        ["Content-Length: \xb2"],
        ["Content-Length:"],
        ["Content-Length: " + "9" * 19],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
    ],
)
def test_an_ambiguous_length_is_refused(lines: list[str]) -> None:
    assert refusal(raw(*lines)) == 400


@pytest.mark.parametrize(
    "coding",
    ["gzip", "identity", "chunked, chunked", "gzip, chunked", "xchunked", "chunked\xa0", "chunked;x=1", '"chunked"', ""],
)
def test_other_transfer_codings_are_refused(coding: str) -> None:
    assert refusal(raw(f"Transfer-Encoding: {coding}")) in (400, 501)


def test_transfer_coding_in_http10_is_refused() -> None:
    assert refusal(raw("Transfer-Encoding: chunked", request="GET /v2/ HTTP/1.0")) == 400


# Keep-alive


@pytest.mark.parametrize(
    ("version", "lines", "keep_alive"),
    [
        ("1.1", [], True),
        ("1.1", ["Connection: keep-alive"], True),
        ("1.1", ["Connection: close"], False),
        ("1.1", ["Connection: Close"], False),
        ("1.1", ["Connection: TE, close"], False),
        ("1.1", ["Connection: TE", "Connection: close"], False),
        ("1.1", ["Connection: closed"], True),
        ("1.1", ["Connection: close, keep-alive"], False),
        ("1.0", [], False),
        ("1.0", ["Connection: keep-alive"], True),
        ("1.0", ["Connection: Keep-Alive"], True),
        ("1.0", ["Connection: close"], False),
        ("1.0", ["Connection: close, keep-alive"], False),
    ],
)
def test_keep_alive(version: str, lines: list[str], keep_alive: bool) -> None:
    assert head(*lines, request=f"GET /v2/ HTTP/{version}").keep_alive is keep_alive


# Any bytes


PIECES = st.sampled_from(
    [b"GET", b"HEAD", b" ", b"/v2/", b"http://h/", b"HTTP/1.1", b"HTTP/1.0", b"\r\n", b"\n", b"\r", b"Host: h", b"Host", b":",
     b"x", b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Connection: close", b"\t", b"\x00", b"\xff", b","]
)  # fmt: skip


@given(st.one_of(st.binary(), st.lists(PIECES).map(b"".join), st.binary().map(lambda data: raw() + b"\r\n" + data)))
@example(b"")
@example(raw("X: \xff", request="GET /\xff HTTP/1.1"))
def test_any_bytes_are_a_safe_head_or_refused(data: bytes) -> None:
    parsed = head_or_refusal(data)
    if isinstance(parsed, BadHead):
        assert parsed.status in (400, 431, 501, 505)
        return
    assert parsed.target.startswith("/")
    for text in (parsed.method, parsed.target, *(part for pair in parsed.headers for part in pair)):
        assert not set(text) & set("\r\n\x00")
    assert data.count(b"\n") == len(parsed.headers)


# Response heads


def test_a_response_head() -> None:
    answer = Answer(206, (("Content-Type", "a/b"), ("X-Cache", "HIT")), length=5)

    assert render_head(answer, keep_alive=True) == (
        b"HTTP/1.1 206 Partial Content\r\nContent-Type: a/b\r\nX-Cache: HIT\r\nContent-Length: 5\r\n\r\n"
    )


def test_a_response_head_says_what_becomes_of_the_connection() -> None:
    answer = Answer(200, ())

    assert b"Connection" not in render_head(answer, keep_alive=True)
    assert b"\r\nConnection: close\r\n" in render_head(answer, keep_alive=False)
    assert b"\r\nConnection: keep-alive\r\n" in render_head(answer, keep_alive=True, http10=True)


def test_a_response_without_a_body_announces_no_length() -> None:
    assert b"Content-Length" not in render_head(Answer(304, (), length=None), keep_alive=True)


def test_a_status_that_nobody_knows_has_a_reason_phrase() -> None:
    assert render_head(Answer(599, ()), keep_alive=True).startswith(b"HTTP/1.1 599 Status\r\n")


def test_text_that_no_header_can_hold_does_not_break_the_head() -> None:
    rendered = render_head(Answer(200, (("OCI-Namespace", "bücher🐳"),)), keep_alive=True)

    assert "OCI-Namespace: bücher?".encode("latin-1") in rendered


# Heads in pieces


def feed_to(buffer: HeadBuffer, data: bytes) -> None:
    """More of it arrives."""
    ReceiveBuffer.__iadd__(buffer, data)


HEADS = [b"GET /a HTTP/1.1\r\nHost: a", b"HEAD /b HTTP/1.1\r\nHost: " + b"b" * 300]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 10_000])
def test_heads_are_the_same_in_any_pieces(size: int) -> None:
    data = b"\r\n".join((b"", b"", *HEADS[:1])) + b"\r\n\r\n\r\n" + HEADS[1] + b"\r\n\r\n"
    buffer, found = HeadBuffer(), []
    for at in range(0, len(data), size):
        feed_to(buffer, data[at : at + size])
        while (head := buffer.next_head()) is not None:
            found.append(head)
    assert found == HEADS
    assert not buffer


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize("begun", [b"\n", b"GET /\n", b"GET / HTTP/1.1\r\na: b\n", b"\x16\x03\x01", b" GET"])
def test_what_is_refused_is_refused_in_any_pieces(size: int, begun: bytes) -> None:
    buffer = HeadBuffer()

    def feed() -> None:
        for at in range(0, len(begun), size):
            feed_to(buffer, begun[at : at + size])
            buffer.next_head()

    with pytest.raises(BadHead):
        feed()


def test_a_head_byte_by_byte_takes_linear_time() -> None:
    """30 s when each byte was a search of all before it."""
    buffer, started = HeadBuffer(), time.process_time()
    feed_to(buffer, b"GET / HTTP/1.1\r\na: ")
    for _ in range(60_000):
        feed_to(buffer, b"x")
        assert buffer.next_head() is None
    feed_to(buffer, b"\r\n\r\n")
    assert buffer.next_head() is not None
    assert time.process_time() - started < 1


def test_many_heads_at_once_take_linear_time() -> None:
    buffer, started = HeadBuffer(), time.process_time()
    feed_to(buffer, b"GET / HTTP/1.1\r\n\r\n" * 100_000)
    count = 0
    while buffer.next_head() is not None:
        count += 1
    assert count == 100_000
    assert time.process_time() - started < 1


def test_the_number_of_lines_is_bounded() -> None:
    parse_head(b"GET / HTTP/1.1\r\nHost: a" + b"\r\na: b" * (MAX_LINES - 1))
    with pytest.raises(BadHead) as refused:
        parse_head(b"GET / HTTP/1.1\r\nHost: a" + b"\r\na: b" * MAX_LINES)
    assert refused.value.status == 431
