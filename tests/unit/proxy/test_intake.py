"""What is taken of an upstream's response head."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http

from cacheyd.protocol.headers import HeaderList
from cacheyd.proxy.outbound.intake import MAX_LINES, MAX_VALUE, problem_of, take_head, with_one_length
from cacheyd.upstream.port import UpstreamBroken


def taken(*fields: tuple[bytes, bytes], status: int = 200) -> HeaderList:
    response = http.Response(b"HTTP/1.1", status, b"OK", http.Headers(fields), None, None, 0, 0)
    found, headers = take_head(response)
    assert found == status
    return headers


@pytest.mark.parametrize("status", [-5, 0, 42, 100, 103, 199, 600, 999, 1000])
def test_a_status_that_is_no_final_one_is_refused(status: int) -> None:
    with pytest.raises(UpstreamBroken):
        taken(status=status)


@pytest.mark.parametrize("status", [200, 226, 299, 304, 418, 499, 599])
def test_other_statuses_are_taken(status: int) -> None:
    assert taken(status=status) == ()


@pytest.mark.parametrize("value", [b"a\rb", b"a\nb", b"a\x00b", b"a\r\n b", b"a\r\nX: y"])
def test_a_break_in_a_value_refuses_the_response(value: bytes) -> None:
    with pytest.raises(UpstreamBroken):
        taken((b"X", value))


@pytest.mark.parametrize("name", [b"", b"a b", b"a\r\nb", b"a:", b"(x)", b"\xc3\xbc"])
def test_a_name_that_is_none_refuses_the_response(name: bytes) -> None:
    with pytest.raises(UpstreamBroken):
        taken((name, b"x"))


def test_too_many_lines_refuse_the_response() -> None:
    assert len(taken(*[(b"X", b"y")] * MAX_LINES)) == MAX_LINES
    with pytest.raises(UpstreamBroken):
        taken(*[(b"X", b"y")] * (MAX_LINES + 1))


@pytest.mark.parametrize("value", [b"a\x01b", b"a\x7fb", b"\x1b[31m", b"a" * (MAX_VALUE + 1)])
def test_a_value_that_is_of_no_use_is_left_out(value: bytes) -> None:
    assert taken((b"X", value), (b"Y", b"z")) == (("Y", "z"),)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"x",
        b"/",
        b"a/",
        b"/b",
        b"a/b c",
        b"a b/c",
        b"a/b, c/d",
        b"text/html\xff",
        b"a/" + b"b" * 254,
        b"a/b;" + b"c" * 252,
    ],
)
def test_a_content_type_that_is_none_is_left_out(value: bytes) -> None:
    assert taken((b"Content-Type", value)) == ()


@pytest.mark.parametrize(
    "value", ["application/vnd.oci.image.index.v1+json", "text/html; charset=utf-8", "a/b;", "A/B ; c=\xff"]
)
def test_content_types(value: str) -> None:
    assert taken((b"content-type", value.encode("latin-1"))) == (("content-type", value),)


def test_bytes_stay_what_they_are_and_the_first_of_a_single_header_counts() -> None:
    fields = (
        (b"X", b"\xff\xc3\xbc"),
        (b"WWW-Authenticate", b"a"),
        (b"www-authenticate", b"b"),
        (b"ETag", b"1"),
        (b"etag", b"2"),
    )
    assert taken(*fields) == (("X", "\xff\xc3\xbc"), ("WWW-Authenticate", "a"), ("www-authenticate", "b"), ("ETag", "1"))


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=50)), max_size=10), st.integers(-1000, 70_000))
def test_any_head_is_refused_or_well_formed(fields: list[tuple[bytes, bytes]], status: int) -> None:
    try:
        headers = taken(*fields, status=status)
    except UpstreamBroken:
        return
    for name, value in headers:
        assert name.isascii()
        assert value == value.strip(" \t")
        assert not set(value.encode("latin-1")) & {*range(9), *range(10, 32), 127}


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nX: y\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\nX: y\n\tfolded\n\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: a" + b" " * 200 + b"b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"transfer-encoding: a     b\r\n" * 20 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5,\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 19 + b"\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 +200 OK\r\n\r\n",
        b"HTTP/1.1 2_0 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 2000\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"Go away\r\n\r\n",
    ],
)
def test_heads_that_are_refused_before_they_are_parsed(head: bytes) -> None:
    assert problem_of(head)
    assert problem_of(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n") is None


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (b"Content-Length: 5\r\nContent-Length: 5\r\n", b"Content-Length: 5\r\n"),
        (b"Content-Length: 5, 5 ,5\r\nX: y\r\n", b"Content-Length: 5\r\nX: y\r\n"),
        (b"X: y\ncontent-length:005\n", b"Content-Length: 5\r\nX: y\n"),
        (b"Content-Length: 0, 00\r\n", b"Content-Length: 0\r\n"),
    ],
)
def test_the_same_length_several_times_is_one(lines: bytes, expected: bytes) -> None:
    assert with_one_length(OK + lines + b"\r\n") == OK + expected + b"\r\n"


@pytest.mark.parametrize(
    "lines", [b"", b"Content-Length: 5\r\n", b"Content-Length: 5, 6\r\n", b"Content-Length: 5\r\nContent-Length: 6\r\n"]
)
def test_other_heads_stay_what_they_are(lines: bytes) -> None:
    """mitmproxy refuses different lengths."""
    assert with_one_length(head := OK + lines + b"\r\n") is head
