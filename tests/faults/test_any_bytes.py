"""Whatever comes in, what goes out is HTTP: well-formed answers, then a close. Never a hang, never an error in the log."""

import socket
import ssl

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.client import Client, ClosedError, End, Reply, request
from tests.faults.scene import STREAMED, Scene, assert_whole
from tests.support.images import Blob

GET = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"
# A digest that nobody has, in a registry that is not there: quick to be refused.
OBJECT = b"/v2/a/blobs/sha256:" + b"0" * 64 + b"?ns=refused.test"


def answers(client: Client) -> list[Reply]:
    """Each answer until the connection ends. A client that cannot tell HEAD from GET here sends none."""
    found = []
    while True:
        try:
            found.append(client.read_reply())
        except ClosedError as closed:
            if closed.had:
                raise
            return found


def sent(scene: Scene, data: bytes) -> list[Reply]:
    """The answers to these bytes and a half-close."""
    with scene.cache.connect() as client:
        client.send(data)
        client.finish_sending()
        return answers(client)


def assert_refused(replies: list[Reply], *statuses: int) -> None:
    """One answer, an error, and a close."""
    (reply,) = replies
    assert reply.status in statuses
    assert reply.header("Connection") == "close"
    assert b'"errors"' in reply.body


# Any bytes

LINES = st.sampled_from(
    [
        b"GET / HTTP/1.1", b"GET /v2/ HTTP/1.0", b"GET " + OBJECT + b" HTTP/1.1", b"POST /v2/ HTTP/1.1", b"PUT / HTTP/1.1",
        b"GET  / HTTP/1.1", b"GET / HTTP/2.0", b"GET /", b"get / http/1.1", b"OPTIONS * HTTP/1.1", b"CONNECT x:443 HTTP/1.1",
        b"GET http://x/v2/ HTTP/1.1", b"PRI * HTTP/2.0", b"SM", b"Host: x", b"Host:", b"Host : x", b"Connection: close",
        b"Connection: keep-alive, Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: x", b"Content-Length: 5",
        b"Content-Length: -1", b"Content-Length: 5, 5", b"Content-Length: 99999999", b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked", b"Expect: 100-continue", b"TE: trailers", b" folded", b"\tfolded", b":",
        b"no colon",
        b"Range: bytes=0-0", b"Range: bytes=" + b"0-0," * 50, b"Accept: \xff\xfe", b"\x00", b"5", b"hello", b"0", b"",
    ]
)  # fmt: skip
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\r\n\r\n", b"\n", b"\r", b""])
PIECES = st.one_of(
    st.tuples(LINES, ENDS).map(b"".join),
    st.tuples(LINES, ENDS).map(b"".join),
    st.binary(max_size=40),
    st.just(GET),
)
STREAMS = st.lists(PIECES, max_size=12).map(b"".join)


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=STREAMS)
def test_any_bytes_get_answers_and_a_close(scene: Scene, data: bytes) -> None:
    for reply in sent(scene, data):
        assert reply.end is End.COMPLETE
        assert reply.status in (200, 400, 404, 405, 413, 417, 426, 431, 501, 502, 503, 505)


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=STREAMS, at=st.integers(0, 200))
def test_it_makes_no_difference_where_the_packets_end(scene: Scene, data: bytes, at: int) -> None:
    """The same answers whether the bytes come at once or in two parts; a half-close may end them sooner or later."""
    with scene.cache.connect() as client:
        client.send(data[:at])
        client.send(data[at:])
        client.finish_sending()
        split = [reply.status for reply in answers(client)]
    whole = [reply.status for reply in sent(scene, data)]
    shorter, longer = sorted((split, whole), key=len)
    assert longer[: len(shorter)] == shorter


# Known tricks


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: 5\r\nContent-Length: 5",
        b"Content-Length: 5, 5",
        b"Content-Length: +5",
        b"Content-Length: -5",
        b"Content-Length: 5 5",
        b"Content-Length: 0x5",
        b"Content-Length: ",
        b"Content-Length: \xb2",
        b"Content-Length: 99999999999999999999999999",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked, gzip",
        b"Transfer-Encoding:\x0bchunked",
        b"Transfer-Encoding : chunked",
        b"Content-Length : 5",
        b" Content-Length: 5",
        b"X: y\r\n Content-Length: 5",
        b"X: y\r\n\tfolded",
        b"X: a\x00b",
        b"X: a\rb",
        b"X\x00: a",
        b"X: a\x7fb",
        b": nameless",
        b"no colon",
        b"X(y): z",
        b"Host: y",
        b"X: y\nContent-Length: 5",
        b"X: y\n\nGET /healthz HTTP/1.1",
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_an_ambiguous_head_is_refused_and_closed(scene: Scene, headers: bytes, method: bytes) -> None:
    """What follows is never taken for a request."""
    head = method + b" /v2/ HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n\r\n"
    assert_refused(sent(scene, head + b"0\r\n\r\n" + GET), 400, 501)


@pytest.mark.parametrize(
    ("line", "statuses"),
    [
        (b"GET /v2/", (400,)),  # HTTP/0.9
        (b"GET /v2/ HTTP/1.1 ", (400,)),
        (b"GET  /v2/ HTTP/1.1", (400,)),
        (b"GET\t/v2/\tHTTP/1.1", (400,)),
        (b" GET /v2/ HTTP/1.1", (400,)),
        (b"GET /v2/\x00 HTTP/1.1", (400,)),
        (b"GET /v2/\x0b HTTP/1.1", (400,)),
        (b"GET /a b HTTP/1.1", (400,)),
        (b"GET /v2/ HTTP/1.10", (400,)),
        (b"GET /v2/ HTTP/11", (400,)),
        (b"GET /v2/ http/1.1", (400,)),
        (b"GET /v2/ HTTP/2.0", (505,)),
        (b"GET /v2/ HTTP/0.9", (505,)),
        (b"GET /v2/ ICY/1.1", (400,)),
        (b"GET v2/ HTTP/1.1", (400,)),
        (b"GET * HTTP/1.1", (400,)),
        (b"GET ftp://x/v2/ HTTP/1.1", (400,)),
        (b"GET http:///v2/ HTTP/1.1", (400,)),
        (b"G\xc3\x8bT /v2/ HTTP/1.1", (400,)),
        (b"PRI * HTTP/2.0", (400, 505)),
        (b"\x00\x00\x00", (400,)),
        (b"{}", (400,)),
    ],
)
def test_a_wrong_request_line_is_refused_and_closed(scene: Scene, line: bytes, statuses: tuple[int, ...]) -> None:
    assert_refused(sent(scene, line + b"\r\nHost: x\r\n\r\n" + GET), *statuses)


def test_a_request_without_host_is_refused(scene: Scene) -> None:
    """RFC 9112 section 3.2; HTTP/1.0 has none."""
    assert_refused(sent(scene, b"GET /v2/ HTTP/1.1\r\n\r\n" + GET), 400)
    with scene.cache.connect() as client:
        client.send(b"GET /v2/ HTTP/1.0\r\n\r\n")
        assert client.read_reply().status == 200


@pytest.mark.parametrize("scheme", [b"http", b"https", b"HTTP"])
def test_an_absolute_target_is_served(scene: Scene, scheme: bytes) -> None:
    """RFC 9112 section 3.2.2: servers must take it; and it is this cache that is meant, never another host."""
    blob = scene.blob(5000)
    line = b"GET " + scheme + b"://elsewhere.test:1" + scene.target(blob).encode() + b" HTTP/1.1"
    with scene.cache.connect() as client:
        client.send(line + b"\r\nHost: x\r\n\r\n")
        assert_whole(client.read_reply(), blob)
    assert len(scene.asked(blob)) == 1


@pytest.mark.parametrize("ending", [b"\n\n", b"\r\n\n", b"\n\r\n"])
def test_bare_line_feeds_are_refused_at_once(scene: Scene, ending: bytes) -> None:
    """Without waiting for more: the other side waits for an answer."""
    with scene.cache.connect() as client:
        client.send(b"GET /v2/ HTTP/1.1\nHost: x" + ending)
        assert client.read_reply().status == 400
        assert client.rest() == (b"", End.FIN)


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"], ids=["unfinished", "finished"])
@pytest.mark.parametrize("kind", ["one line", "many lines", "target", "value of a method"])
def test_a_huge_head_is_431(scene: Scene, kind: str, end: bytes) -> None:
    head = {
        "one line": b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000,
        "many lines": b"GET /v2/ HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 40_000,
        "target": b"GET /" + b"a" * 200_000,
        "value of a method": b"G" * 200_000,
    }[kind]
    assert_refused(sent(scene, head + end), 431)


def test_the_largest_head_is_served(scene: Scene) -> None:
    head = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: "
    with scene.cache.connect() as client:
        client.send(head + b"a" * ((64 << 10) - len(head)) + b"\r\n\r\n")
        assert client.read_reply().status == 200


def test_tls_is_told_so(scene: Scene) -> None:
    """An answer that is not TLS, at once: skopeo then tries http."""
    with socket.create_connection(("127.0.0.1", scene.cache.port), timeout=5) as raw:
        context = ssl.create_default_context()
        with pytest.raises(ssl.SSLError, match=r"(?i)wrong.version"):
            context.wrap_socket(raw, server_hostname="cache.test")


def test_http2_with_prior_knowledge_is_told_so(scene: Scene) -> None:
    replies = sent(scene, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
    assert_refused(replies, 400, 505)


def test_upgrades_are_ignored(scene: Scene) -> None:
    for upgrade in ("h2c", "websocket"):
        headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": upgrade, "HTTP2-Settings": "AAMAAABkAAQAAP__"}
        with scene.cache.connect() as client:
            assert client.exchange("/v2/", headers).status == 200
            assert client.exchange("/v2/").status == 200


def test_what_was_right_before_is_answered(scene: Scene) -> None:
    """Right, right, wrong, right: two answers, a refusal, and a close."""
    blob = scene.blob(5000)
    scene.assert_served(blob)
    right = request(scene.target(blob))
    replies = sent(scene, right + right + b"wrong\r\n\r\n" + right)
    assert [reply.status for reply in replies] == [200, 200, 400]


def test_a_miss_before_what_is_wrong_is_answered(scene: Scene) -> None:
    blob: Blob = scene.blob(STREAMED)
    with scene.cache.connect() as client:
        client.send(request(scene.target(blob)) + b"wrong\r\n\r\n")
        assert_whole(client.read_reply(), blob)
        assert client.read_reply().status == 400
        assert client.rest() == (b"", End.FIN)


@pytest.mark.parametrize("part", [1, 10, 25, len(GET) - 1])
def test_a_part_of_a_head_and_then_the_end_is_closed(scene: Scene, part: int) -> None:
    assert [reply.status for reply in sent(scene, GET[:part])] in ([], [400])


@pytest.mark.parametrize("data", [b"", b"\r\n", b"\r\n\r\n"])
def test_nothing_gets_nothing(scene: Scene, data: bytes) -> None:
    assert sent(scene, data) == []


@pytest.mark.parametrize("framing", ["chunked", "length"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_a_giant_upload_can_read_its_answer(scene: Scene, framing: str, method: str) -> None:
    """Although it goes on sending: no reset may eat the 405."""
    size = 8 << 20
    announced = {"Transfer-Encoding": "chunked"} if framing == "chunked" else {"Content-Length": str(size)}
    piece = bytes(1 << 16)
    with scene.cache.connect() as client:
        client.send(request("/v2/app/blobs/uploads/", announced, method=method))
        for _ in range(size // len(piece)):
            client.send(b"10000\r\n" + piece + b"\r\n" if framing == "chunked" else piece)
        reply = client.read_reply()
        assert (reply.status, reply.header("Allow")) == (405, "GET, HEAD")
        assert b"UNSUPPORTED" in reply.body
        client.finish_sending()
        assert client.rest() == (b"", End.FIN)


def test_a_client_that_waits_for_100_continue_is_not_left_waiting(scene: Scene) -> None:
    for size in ("10", str(8 << 20)):
        with scene.cache.connect() as client:
            client.ask("/v2/app/blobs/uploads/", {"Expect": "100-continue", "Content-Length": size}, method="POST")
            head = client.read_head()
            assert head.status in (100, 405, 417)
