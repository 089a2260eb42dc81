"""HTTP/1 as clients speak it: connections, pipelines, conditions, ranges, and what is not served (RFC 9110, RFC 9112)."""

import json
import re
from email import message_from_bytes
from itertools import pairwise

import pytest

from tests.faults.client import ClosedError, End, Reply, request
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


def assert_oci_error(reply: Reply, *codes: str) -> None:
    """distribution-spec, "Error Codes"."""
    (error,) = json.loads(reply.body)["errors"]
    assert error["code"] in codes
    assert error["message"]
    assert reply.header("Content-Type") == "application/json"


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


@pytest.mark.parametrize("order", ["hit", "miss", "hit hit", "hit miss", "miss hit", "miss miss"])
def test_what_ends_with_a_half_close_is_answered(scene: Scene, kept: Blob, order: str) -> None:
    blobs = [kept if what == "hit" else scene.blob(STREAMED) for what in order.split()]
    with scene.cache.connect() as client:
        client.send(b"".join(request(scene.target(blob)) for blob in blobs))
        client.finish_sending()
        for blob in blobs:
            assert_whole(client.read_reply(), blob)
        assert client.rest() == (b"", End.FIN)


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


# What is not served


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("path", ["/", "/v2/", "/v2/app/blobs/uploads/", "/nothing", "/metrics", "tag"])
def test_uploads_are_405_everywhere(scene: Scene, method: str, path: str) -> None:
    target = scene.tag_target("1.0") if path == "tag" else path
    with scene.cache.connect() as client:
        client.send(request(target, {"Content-Length": "4"}, method=method) + b"{}\r\n")
        reply = client.read_reply()
    assert reply.status == 405
    assert reply.header("Allow") == "GET, HEAD"
    assert_oci_error(reply, "UNSUPPORTED")
    assert scene.asked() == []


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1/", "/v2/app", "/v2/app/what/1.0", "/v2/_catalog", "/v2/app/tags/", "//", "/%00"]
)
def test_an_unknown_path_is_404(scene: Scene, path: str) -> None:
    reply = scene.get(path)
    assert reply.status == 404
    assert_oci_error(reply, "UNSUPPORTED", "NAME_UNKNOWN")


@pytest.mark.parametrize("what", ["manifests/1.0", "blobs/sha256:" + "0" * 64, "tags/list", "referrers/sha256:" + "0" * 64])
@pytest.mark.parametrize("query", ["", "?", "?ns=", "?other=1"])
def test_no_registry_is_400_and_says_what_is_missing(scene: Scene, what: str, query: str) -> None:
    reply = scene.get(f"/v2/app/{what}{query}")
    assert reply.status == 400
    assert_oci_error(reply, "NAME_INVALID")
    assert b"ns" in reply.body


@pytest.mark.parametrize(
    ("what", "statuses"),
    [
        ("manifests/sha256:baddigest", {400, 404}),
        ("manifests/.INVALID", {404}),
        ("manifests/" + "a" * 129, {404}),
        ("blobs/1.0", {400, 404}),
        ("blobs/sha256:" + "A" * 64, {400, 404}),
        ("blobs/md5:" + "0" * 32, {400, 404}),
        ("referrers/1.0", {400, 404}),
    ],
)
def test_what_no_registry_can_have_asks_nobody(scene: Scene, what: str, statuses: set[int]) -> None:
    reply = scene.get(f"/v2/{scene.repo}/{what}?ns={scene.ns()}")
    assert reply.status in statuses
    assert_oci_error(reply, "DIGEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID")
    assert scene.asked() == []


@pytest.mark.parametrize(
    "name", ["UPPER", "a//b", "../../etc", "a/../b", "-a", "a" * 256, "a b", "%2e%2e/x", "a\\b", "caf%C3%A9"]
)
def test_a_name_that_is_none_asks_nobody(scene: Scene, name: str) -> None:
    before = len(scene.origin().requests)
    with scene.cache.connect() as client:
        client.send(f"GET /v2/{name}/manifests/1.0?ns={scene.ns()} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.read_reply().status in (400, 404)
    assert len(scene.origin().requests) == before


# Pages of its own


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/v2/", "application/json", rb"\{\}"),
        ("/v2", "application/json", rb"\{\}"),
        ("/v2/?x=y", "application/json", rb"\{\}"),
        ("/healthz", "text/plain", rb"ok\n"),
        ("/readyz", "text/plain", rb"ready\n"),
        ("/metrics", "text/plain", rb"(?s).*\ncache_hits [0-9].*\ncacheyd_flights .*"),
        ("/", "text/plain", rb"cacheyd\n"),
    ],
)
def test_pages(scene: Scene, path: str, content_type: str, body: bytes) -> None:
    get, head = scene.get(path), scene.get(path, method="HEAD")
    assert get.status == head.status == 200
    assert (get.header("Content-Type") or "").startswith(content_type)
    assert re.fullmatch(body, get.body)
    assert head.header("Content-Type") == get.header("Content-Type")
    if path.startswith("/v2"):
        assert get.header("Docker-Distribution-API-Version") == "registry/2.0"


def test_the_status_page_is_for_browsers(scene: Scene) -> None:
    reply = scene.get("/", {"Accept": "text/html,application/xhtml+xml"})
    assert (reply.header("Content-Type") or "").startswith("text/html")
    assert b"<html" in reply.body


def test_metrics_only_grow(scene: Scene, kept: Blob) -> None:
    counts = []
    for _ in range(3):
        scene.get(kept)
        counts.append(scene.cache.metric("cache_hits"))
    assert all(after > before for before, after in pairwise(counts))


def test_a_closed_connection_is_not_answered_twice(scene: Scene, kept: Blob) -> None:
    with scene.cache.connect() as client:
        client.send(request(scene.target(kept), {"Connection": "close"}) + request(scene.target(kept)))
        assert_whole(client.read_reply(), kept)
        with pytest.raises(ClosedError) as closed:
            client.read_head()
        assert closed.value.had == b""
