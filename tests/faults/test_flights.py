"""One fetch however many clients wait, and no client that suffers from another one."""

from contextlib import ExitStack

import pytest

from tests.faults.scene import HOLD, STREAMED, Scene, assert_broken_off, assert_whole, bearer, blob_target, manifest_target
from tests.support.images import OCI_MANIFEST, Blob
from tests.support.origin_faults import How

CUT = 300_000
REFUSALS = (401, 403, 404, 429)
OTHER = "flaky"


# One fetch


@pytest.mark.parametrize("size", [5000, 3 * STREAMED])
def test_thirty_clients_on_a_cold_blob_are_one_request(scene: Scene, size: int) -> None:
    blob = scene.blob(size)
    go = scene.hold(blob, -1)
    with ExitStack() as stack:
        clients = [stack.enter_context(scene.asking(blob)) for _ in range(30)]
        scene.wait_waiting(30)
        go.set()
        for client in clients:
            assert_whole(client.read_reply(), blob)
    assert scene.ranges(blob) == [None]
    scene.assert_served(blob)


@pytest.mark.parametrize("by", ["tag", "digest"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_twenty_clients_on_a_cold_manifest_are_one_request(scene: Scene, by: str, method: str) -> None:
    image = scene.image()
    target = scene.tag_target("1.0" if by == "tag" else image.digest)
    go = scene.hold(f"{scene.repo}/manifests/", -1, method=method)
    with ExitStack() as stack:
        clients = [stack.enter_context(scene.cache.connect()) for _ in range(20)]
        for client in clients:
            client.ask(target, {"Accept": OCI_MANIFEST}, method=method)
        scene.wait_waiting(20)
        go.set()
        for client in clients:
            reply = client.read_reply(method=method)
            assert (reply.status, reply.header("Docker-Content-Digest")) == (200, image.digest)
            assert reply.length == len(image.manifest)
            assert reply.body == (image.manifest if method == "GET" else b"")
    assert [request.method for request in scene.asked()] == [method]


def test_who_comes_later_joins(scene: Scene) -> None:
    blob = scene.blob()
    go = scene.hold(blob, CUT)
    with scene.asking(blob) as first:
        scene.wait_partial(blob, CUT)
        with scene.asking(blob) as second:
            assert second.read_head().status == 200
            go.set()
            assert second.read(len(blob.data)) == blob.data
        assert_whole(first.read_reply(), blob)
    assert scene.ranges(blob) == [None]


def test_the_next_client_after_the_fetch_is_a_hit(scene: Scene) -> None:
    blob = scene.blob()
    assert scene.get(blob).cache == "MISS"
    scene.assert_served(blob)


# Clients that leave


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
def test_others_go_on_when_the_first_client_leaves(scene: Scene, reset: bool) -> None:
    blob = scene.blob()
    go = scene.hold(blob, CUT)
    with scene.asking(blob) as first:
        first.read_head()
        scene.wait_partial(blob, CUT)
        with scene.asking(blob) as second:
            second_head = second.read_head()
            first.leave(reset=reset)
            go.set()
            assert_whole(second.read_body(second_head), blob)
    assert scene.ranges(blob) == [None]
    scene.assert_served(blob)


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("at", [-1, 0, CUT])
def test_it_is_kept_when_all_clients_leave(scene: Scene, reset: bool, at: int) -> None:
    blob = scene.blob()
    go = scene.hold(blob, at)
    with scene.asking(blob) as first, scene.asking(blob) as second:
        if at < 0:
            scene.wait_waiting(2)
        else:
            first.read_head()
            second.read_head()
            scene.wait_partial(blob, at)
        first.leave(reset=reset)
        second.leave(reset=reset)
    go.set()
    scene.wait_kept(blob)
    assert scene.ranges(blob) == [None]
    assert scene.get(blob).cache == "HIT"


def test_a_manifest_is_kept_when_its_client_leaves(scene: Scene) -> None:
    image = scene.image()
    go = scene.hold(f"{scene.repo}/manifests/", -1)
    with scene.asking(scene.tag_target("1.0")):
        scene.wait_waiting(1)
    go.set()
    scene.wait_kept(Blob(image.manifest))
    assert scene.get(scene.tag_target(image.digest)).cache == "HIT"


def test_a_client_that_takes_nothing_does_not_hold_up_another(scene: Scene) -> None:
    """Not even at the end of what the sockets between them hold."""
    blob = scene.blob(24 << 20)
    with scene.cache.connect(receive_buffer=4096) as slow:
        slow.ask(scene.target(blob))
        head = slow.read_head()
        assert_whole(scene.get(blob), blob)
        scene.wait_kept(blob)
        reply = slow.read_body(head)
        assert reply.body == blob.data[: len(reply.body)]
    assert scene.ranges(blob) == [None]


# What clients have before the fetch is over


def test_the_head_comes_before_the_body(scene: Scene) -> None:
    blob = scene.blob()
    go = scene.hold(blob, 0)
    with scene.asking(blob) as client:
        head = client.read_head()
        assert (head.status, head.length, head.cache) == (200, len(blob.data), "MISS")
        go.set()
        assert_whole(client.read_body(head), blob)


def test_bytes_come_as_they_arrive(scene: Scene) -> None:
    blob = scene.blob()
    go = scene.hold(blob, CUT)
    with scene.asking(blob) as client:
        client.read_head()
        assert client.read(CUT - HOLD) == blob.data[: CUT - HOLD]
        go.set()
        assert client.read(len(blob.data) - CUT + HOLD) == blob.data[CUT - HOLD :]


def test_a_range_comes_before_the_rest(scene: Scene) -> None:
    blob = scene.blob()
    go = scene.hold(blob, CUT)
    with scene.asking(blob, {"Range": "bytes=1000-1999"}) as client:
        reply = client.read_reply()
        assert (reply.status, reply.body) == (206, blob.data[1000:2000])
    go.set()
    scene.wait_kept(blob)


@pytest.mark.parametrize("size", [5000, STREAMED])
@pytest.mark.parametrize(
    ("asked", "first", "last"), [("1000-1999", 1000, 1999), ("1000-", 1000, None), ("0-", 0, None), ("-500", -500, None)]
)
def test_a_range_of_a_cold_blob(scene: Scene, size: int, asked: str, first: int, last: int | None) -> None:
    """Exactly what was asked for; and all of it is fetched and kept (containerd's parallel fetch asks like this)."""
    blob = scene.blob(size)
    start, end = first % size, size if last is None else last + 1
    reply = scene.get(blob, {"Range": f"bytes={asked}"})
    assert (reply.status, reply.end) == (206, "complete")
    assert reply.header("Content-Range") == f"bytes {start}-{end - 1}/{size}"
    assert reply.length == end - start
    assert reply.body == blob.data[start:end]
    assert reply.header("Docker-Content-Digest") == blob.digest
    assert scene.ranges(blob) == [None]
    scene.assert_served(blob)


@pytest.mark.parametrize("asked", ["2000-", "9999-10000", "500-0", "-0"])
def test_a_range_that_is_not_there_of_a_cold_blob_is_416(scene: Scene, asked: str) -> None:
    blob = scene.blob(2000)
    reply = scene.get(blob, {"Range": f"bytes={asked}"})
    assert (reply.status, reply.header("Content-Range")) == (416, "bytes */2000")


# HEAD


def test_head_of_a_cold_blob_fetches_no_body(scene: Scene) -> None:
    blob = scene.blob()
    reply = scene.get(blob, method="HEAD")
    assert (reply.status, reply.length) == (200, len(blob.data))
    assert reply.header("Docker-Content-Digest") == blob.digest
    assert [request.method for request in scene.asked(blob)] == ["HEAD"]
    scene.assert_nothing_kept(blob)


@pytest.mark.parametrize("by", ["tag", "digest"])
def test_head_of_a_cold_manifest_fetches_no_body(scene: Scene, by: str) -> None:
    image = scene.image()
    reply = scene.get(scene.tag_target("1.0" if by == "tag" else image.digest), method="HEAD")
    assert (reply.status, reply.length) == (200, len(image.manifest))
    assert reply.header("Docker-Content-Digest") == image.digest
    assert reply.header("Content-Type") == image.media_type
    assert [request.method for request in scene.asked()] == ["HEAD"]


def test_head_of_a_kept_object_asks_nobody(scene: Scene) -> None:
    blob, image = scene.blob(), scene.image()
    targets = [scene.target(blob), scene.tag_target(image.digest), scene.tag_target("1.0")]
    for target in targets:
        assert scene.get(target).status == 200
    scene.wait_kept(blob)
    asked = len(scene.asked())
    for target in targets:
        head, get = scene.get(target, method="HEAD"), scene.get(target)
        assert (head.status, head.cache) == (200, "HIT")
        assert head.length == get.length == len(get.body)
    assert len(scene.asked()) == asked


def test_head_of_a_blob_on_its_way_in_is_answered_at_once(scene: Scene) -> None:
    blob = scene.blob()
    go = scene.hold(blob, CUT)
    with scene.asking(blob) as client:
        scene.wait_partial(blob, CUT)
        reply = scene.get(blob, method="HEAD")
        assert (reply.status, reply.length) == (200, len(blob.data))
        go.set()
        assert_whole(client.read_reply(), blob)


# One client's refusal is not another one's


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refused_login_does_not_spoil_another_one_for_a_blob(scene: Scene, status: int) -> None:
    blob = scene.blob()
    go = scene.hold(blob, -1, status=status)
    with scene.asking(blob, bearer("refused")) as refused:
        scene.wait_waiting(1)
        with scene.asking(blob, bearer("good")) as good:
            scene.wait_waiting(2)
            go.set()
            assert refused.read_reply().status == status
            assert_whole(good.read_reply(), blob)
    logins = [request.header("Authorization") for request in scene.asked(blob)]
    assert logins == ["Bearer refused", "Bearer good"]


@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize("kind", ["tag", "digest", "head"])
def test_a_refused_login_does_not_spoil_another_one_for_a_manifest(scene: Scene, status: int, kind: str) -> None:
    image = scene.image()
    method = "HEAD" if kind == "head" else "GET"
    target = scene.tag_target(image.digest if kind == "digest" else "1.0")
    # A HEAD that is answered 404 is asked again as a GET (some registries do not know HEAD).
    go = scene.hold(f"{scene.repo}/manifests/", -1, method=method, status=status)
    if method == "HEAD" and status == 404:
        scene.fault(f"{scene.repo}/manifests/", times=1, status=404)
    with scene.cache.connect() as refused, scene.cache.connect() as good:
        refused.ask(target, bearer("refused"), method=method)
        scene.wait_waiting(1)
        good.ask(target, bearer("good"), method=method)
        scene.wait_waiting(2)
        go.set()
        assert refused.read_reply(method=method).status == status
        reply = good.read_reply(method=method)
        assert (reply.status, reply.header("Docker-Content-Digest")) == (200, image.digest)


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_in_one_repository_does_not_spoil_another_one(scene: Scene, status: int) -> None:
    blob = scene.blob()
    elsewhere = f"{scene.repo}/elsewhere"
    go = scene.hold(f"{elsewhere}/blobs", -1, status=status)
    with scene.asking(blob_target(elsewhere, blob.digest, scene.ns())) as refused:
        scene.wait_waiting(1)
        with scene.asking(blob, bearer("x")) as good:
            scene.wait_waiting(2)
            go.set()
            assert refused.read_reply().status == status
            assert_whole(good.read_reply(), blob)


@pytest.mark.parametrize("trouble", [404, 500, "close"])
@pytest.mark.parametrize("kind", ["blob", "manifest"])
def test_a_registry_that_fails_does_not_spoil_another_one(scene: Scene, trouble: int | str, kind: str) -> None:
    blob, image = scene.blob(), scene.image()
    good_target = scene.target(blob) if kind == "blob" else scene.tag_target(image.digest)
    bad = scene.ns(OTHER)
    bad_target = (
        blob_target(scene.repo, blob.digest, bad) if kind == "blob" else manifest_target(scene.repo, image.digest, bad)
    )
    if isinstance(trouble, int):
        go = scene.hold(scene.repo, -1, registry=OTHER, status=trouble)
    else:
        go = scene.hold(scene.repo, -1, registry=OTHER, times=None, close_before_head=True)
    with scene.asking(bad_target) as refused:
        scene.wait_waiting(1)
        with scene.asking(good_target) as good:
            scene.wait_waiting(2)
            go.set()
            assert refused.read_reply().status >= 400
            assert good.read_reply().body == (blob.data if kind == "blob" else image.manifest)


@pytest.mark.parametrize("how", ["fin", "rst", "corrupt"])
def test_a_registry_that_broke_off_does_not_close_the_same_blob_elsewhere(scene: Scene, how: How | str) -> None:
    """Anybody can have a registry that serves wrong bytes under the digest of somebody else's layer."""
    blob = scene.blob()
    scene.origin(OTHER).add_blob(scene.repo, blob.data)
    if how == "corrupt":
        scene.fault(blob, registry=OTHER, corrupt_at=len(blob.data) - 1)
    else:
        scene.fault(blob, registry=OTHER, cut_after=0, how="rst" if how == "rst" else "fin")
        scene.fault(blob, registry=OTHER, times=1, cut_after=CUT)
    assert_broken_off(scene.get(scene.target(blob, OTHER)), blob)
    assert_whole(scene.get(blob), blob)
