"""Upstream breaks off in a body: clients see a pause; or, if it cannot go on, a FIN short of Content-Length."""

import pytest

from tests.faults.client import Stopwatch
from tests.faults.scene import HOLD, Scene, assert_broken_off, assert_whole
from tests.support.origin_faults import How

CUT = 300_000


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_the_client_sees_a_pause_and_upstream_one_range(scene: Scene, how: How) -> None:
    blob = scene.blob()
    go = scene.hold(blob, CUT - 1000, cut_after=CUT, how=how)
    with scene.asking(blob) as client:
        scene.wait_partial(blob, CUT - 1000)
        go.set()
        assert_whole(client.read_reply(), blob)
    first, second = scene.ranges(blob)
    assert first is None
    # A reset may take along what had arrived but was not read.
    expected = {f"bytes={CUT}-", f"bytes={CUT - 1000}-"} if how == "rst" else {f"bytes={CUT}-"}
    assert second in expected
    scene.assert_served(blob)


def test_every_waiting_client_sees_only_a_pause(scene: Scene) -> None:
    blob = scene.blob()
    go = scene.hold(blob, CUT - 1000, cut_after=CUT)
    with scene.asking(blob) as one, scene.asking(blob) as two, scene.asking(blob, {"Range": "bytes=100000-"}) as part:
        scene.wait_partial(blob, CUT - 1000)
        go.set()
        assert_whole(one.read_reply(), blob)
        assert_whole(two.read_reply(), blob)
        assert part.read_reply().body == blob.data[100_000:]
    assert scene.ranges(blob) == [None, f"bytes={CUT}-"]


def test_upstream_that_ignores_range_is_read_from_the_start_again(scene: Scene) -> None:
    blob = scene.blob()
    scene.fault(blob, ignore_range=True)
    scene.fault(blob, times=1, cut_after=CUT)
    assert_whole(scene.get(blob), blob)
    assert scene.ranges(blob) == [None, f"bytes={CUT}-"]
    scene.assert_served(blob)


def test_upstream_that_ignores_range_and_is_cut_before_what_is_there(scene: Scene) -> None:
    """The second answer does not even get to where the first one was."""
    blob = scene.blob()
    scene.fault(blob, times=1, ignore_range=True, cut_after=CUT // 2)
    scene.fault(blob, times=1, cut_after=CUT)
    assert_whole(scene.get(blob), blob)
    assert scene.ranges(blob) == [None, f"bytes={CUT}-", f"bytes={CUT}-"]


def test_cut_again_and_again_with_progress_gets_through(scene: Scene) -> None:
    """The number of resumes is bounded only where nothing comes."""
    blob = scene.blob()
    scene.fault(blob, cut_after=CUT)
    assert_whole(scene.get(blob), blob)
    assert scene.ranges(blob) == [None, f"bytes={CUT}-", f"bytes={2 * CUT}-", f"bytes={3 * CUT}-"]


def test_a_cut_in_what_is_held_back(scene: Scene) -> None:
    blob = scene.blob()
    scene.fault(blob, times=1, cut_after=len(blob.data) - 1)
    assert_whole(scene.get(blob), blob)
    assert scene.ranges(blob) == [None, f"bytes={len(blob.data) - 1}-"]


def test_a_cut_before_any_byte(scene: Scene) -> None:
    blob = scene.blob()
    scene.fault(blob, times=2, cut_after=0)
    assert_whole(scene.get(blob), blob)
    assert scene.ranges(blob) == [None, None, None]


def test_a_cut_in_a_small_blob(scene: Scene) -> None:
    blob = scene.blob(5000)
    scene.fault(blob, times=1, cut_after=100)
    scene.assert_served(blob)
    assert scene.ranges(blob) == [None, "bytes=100-"]


@pytest.mark.parametrize("resume", ["bad_content_range", "416", "404", "403", "500", "cut", "close", "rst", "garbage"])
def test_when_nothing_helps_the_client_goes_to_the_upstream(scene: Scene, resume: str) -> None:
    """FIN short of Content-Length, then a quick 502 for its resume; nothing is kept."""
    blob = scene.blob()
    match resume:
        case "bad_content_range":
            scene.fault(blob, bad_content_range=True)
        case "cut":
            scene.fault(blob, cut_after=0)
        case "close":
            scene.fault(blob, close_before_head=True)
        case "rst":
            scene.fault(blob, close_before_head=True, how="rst")
        case "garbage":
            scene.fault(blob, garbage=b"what?\r\n\r\n")
        case _:
            scene.fault(blob, status=int(resume))
    scene.fault(blob, times=1, cut_after=CUT)
    reply = scene.get(blob)
    assert_broken_off(reply, blob)
    assert reply.length == len(blob.data)
    assert len(reply.body) == CUT - HOLD
    assert reply.body == blob.data[: len(reply.body)]

    asked = len(scene.asked(blob))
    watch = Stopwatch()
    refused = scene.get(blob, {"Range": f"bytes={len(reply.body)}-"})
    assert refused.status == 502
    assert b'"errors"' in refused.body
    assert watch.seconds < 0.5
    assert len(scene.asked(blob)) == asked
    assert not scene.cache.has(blob.digest)
    # Who begins anew is a new try: upstream has it where only the range was wrong.
    again = scene.get(blob)
    assert len(scene.asked(blob)) > asked
    assert watch.seconds < 5
    if resume == "bad_content_range":
        assert_whole(again, blob)
        return
    assert again.status >= 400 or again.end != "complete"
    assert not scene.cache.has(blob.digest)


def test_resumes_are_bounded(scene: Scene) -> None:
    """`retries` (2 here) without progress, and no more."""
    blob = scene.blob()
    scene.fault(blob, cut_after=0)
    scene.fault(blob, times=1, cut_after=CUT)
    assert_broken_off(scene.get(blob), blob)
    assert scene.ranges(blob) == [None, *[f"bytes={CUT}-"] * 2]


def test_what_has_come_is_used_by_the_next_fetch(scene: Scene) -> None:
    """Not thrown away: it may be most of a large layer. (The pause after a failure is too long for a test: another
    client's bounded range far ahead is refused as well, so the file itself is looked at.)"""
    blob = scene.blob()
    scene.fault(blob, cut_after=0)
    scene.fault(blob, times=1, cut_after=CUT)
    assert_broken_off(scene.get(blob), blob)
    assert scene.cache.partial(blob.digest) == CUT


def test_a_redirect_that_is_cut_is_asked_for_anew(scene: Scene) -> None:
    """A signed URL may have expired, so the registry is asked again, with the Range for the CDN."""
    blob = scene.blob(registry="signed")
    scene.fault(blob, registry="cdn", times=1, cut_after=CUT)
    assert_whole(scene.get(scene.target(blob, "signed")), blob)
    assert scene.ranges(blob, registry="cdn") == [None, f"bytes={CUT}-"]
    assert len(scene.asked(blob, registry="signed")) == 2


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_cut_in_a_manifest_is_502(scene: Scene, how: How) -> None:
    """Or another try; never half a manifest, never none at all under a 200."""
    image = scene.image()
    scene.fault(f"{scene.repo}/manifests/", cut_after=50, how=how)
    for reference in ("1.0", image.digest):
        reply = scene.get(scene.tag_target(reference))
        assert reply.status == 502
        assert b'"errors"' in reply.body
        assert not scene.cache.has(image.digest)


def test_the_fetch_of_one_blob_does_not_suffer_from_another(scene: Scene) -> None:
    bad, good = scene.blob(), scene.blob()
    scene.fault(bad, stall_at=CUT)
    with scene.asking(bad) as client:
        client.read_head()
        scene.assert_served(good)
