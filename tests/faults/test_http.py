"""HTTP/1 as clients speak it: connections, pipelines, conditions and ranges (RFC 9110, RFC 9112)."""

import json
import time
from email import message_from_bytes

import pytest

from tests.faults.client import ClosedError, End, request
from tests.faults.scene import STREAMED, Scene, assert_whole
from tests.support.images import Blob

SMALL = 5000
SIZES = [SMALL, 100_000, STREAMED]


@pytest.fixture
def kept(scene: Scene) -> Blob:
    """A small blob that is in the cache."""
    blob = scene.blob(SMALL)
    scene.assert_served(blob)
    return blob


# Connections


def test_a_connection_is_kept(scene: Scene, kept: Blob) -> None:
    """Hits, misses, errors and pages, one after the other."""
    cold = scene.blob(SMALL)
    with scene.cache.connect() as client:
        for _ in range(3):
            assert_whole(client.exchange(scene.target(kept)), kept)
            assert_whole(client.exchange(scene.target(cold)), cold)
            assert client.exchange("/nothing").status == 404
            assert client.exchange("/v2/").status == 200
            assert client.exchange(scene.tag_target("none")).status == 404
            assert client.exchange(scene.target(kept), method="HEAD").status == 200
            assert client.exchange(scene.target(kept), {"Range": "bytes=99999-"}).status == 416


def test_many_pipelined_hits_in_one_packet(scene: Scene, kept: Blob) -> None:
    targets = [scene.target(kept)] * 100
    with scene.cache.connect() as client:
        client.send(b"".join(request(target) for target in targets))
        for _ in targets:
            assert_whole(client.read_reply(), kept)
        assert_whole(client.exchange(scene.target(kept)), kept)


@pytest.mark.parametrize("size", SIZES)
def test_a_pipeline_is_answered_in_order(scene: Scene, kept: Blob, size: int) -> None:
    """A hit behind a miss waits for it."""
    cold, large = scene.blob(size), scene.blob(4 * STREAMED)
    scene.assert_served(large)
    with scene.cache.connect() as client:
        order = [kept, cold, kept, large, large, kept, cold]
        client.send(b"".join(request(scene.target(blob)) for blob in order))
        for blob in order:
            assert_whole(client.read_reply(), blob)


def test_a_pipeline_of_heads_and_gets(scene: Scene, kept: Blob) -> None:
    methods = ["HEAD", "GET", "HEAD", "HEAD", "GET", "GET"]
    with scene.cache.connect() as client:
        client.send(b"".join(request(scene.target(kept), method=method) for method in methods))
        for method in methods:
            reply = client.read_reply(method=method)
            assert (reply.status, reply.length, reply.body) == (200, SMALL, kept.data if method == "GET" else b"")


def test_hits_that_end_with_a_half_close_are_answered(scene: Scene, kept: Blob) -> None:
    with scene.cache.connect() as client:
        client.send(request(scene.target(kept)) * 3)
        client.finish_sending()
        for _ in range(3):
            assert_whole(client.read_reply(), kept)
        assert client.rest() == (b"", End.FIN)


def test_a_miss_that_ends_with_a_half_close_is_closed_and_kept(scene: Scene) -> None:
    """mitmproxy takes a FIN for the end of the client's interest; what was begun is fetched all the same."""
    blob = scene.blob(STREAMED)
    with scene.asking(blob) as client:
        client.finish_sending()
        data, end = client.rest()
        assert end is End.FIN
        assert data == b"" or data.startswith(b"HTTP/1.1 200 ")
    scene.assert_served(blob)


@pytest.mark.parametrize("step", [1, 7])
def test_heads_that_dribble_in(scene: Scene, kept: Blob, step: int) -> None:
    cold = scene.blob(SMALL)
    data = b"\r\n" + request(scene.target(kept)) + request(scene.target(cold)) + request(scene.target(kept), method="HEAD")
    with scene.cache.connect() as client:
        for at in range(0, len(data), step):
            client.send(data[at : at + step])
        assert_whole(client.read_reply(), kept)
        assert_whole(client.read_reply(), cold)
        assert client.read_reply(method="HEAD").length == SMALL


@pytest.mark.parametrize("pieces", [(b"\r", b"\n"), (b"\r\n\r", b"\n"), (b"\r\n", b"\r\n\r"), (b"\r\n" * 500_000,)])
def test_empty_lines_before_a_request(scene: Scene, kept: Blob, pieces: tuple[bytes, ...]) -> None:
    """However they arrive (RFC 9112 section 2.2)."""
    with scene.cache.connect() as client:
        for piece in pieces:
            client.send(piece)
            time.sleep(0.05)
        rest = b"\n" if pieces[-1].endswith(b"\r") else b""
        client.send(rest + request(scene.target(kept)))
        assert_whole(client.read_reply(), kept)


def test_half_an_empty_line_is_no_request(scene: Scene) -> None:
    with scene.cache.connect() as client:
        client.send(b"\r")
        time.sleep(0.05)
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        assert client.read_reply().status == 400


def test_a_body_that_nobody_wants_does_not_disturb_the_next_request(scene: Scene, kept: Blob) -> None:
    with scene.cache.connect() as client:
        client.send(request(scene.target(kept), {"Content-Length": "5"}) + b"GET /" + request(scene.target(kept)))
        for _ in range(2):
            assert_whole(client.read_reply(), kept)


@pytest.mark.parametrize("what", ["hit", "miss", "page", "error"])
@pytest.mark.parametrize(
    ("version", "connection", "stays"),
    [
        ("1.1", None, True),
        ("1.1", "close", False),
        ("1.1", "Close, TE", False),
        ("1.1", "keep-alive", True),
        ("1.0", None, False),
        ("1.0", "keep-alive", True),
        ("1.0", "Keep-Alive", True),
        ("1.0", "close", False),
    ],
)
def test_who_closes(scene: Scene, kept: Blob, what: str, version: str, connection: str | None, stays: bool) -> None:
    cold = scene.blob(SMALL)
    target = {"hit": scene.target(kept), "miss": scene.target(cold), "page": "/v2/", "error": "/nothing"}[what]
    lines = [f"GET {target} HTTP/{version}", "Host: cache.test", *([f"Connection: {connection}"] if connection else [])]
    with scene.cache.connect() as client:
        client.send("\r\n".join((*lines, "", "")).encode())
        reply = client.read_reply()
        assert (reply.status, reply.end) == (404 if what == "error" else 200, End.COMPLETE)
        answered = (reply.header("Connection") or "").lower()
        if stays:
            assert answered == ("keep-alive" if version == "1.0" else "")
            assert client.exchange("/v2/").status == 200
        else:
            # RFC 9112 section 9.6: who will close says so. To a 1.0 client, it need not.
            assert answered == "close" or version == "1.0"
            assert client.rest() == (b"", End.FIN)


def test_http10_gets_no_chunks(scene: Scene) -> None:
    blob = scene.blob(STREAMED)
    scene.fault(blob, chunked=True, stall_at=STREAMED, stall_for=0.1)
    with scene.cache.connect() as client:
        client.send(f"GET {scene.target(blob)} HTTP/1.0\r\n\r\n".encode())
        reply = client.read_reply()
        assert reply.header("Transfer-Encoding") is None
        assert reply.body == blob.data


def test_http10_tag_list_without_length_ends_by_close(scene: Scene) -> None:
    scene.image()
    scene.fault("tags/list", chunked=True)
    with scene.cache.connect() as client:
        client.send(f"GET /v2/{scene.repo}/tags/list?ns={scene.ns()} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".encode())
        reply = client.read_reply()
        assert reply.header("Transfer-Encoding") is None
        assert json.loads(reply.body)["tags"] == ["1.0"]
        assert reply.end is (End.COMPLETE if reply.header("Content-Length") else End.FIN)


def test_a_closed_connection_is_not_answered_twice(scene: Scene, kept: Blob) -> None:
    with scene.cache.connect() as client:
        client.send(request(scene.target(kept), {"Connection": "close"}) + request(scene.target(kept)))
        assert_whole(client.read_reply(), kept)
        with pytest.raises(ClosedError) as closed:
            client.read_head()
        assert closed.value.had == b""


# HEAD, conditions, ranges


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["blob", "tag", "digest"])
def test_head_is_get_without_the_body(scene: Scene, size: int, kind: str) -> None:
    blob, image = scene.blob(size), scene.image()
    target = scene.target(blob) if kind == "blob" else scene.tag_target("1.0" if kind == "tag" else image.digest)
    assert scene.get(target).status == 200
    scene.wait_kept(blob if kind == "blob" else Blob(image.manifest))
    varying = ("age", "date", "x-proxy-date")
    get, head = (scene.get(target, method=method) for method in ("GET", "HEAD"))
    assert [h for h in head.headers if h[0] not in varying] == [h for h in get.headers if h[0] not in varying]
    assert head.length == len(get.body)
    assert head.header("ETag") == f'"{head.header("Docker-Content-Digest")}"'


@pytest.mark.parametrize("kind", ["blob", "tag", "digest"])
def test_if_none_match(scene: Scene, kind: str) -> None:
    blob, image = scene.blob(SMALL), scene.image()
    digest = blob.digest if kind == "blob" else image.digest
    target = scene.target(blob) if kind == "blob" else scene.tag_target("1.0" if kind == "tag" else digest)
    assert scene.get(target).status == 200
    scene.wait_kept(blob if kind == "blob" else Blob(image.manifest))
    for value in (f'"{digest}"', f'W/"{digest}"', f'"other", "{digest}"', "*"):
        for method in ("GET", "HEAD"):
            with scene.cache.connect() as client:
                client.ask(target, {"If-None-Match": value}, method=method)
                reply = client.read_reply()
                assert (reply.status, reply.header("ETag")) == (304, f'"{digest}"')
                assert client.exchange(target).status == 200
    assert scene.get(target, {"If-None-Match": '"other"'}).status == 200


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("0-0", 0, 1), ("500-1499", 500, 1500), ("500-", 500, None), ("-500", -500, None), ("4000-9999999", 4000, None)],
)
def test_a_range_of_a_kept_blob(scene: Scene, size: int, asked: str, start: int, end: int | None) -> None:
    blob = scene.blob(size)
    scene.assert_served(blob)
    first, last = slice(start, end).indices(size)[:2]
    reply = scene.get(blob, {"Range": f"bytes={asked}"})
    assert (reply.status, reply.cache) == (206, "HIT")
    assert reply.header("Content-Range") == f"bytes {first}-{last - 1}/{size}"
    assert reply.body == blob.data[first:last]


@pytest.mark.parametrize("asked", ["5000-", "5000-10000", "500-0", "-0"])
def test_a_range_that_is_not_there_is_416(scene: Scene, kept: Blob, asked: str) -> None:
    reply = scene.get(kept, {"Range": f"bytes={asked}"})
    assert (reply.status, reply.header("Content-Range"), reply.length) == (416, f"bytes */{SMALL}", 0)


@pytest.mark.parametrize("asked", ["items=0-1", "bytes=a-b", "bytes=-", "bytes", "bytes=0-1,x", "bytes=1-2-3", "0-1"])
def test_a_range_that_is_none_is_ignored(scene: Scene, kept: Blob, asked: str) -> None:
    """RFC 9110 section 14.2."""
    assert_whole(scene.get(kept, {"Range": asked}), kept)


def test_a_range_of_a_head_is_ignored(scene: Scene, kept: Blob) -> None:
    reply = scene.get(kept, {"Range": "bytes=0-1"}, method="HEAD")
    assert (reply.status, reply.length) == (200, SMALL)


@pytest.mark.parametrize("state", ["kept", "cold"])
def test_if_range(scene: Scene, state: str) -> None:
    blob = scene.blob(SMALL)
    if state == "kept":
        scene.assert_served(blob)
    part = {"Range": "bytes=10-19"}
    for value in ('"other"', f'W/"{blob.digest}"', "Wed, 21 Oct 2015 07:28:00 GMT", blob.digest):
        assert_whole(scene.get(blob, {**part, "If-Range": value}), blob)
    reply = scene.get(blob, {**part, "If-Range": f'"{blob.digest}"'})
    assert (reply.status, reply.body) == (206, blob.data[10:20])


@pytest.mark.parametrize("size", SIZES)
def test_several_ranges_are_multipart_or_the_whole(scene: Scene, size: int) -> None:
    """Never one 206 part: podman would take it for all of them."""
    blob = scene.blob(size)
    asked = {"Range": "bytes=0-9, 100-199,-5"}
    assert_whole(scene.get(blob, asked), blob)
    scene.wait_kept(blob)
    reply = scene.get(blob, asked)
    assert reply.status == 206
    content_type = reply.header("Content-Type") or ""
    assert content_type.startswith("multipart/byteranges; boundary=")
    message = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + reply.body.replace(b"\0", b"\0"))
    assert message.is_multipart()
    boundary = content_type.partition("boundary=")[2].encode()
    parts = reply.body.split(b"--" + boundary)[1:-1]
    ranges = [(0, 10), (100, 200), (size - 5, size)]
    assert len(parts) == len(ranges)
    for part, (start, end) in zip(parts, ranges, strict=True):
        head, _, body = part.removesuffix(b"\r\n").partition(b"\r\n\r\n")
        assert f"Content-Range: bytes {start}-{end - 1}/{size}".encode() in head
        assert body == blob.data[start:end]


def test_a_thousand_ranges_are_no_more_than_the_whole(scene: Scene, kept: Blob) -> None:
    """RFC 9110 section 14.2: an attack, or a client that is better off with all of it."""
    assert_whole(scene.get(kept, {"Range": "bytes=" + ",".join(["0-"] * 1000)}), kept)
    assert_whole(scene.get(kept, {"Range": "bytes=" + ",".join(["0-"] * 10)}), kept)
