"""Upstream sends wrong bytes: nobody gets a complete wrong object, nothing of it is kept, and it is counted."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.client import Client
from tests.faults.scene import HOLD, STREAMED, Scene, assert_broken_off, assert_whole
from tests.support.images import OCI_MANIFEST, Blob, digest_of

SMALL = 5000


def failures(scene: Scene) -> float:
    return scene.cache.metric("cacheyd_verify_failures_total")


@contextmanager
def counted_once(scene: Scene) -> Iterator[None]:
    """What runs inside makes one verification failure."""
    before = failures(scene)
    yield
    assert failures(scene) == before + 1


@pytest.mark.parametrize("at", [0, STREAMED // 2, STREAMED - HOLD - 1, STREAMED - HOLD, STREAMED - 1])
def test_the_end_of_a_wrong_blob_is_held_back(scene: Scene, at: int) -> None:
    blob = scene.blob()
    scene.fault(blob, times=1, corrupt_at=at)
    with counted_once(scene):
        reply = scene.get(blob)
        assert_broken_off(reply, blob)
    scene.assert_nothing_kept(blob)
    # Upstream is well again, but the client has wrong bytes: it is to get the rest elsewhere, where it will notice.
    resume = {"Range": f"bytes={len(reply.body)}-"}
    assert scene.get(blob, resume).status == 502
    assert len(scene.asked(blob)) == 1
    # Who begins anew has none of them, and is served. The rest is refused all the same, also from disk.
    scene.assert_served(blob)
    assert scene.get(blob, resume).status == 502
    assert_whole(scene.get(blob, {"Range": "bytes=0-"} | {"If-Range": '"another"'}), blob)


@pytest.mark.parametrize("size", [1, SMALL, HOLD])
def test_a_small_wrong_blob_is_502(scene: Scene, size: int) -> None:
    """Nothing of it is sent, so that the client still has its fallback."""
    blob = scene.blob(size)
    scene.fault(blob, corrupt_at=size // 2)
    with counted_once(scene):
        reply = scene.get(blob)
    assert reply.status == 502
    assert json.loads(reply.body)["errors"][0]["code"] == "DIGEST_INVALID"
    scene.assert_nothing_kept(blob)


def test_another_blob_instead(scene: Scene) -> None:
    blob = scene.blob()
    scene.fault(blob, body=bytes(len(blob.data)))
    assert_broken_off(scene.get(blob), blob)
    scene.assert_nothing_kept(blob)


def test_the_wrong_end_after_a_right_resume(scene: Scene) -> None:
    blob = scene.blob()
    scene.fault(blob, corrupt_at=1000)
    scene.fault(blob, times=1, cut_after=300_000)
    with counted_once(scene):
        assert_broken_off(scene.get(blob), blob)
    scene.assert_nothing_kept(blob)


def test_no_waiting_client_gets_it(scene: Scene) -> None:
    blob = scene.blob()
    go = scene.hold(blob, STREAMED // 2, corrupt_at=100)
    clients: list[Client] = []
    try:
        for start in (0, 1, STREAMED - HOLD, STREAMED - 1):
            clients.append(scene.cache.connect())
            clients[-1].ask(scene.target(blob), {"Range": f"bytes={start}-"})
        heads = [client.read_head() for client in clients]
        go.set()
        with_bodies = [client.read_body(head) for client, head in zip(clients, heads, strict=True)]
        assert {(reply.status, reply.end) for reply in with_bodies} == {(206, "fin")}
        assert with_bodies[2].body == with_bodies[3].body == b""
    finally:
        for client in clients:
            client.leave()
    scene.assert_nothing_kept(blob)


def test_a_range_before_the_held_end_is_no_complete_object(scene: Scene) -> None:
    """Nothing that was asked for by its digest is complete before the digest is verified, a part of it no more than all."""
    blob = scene.blob()
    scene.fault(blob, corrupt_at=STREAMED - 1)
    for wanted in ("bytes=0-99", f"bytes=0-{STREAMED - 1}", f"bytes={STREAMED - 1}-{STREAMED - 1}", "bytes=-1"):
        reply = scene.get(blob, {"Range": wanted})
        assert reply.status == 502 or (reply.status, reply.end) == (206, "fin"), wanted
    scene.assert_nothing_kept(blob)


@pytest.mark.parametrize("encoding", ["chunked", "no_length"])
def test_a_wrong_blob_of_unknown_length_is_502(scene: Scene, encoding: str) -> None:
    blob = scene.blob()
    scene.fault(blob, corrupt_at=10, chunked=encoding == "chunked", no_length=encoding == "no_length")
    with counted_once(scene):
        assert scene.get(blob).status == 502
    scene.assert_nothing_kept(blob)


@pytest.mark.parametrize("by", ["digest", "tag"])
def test_a_wrong_manifest_is_502(scene: Scene, by: str) -> None:
    """It is verified before its first byte is sent."""
    image = scene.image()
    scene.fault(f"{scene.repo}/manifests/", corrupt_at=30)
    reference = "1.0" if by == "tag" else image.digest
    with counted_once(scene):
        reply = scene.get(scene.tag_target(reference))
    assert reply.status == 502
    assert json.loads(reply.body)["errors"][0]["code"] == "DIGEST_INVALID"
    assert not scene.cache.has(image.digest)


def test_a_manifest_that_is_right_again_is_served(scene: Scene) -> None:
    image = scene.image()
    scene.fault(f"{scene.repo}/manifests/", times=1, corrupt_at=30)
    assert scene.get(scene.tag_target("1.0")).status == 502
    reply = scene.get(scene.tag_target("1.0"))
    assert (reply.status, reply.body) == (200, image.manifest)


def test_a_digest_header_that_lies_about_a_manifest_asked_for_by_digest(scene: Scene) -> None:
    """What the client asked for counts, and is what it is told."""
    image = scene.image()
    other = digest_of(b"something else")
    scene.fault(f"{scene.repo}/manifests/", headers=[("Docker-Content-Digest", other)])
    reply = scene.get(scene.tag_target(image.digest))
    assert (reply.status, reply.body) == (200, image.manifest)
    assert reply.header("Docker-Content-Digest") == image.digest


def test_a_digest_header_that_lies_about_a_blob(scene: Scene) -> None:
    blob = scene.blob()
    scene.fault(blob, headers=[("Docker-Content-Digest", digest_of(b"something else"))])
    scene.assert_served(blob)


def test_another_manifest_under_the_digest(scene: Scene) -> None:
    """The right bytes of the wrong manifest, with a header that agrees with them."""
    wanted, other = scene.image(), scene.image("2.0")
    headers = [("Docker-Content-Digest", other.digest), ("Content-Type", OCI_MANIFEST)]
    scene.fault(f"manifests/{wanted.digest}", body=other.manifest, headers=headers)
    assert scene.get(scene.tag_target(wanted.digest)).status == 502


def test_a_wrong_blob_does_not_spoil_its_neighbour_on_the_connection(scene: Scene) -> None:
    bad, good = scene.blob(SMALL), scene.blob(SMALL)
    scene.fault(bad, corrupt_at=1)
    with scene.cache.connect() as client:
        assert client.exchange(scene.target(bad)).status == 502
        assert_whole(client.exchange(scene.target(good)), good)


def test_the_empty_blob(scene: Scene) -> None:
    blob = Blob(b"")
    scene.origin().add_blob(scene.repo, blob.data)
    reply = scene.get(blob)
    assert_whole(reply, blob)
    assert reply.length == 0
