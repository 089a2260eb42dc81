"""Upstream is wrong about where a body ends, or says nothing about it."""

import gzip

import pytest

from tests.faults.client import Stopwatch
from tests.faults.scene import STREAMED, Scene, assert_broken_off, assert_whole
from tests.support.images import Blob

SMALL = 5000
SIZES = pytest.mark.parametrize("size", [SMALL, STREAMED], ids=["small", "streamed"])


def assert_never_wrong(scene: Scene, blob: Blob) -> None:
    """A client has either an error that it can fall back from, or a connection that ended early. Nothing is kept."""
    reply = scene.get(blob)
    if reply.status == 200:
        assert_broken_off(reply, blob)
    else:
        assert reply.status == 502
    scene.assert_nothing_kept(blob)
    assert scene.get(blob, {"Range": f"bytes={max(1, len(reply.body) if reply.status == 200 else 1)}-"}).status == 502


@SIZES
@pytest.mark.parametrize("difference", [-1, -1000])
def test_a_length_that_is_too_short(scene: Scene, size: int, difference: int) -> None:
    blob = scene.blob(size)
    scene.fault(blob, length=size + difference)
    assert_never_wrong(scene, blob)


@SIZES
@pytest.mark.parametrize("difference", [1, 1000])
def test_a_length_that_is_too_long(scene: Scene, size: int, difference: int) -> None:
    """What came has its digest, so it is kept. A client that was told the length by then sees its connection end early."""
    blob = scene.blob(size)
    scene.fault(blob, length=size + difference)
    reply = scene.get(blob)
    assert (reply.status, reply.body) == (200, blob.data)
    assert reply.end == ("complete" if reply.length == size else "fin")
    scene.assert_served(blob)


@SIZES
@pytest.mark.parametrize("framing", ["chunked", "no_length"])
def test_a_body_without_a_length(scene: Scene, size: int, framing: str) -> None:
    """Clients get Content-Length all the same."""
    blob = scene.blob(size)
    scene.fault(blob, chunked=framing == "chunked", no_length=framing == "no_length")
    reply = scene.get(blob)
    assert_whole(reply, blob)
    assert reply.length == size
    scene.assert_served(blob)


def test_a_range_of_a_body_without_a_length(scene: Scene) -> None:
    blob = scene.blob()
    scene.fault(blob, chunked=True)
    reply = scene.get(blob, {"Range": "bytes=100-199"})
    assert (reply.status, reply.body) == (206, blob.data[100:200])
    assert reply.header("Content-Range") == f"bytes 100-199/{STREAMED}"


def with_trailers(data: bytes, media_type: str) -> bytes:
    """A whole response, chunked, with a trailer behind its body (RFC 9112 section 7.1.2)."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    return head.encode() + b"%x\r\n" % len(data) + data + b"\r\n0\r\nX-Sum: 1\r\n\r\n"


@SIZES
def test_trailers_of_a_blob_are_left_out(scene: Scene, size: int) -> None:
    blob = scene.blob(size)
    scene.fault(blob, garbage=with_trailers(blob.data, "application/octet-stream"))
    assert_whole(scene.get(blob), blob)
    scene.assert_served(blob)


def test_trailers_of_a_manifest_are_left_out(scene: Scene) -> None:
    image = scene.image()
    target = scene.tag_target(image.digest)
    scene.origin().fault(f"GET .*/manifests/{image.digest}", garbage=with_trailers(image.manifest, image.media_type))
    reply = scene.get(target)
    assert (reply.status, reply.end, reply.body) == (200, "complete", image.manifest)


@SIZES
def test_a_chunked_body_that_is_cut_is_resumed(scene: Scene, size: int) -> None:
    blob = scene.blob(size)
    scene.fault(blob, times=1, chunked=True, cut_after=size // 2)
    assert_whole(scene.get(blob), blob)
    assert scene.ranges(blob) == [None, f"bytes={size // 2}-"]
    scene.assert_served(blob)


def test_a_chunked_body_without_its_last_chunk(scene: Scene) -> None:
    """All bytes have come, only the end has not: the digest says that it is whole."""
    blob = scene.blob()
    scene.fault(blob, chunked=True, cut_after=STREAMED)
    assert_whole(scene.get(blob), blob)


@SIZES
def test_a_body_that_ends_by_close_too_early(scene: Scene, size: int) -> None:
    """Nothing but the digest tells that it is not the end."""
    blob = scene.blob(size)
    scene.fault(blob, no_length=True, cut_after=size // 2)
    assert_never_wrong(scene, blob)


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_what_follows_a_body_is_no_answer_to_the_next_request(scene: Scene, framing: str) -> None:
    """An answer smuggled behind a body must not become somebody else's."""
    first, second = scene.blob(SMALL), scene.blob(SMALL)
    smuggled = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SMALL + bytes(SMALL)
    scene.fault(first, extra=smuggled, chunked=framing == "chunked")
    assert_whole(scene.get(first), first)
    reply = scene.get(second)
    assert_whole(reply, second)
    assert len(scene.asked(second)) == 1


def test_what_follows_a_redirect_is_no_answer_to_the_next_request(scene: Scene) -> None:
    blob = scene.blob(SMALL)
    smuggled = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SMALL + bytes(SMALL)
    scene.fault(blob.digest + r"\?", redirect=f"/v2/{scene.repo}/blobs/{blob.digest}", extra=smuggled)
    scene.fault(f"{blob.digest}$", times=1, redirect=f"/v2/{scene.repo}/blobs/{blob.digest}?again", extra=smuggled)
    reply = scene.get(blob)
    assert reply.status in (200, 502)
    if reply.status == 200:
        assert_whole(reply, blob)


GARBAGE = {
    "text": b"Go away\r\n\r\n",
    "binary": bytes(range(256)) * 10,
    "empty-line": b"\r\n\r\n",
    "no-version": b"200 OK\r\n\r\n",
    "http2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "tls": b"\x15\x03\x03\x00\x02\x02\x28",
    "bad-status": b"HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n",
    "huge-status": b"HTTP/1.1 99999 OK\r\nContent-Length: 0\r\n\r\n",
    "bad-length": b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nabc",
    "negative-length": b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc",
    "two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "length-and-chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "unknown-coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: br\r\n\r\nabc",
    "bad-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n",
    "bad-header": b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
    "nul-in-header": b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 3\r\n\r\nabc",
    "head-only": b"HTTP/1.1 200 OK\r\nContent-Length: 3",
    "informational-only": b"HTTP/1.1 100 Continue\r\n\r\n",
    "switching": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "no-content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not-modified": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "partial": b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-2/3\r\nContent-Length: 3\r\n\r\nabc",
    "http-1.0": b"HTTP/1.0 200 OK\r\n\r\nabc",
    "http-0.9": b"abc",
    "long-line": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000 + b"\r\nContent-Length: 3\r\n\r\nabc",
}


@pytest.mark.parametrize("kind", GARBAGE)
@pytest.mark.parametrize("what", ["blob", "digest", "tag", "head", "tags"])
def test_garbage_instead_of_an_answer_is_a_quick_5xx(scene: Scene, kind: str, what: str) -> None:
    scene.fault(scene.repo, method="(GET|HEAD)", garbage=GARBAGE[kind])
    image = scene.image()
    blob_target, tag = scene.target(image.layers[0]), scene.tag_target("1.0")
    targets = {"blob": blob_target, "digest": scene.tag_target(image.digest), "tag": tag, "head": tag}
    target = targets.get(what, f"/v2/{scene.repo}/tags/list?ns={scene.ns()}")
    watch = Stopwatch()
    reply = scene.cache.get(target, method="HEAD" if what == "head" else "GET")
    assert watch.seconds < 2.5
    if what in ("blob", "digest"):
        assert 500 <= reply.status <= 504, reply.body
    else:
        # What is no object is passed on as it is, where it is HTTP at all; a 304 or 1xx never is.
        assert reply.status in (200, 204, 206, 502, 503, 504), reply.body
    assert not scene.cache.has(image.layers[0].digest)
    assert not scene.cache.has(image.digest)


@SIZES
def test_gzip_although_identity_was_asked_for(scene: Scene, size: int) -> None:
    """The digest is over the identity bytes: what arrives is decoded, and no more is promised of it than is known."""
    blob = scene.blob(size)
    scene.fault(blob, content_encoding="gzip")
    reply = scene.get(blob)
    assert_whole(reply, blob)
    assert reply.length == size
    scene.assert_served(blob)
    assert {r.header("Accept-Encoding") for r in scene.asked(blob)} == {"identity"}


@SIZES
def test_a_content_encoding_that_is_part_of_the_blob(scene: Scene, size: int) -> None:
    """Object stores label a gzipped layer so. The bytes are the blob: a client that decoded them would have others."""
    blob = scene.blob(size)
    scene.fault(blob, headers=[("Content-Encoding", "gzip")])
    reply = scene.get(blob, {"Accept-Encoding": "gzip"})
    assert_whole(reply, blob)
    scene.assert_served(blob)


def test_a_gzipped_manifest_is_unpacked(scene: Scene) -> None:
    image = scene.image()
    scene.fault(f"{scene.repo}/manifests/", content_encoding="gzip")
    for _ in range(2):
        reply = scene.get(scene.tag_target(image.digest), {"Accept-Encoding": "gzip"})
        assert (reply.status, reply.body) == (200, image.manifest)
        assert reply.header("Content-Encoding") is None


def test_a_manifest_that_unpacks_to_too_much_is_502(scene: Scene) -> None:
    """A bomb: a kilobyte for each megabyte. It must not become memory."""
    image = scene.image()
    bomb = gzip.compress(bytes(200 << 20), compresslevel=9)
    scene.fault(f"{scene.repo}/manifests/", body=bomb, headers=[("Content-Encoding", "gzip")])
    assert scene.get(scene.tag_target(image.digest)).status == 502


def test_a_manifest_without_end_is_502(scene: Scene) -> None:
    image = scene.image()
    scene.fault(f"{scene.repo}/manifests/", body=bytes(20 << 20), chunked=True)
    assert scene.get(scene.tag_target(image.digest)).status == 502
