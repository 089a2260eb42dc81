"""Upstream does not answer, or not in time: a fast 5xx before the head, a resume after it."""

from contextlib import ExitStack

import pytest

from tests.faults.client import Stopwatch
from tests.faults.scene import STREAMED, Scene, assert_broken_off, assert_whole, blob_target, manifest_target
from tests.support.images import digest_of

CUT = 300_000
# The deadlines of QUICK_SETTINGS are 1 s each; less than this is in time on a busy machine.
IN_TIME = 2.5
KINDS = ("blob", "digest", "tag", "head", "tags")


def target_of(kind: str, repo: str, registry: str) -> str:
    match kind:
        case "blob":
            return blob_target(repo, digest_of(repo.encode()), registry)
        case "tags":
            return f"/v2/{repo}/tags/list?ns={registry}"
        case "digest":
            return manifest_target(repo, digest_of(repo.encode()), registry)
        case _:
            return manifest_target(repo, "1.0", registry)


def statuses(scene: Scene, registry: str) -> set[int]:
    """What each kind of request is answered, all of them at once."""
    with ExitStack() as stack:
        clients = []
        for kind in KINDS:
            clients.append(stack.enter_context(scene.cache.connect()))
            method = "HEAD" if kind == "head" else "GET"
            clients[-1].ask(target_of(kind, f"{scene.repo}/{kind}", registry), method=method)
        return {
            client.read_reply(method="HEAD" if kind == "head" else "GET").status
            for kind, client in zip(KINDS, clients, strict=True)
        }


def test_no_head_in_time_is_503_or_504(scene: Scene) -> None:
    scene.fault(scene.repo, method="(GET|HEAD)", stall_head=30)
    watch = Stopwatch()
    assert statuses(scene, scene.ns()) <= {503, 504}
    assert 0.9 < watch.seconds < IN_TIME


def test_a_connect_that_takes_for_ever_is_503_or_504(scene: Scene) -> None:
    watch = Stopwatch()
    assert statuses(scene, "deaf.test") <= {503, 504}
    assert watch.seconds < IN_TIME


def test_a_refused_connection_is_503_at_once(scene: Scene) -> None:
    watch = Stopwatch()
    assert statuses(scene, "refused.test") <= {502, 503}
    assert watch.seconds < 0.5


def test_a_name_that_does_not_exist_is_502_or_503(scene: Scene) -> None:
    reply = scene.cache.get(target_of("tag", scene.repo, "no-such-host.invalid"))
    assert reply.status in (502, 503, 504)


def test_a_tls_handshake_that_stalls_is_504(scene: Scene) -> None:
    watch = Stopwatch()
    assert scene.cache.get(target_of("tag", scene.repo, "stuck-tls.test")).status == 504
    assert watch.seconds < IN_TIME


def test_tls_to_a_server_that_has_none_is_502(scene: Scene) -> None:
    watch = Stopwatch()
    assert scene.cache.get(target_of("tag", scene.repo, "not-tls.test")).status == 502
    assert watch.seconds < IN_TIME


def test_a_certificate_of_an_unknown_authority_is_502(scene: Scene) -> None:
    assert scene.cache.get(target_of("tag", scene.repo, "untrusted.test")).status == 502


def test_a_stalled_body_is_resumed(scene: Scene) -> None:
    blob = scene.blob()
    scene.fault(blob, times=1, stall_at=CUT)
    watch = Stopwatch()
    assert_whole(scene.get(blob), blob)
    assert 0.9 < watch.seconds < IN_TIME
    assert scene.ranges(blob) == [None, f"bytes={CUT}-"]
    assert scene.asked(blob)[0].aborted


def test_a_body_that_stalls_for_good_is_closed_by_fin(scene: Scene) -> None:
    blob = scene.blob()
    scene.fault(blob, stall_at=0)
    scene.fault(blob, times=1, stall_at=CUT)
    watch = Stopwatch()
    reply = scene.get(blob)
    assert_broken_off(reply, blob)
    assert watch.seconds < 6
    assert 502 <= scene.get(blob, {"Range": f"bytes={len(reply.body)}-"}).status <= 504


def test_a_small_blob_that_stalls_for_good_is_5xx(scene: Scene) -> None:
    blob = scene.blob(5000)
    scene.fault(blob, stall_at=100)
    watch = Stopwatch()
    assert 502 <= scene.get(blob).status <= 504
    assert watch.seconds < 6


def test_a_manifest_that_stalls_is_504(scene: Scene) -> None:
    image = scene.image()
    scene.fault(f"{scene.repo}/manifests/", stall_at=50)
    watch = Stopwatch()
    assert scene.get(scene.tag_target(image.digest)).status == 504
    assert watch.seconds < IN_TIME


def test_an_error_body_that_stalls_does_not_hold_up_the_answer(scene: Scene) -> None:
    scene.fault(scene.repo, status=404, body=bytes(1000), stall_at=10)
    watch = Stopwatch()
    assert scene.get(scene.tag_target("1.0")).status in (404, 504)
    assert watch.seconds < IN_TIME


def test_a_redirect_whose_body_stalls_does_not_hold_up_the_answer(scene: Scene) -> None:
    blob = scene.blob(5000)
    headers = [("Location", f"/v2/{scene.repo}/blobs/{blob.digest}?again")]
    scene.fault(f"{blob.digest}$", status=307, headers=headers, body=bytes(100), stall_at=10)
    watch = Stopwatch()
    assert scene.get(blob).status in (200, 504)
    assert watch.seconds < IN_TIME


def test_a_tag_list_that_stalls_in_its_body_ends(scene: Scene) -> None:
    """It must not hold the client for ever."""
    scene.image()
    scene.fault("tags/list", stall_at=5)
    watch = Stopwatch()
    reply = scene.get(f"/v2/{scene.repo}/tags/list?ns={scene.ns()}")
    assert (reply.status, reply.end) == (504, "complete")
    assert watch.seconds < IN_TIME


def test_slow_is_not_stalled(scene: Scene) -> None:
    """Two seconds for a body with a deadline of one: what counts is progress."""
    blob = scene.blob(200_000)
    scene.fault(blob, rate=100_000)
    watch = Stopwatch()
    assert_whole(scene.get(blob), blob)
    assert watch.seconds > 1.5
    assert scene.ranges(blob) == [None]


# Kept connections


def test_a_kept_connection_that_upstream_closed_is_no_error(scene: Scene) -> None:
    """Closed at the very moment when the request arrives: it is sent again on a new one."""
    for _ in range(5):
        assert_whole(scene.get(first := scene.blob(100)), first)
        blob = scene.blob(100)
        scene.fault(blob, times=1, close_before_head=True)
        assert_whole(scene.get(blob), blob)
        assert len(scene.asked(blob)) == 2


def test_upstream_that_restarts_between_requests_is_no_error(scene: Scene) -> None:
    origin = scene.origin("flaky")
    blobs = [scene.blob(100, registry="flaky") for _ in range(8)]
    for blob in blobs:
        assert_whole(scene.get(scene.target(blob, "flaky")), blob)
        origin.down()
        origin.up()
        assert len(scene.asked(blob, registry="flaky")) == 1


def test_a_connection_that_ended_with_its_answer_is_not_used_again(scene: Scene) -> None:
    """Else the next request is sent twice, once on a connection that nobody listens to."""
    for _ in range(10):
        blob, other = scene.blob(100), scene.blob(100)
        scene.fault(blob, no_length=True)
        assert_whole(scene.get(blob), blob)
        assert_whole(scene.get(other), other)
        assert len(scene.asked(other)) == 1


def test_a_fresh_connection_that_is_closed_is_502_at_once(scene: Scene) -> None:
    scene.fault(scene.repo, close_before_head=True)
    watch = Stopwatch()
    assert scene.get(scene.tag_target("1.0")).status == 502
    assert watch.seconds < 0.5
    assert len(scene.asked()) <= 2


# The last known tag


@pytest.mark.parametrize("trouble", ["refuses", "stalls", "500", "503", "429", "garbage", "corrupt"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_last_known_tag_is_served_while_upstream_fails(scene: Scene, trouble: str, method: str) -> None:
    registry = "flaky" if trouble in ("refuses", "429") else "reg"
    image = scene.image("latest", registry=registry)
    target = scene.tag_target("latest", registry)
    login = {"Authorization": f"Bearer {scene.repo}"}  # A rate limit is remembered by login.
    assert scene.get(target, login).body == image.manifest
    match trouble:
        case "refuses":
            scene.origin(registry).down()
        case "stalls":
            scene.fault(scene.repo, method="(GET|HEAD)", stall_head=30)
        case "garbage":
            scene.fault(scene.repo, method="(GET|HEAD)", garbage=b"\r\n\r\n")
        case "corrupt":
            # HEAD does not tell the digest, and GET gives wrong bytes.
            scene.fault(scene.repo, registry=registry, method="HEAD", remove_headers=["Docker-Content-Digest"])
            scene.fault(scene.repo, registry=registry, corrupt_at=10)
        case _:
            scene.fault(scene.repo, registry=registry, method="(GET|HEAD)", status=int(trouble))
    reply = scene.get(target, login, method=method)
    if trouble == "refuses":
        scene.origin(registry).up()
    assert (reply.status, reply.cache) == (200, "STALE")
    assert reply.body == (image.manifest if method == "GET" else b"")
    assert reply.length == len(image.manifest)
    assert reply.header("Docker-Content-Digest") == image.digest


def test_a_tag_that_is_gone_is_gone(scene: Scene) -> None:
    scene.image("latest")
    assert scene.get(scene.tag_target("latest")).status == 200
    scene.origin().delete_tag(scene.repo, "latest")
    assert scene.get(scene.tag_target("latest")).status == 404
    scene.fault(scene.repo, method="(GET|HEAD)", status=503)
    assert scene.get(scene.tag_target("latest")).status == 503


def test_a_stalled_upstream_does_not_hold_up_others(scene: Scene) -> None:
    """Thirty requests wait for an upstream that does not answer; hits and other registries are as quick as ever."""
    scene.image()
    assert scene.get(scene.tag_target("1.0")).status == 200
    scene.fault(f"{scene.repo}/blobs/", stall_head=30)
    waiting = [scene.cache.connect() for _ in range(30)]
    for number, client in enumerate(waiting):
        client.ask(blob_target(scene.repo, digest_of(b"%d" % number), scene.ns()))
    watch = Stopwatch()
    assert scene.get(scene.tag_target("1.0")).cache == "HIT"
    other = scene.blob(STREAMED, registry="flaky")
    assert_whole(scene.get(scene.target(other, "flaky")), other)
    assert watch.seconds < 0.5
    assert {client.read_reply().status for client in waiting} <= {503, 504}
    assert watch.seconds < IN_TIME
    for client in waiting:
        client.leave()
