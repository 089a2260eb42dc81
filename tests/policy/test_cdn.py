"""CDNs that refuse the HEAD of a URL that is signed for GET: one byte tells what a HEAD cannot."""

import time

import pytest

from tests.faults.scene import blob_target, registry_table
from tests.policy.conftest import Starter
from tests.policy.lab import Lab, assert_ok, login
from tests.policy.origins import GuardedOrigin
from tests.support.images import Blob
from tests.support.origin import Origin

ALICE, BOB = "Bearer alice", "Bearer bob"
REFUSALS = pytest.mark.parametrize("status", [400, 403, 405, 501])
SIZES = pytest.mark.parametrize("size", [0, 2000, 300_000])


@pytest.fixture(scope="module")
def lab(shared: Starter) -> Lab:
    guarded, cdn, open_origin = shared.origin(GuardedOrigin()), shared.origin(Origin()), shared.origin(Origin())
    guarded.redirect_blobs_to(cdn)
    cdn.serve_cdn(guarded)
    config = f"""
        [registries."verify.test"]
        upstream = "{guarded.url}"
        access = "verify"
        access_ttl = "200ms"
        {registry_table("open.test", open_origin.url)}
    """
    return shared.lab(config, {"guarded": guarded, "cdn": cdn, "open": open_origin})


def guard(lab: Lab, *readers: str | None) -> str:
    repo = lab.repo()
    guarded = lab.origins["guarded"]
    assert isinstance(guarded, GuardedOrigin)
    guarded.readers[repo] = set(readers)
    return repo


@REFUSALS
@SIZES
def test_one_byte_decides(lab: Lab, status: int, size: int) -> None:
    """stargz-snapshotter#167, minio/minio#6146."""
    fault = lab.origins["cdn"].fault("HEAD /cdn/", status=status)
    repo = guard(lab, ALICE)
    blob = lab.blob("guarded", repo, size)
    target = blob_target(repo, blob.digest, "verify.test")
    try:
        assert lab.get(target, login(BOB)).status == 403
        assert_ok(lab.pull(target, login(ALICE)), blob.data, cache="MISS" if size else None)
        assert lab.get(target, login(BOB)).status == 403
        assert_ok(lab.get(target, login(ALICE)), blob.data, cache="HIT")
        # After `access_ttl`, for a blob of this login that is first asked for then, too.
        time.sleep(0.25)
        other = lab.blob("guarded", repo, size + 1)
        assert_ok(lab.pull(blob_target(repo, other.digest, "verify.test"), login(ALICE)), other.data, cache="MISS")
        time.sleep(0.25)
        assert_ok(lab.get(target, login(ALICE)), blob.data, cache="HIT")
        assert lab.get(target, login(BOB)).status == 403
    finally:
        fault.remove()
    asked = [request for request in lab.origins["cdn"].requests if request.method == "GET" and blob.digest[7:] in request.path]
    assert {"bytes=0-0", None} >= {request.header("Range") for request in asked}


@REFUSALS
def test_a_refusal_of_get_counts(lab: Lab, status: int) -> None:
    repo = guard(lab, ALICE)
    blob = lab.blob("guarded", repo)
    fault = lab.origins["cdn"].fault("(HEAD|GET) /cdn/", status=status)
    try:
        reply = lab.get(blob_target(repo, blob.digest, "verify.test"), login(ALICE))
    finally:
        fault.remove()
    assert reply.status in (status, 502), "no answer of ours"


@REFUSALS
@SIZES
def test_head_of_a_cold_blob(lab: Lab, status: int, size: int) -> None:
    """The size is known all the same; the registry's own refusals are its answer."""
    cdn = lab.origins["cdn"].fault("HEAD /cdn/", status=status)
    repo = guard(lab, None)
    blob = lab.blob("guarded", repo, size)
    try:
        reply = lab.get(blob_target(repo, blob.digest, "verify.test"), method="HEAD")
    finally:
        cdn.remove()
    assert (reply.status, reply.length) == (200, size)
    assert reply.header("Content-Range") is None


@pytest.mark.parametrize(("status", "answer"), [(400, 400), (401, 401), (403, 403), (404, 404), (405, 200), (501, 200)])
def test_head_that_the_registry_itself_refuses(lab: Lab, status: int, answer: int) -> None:
    repo = lab.repo()
    blob = lab.blob("open", repo)
    fault = lab.origins["open"].fault(f"HEAD .*{repo}/blobs/", status=status)
    try:
        reply = lab.get(blob_target(repo, blob.digest, "open.test"), method="HEAD")
    finally:
        fault.remove()
    assert reply.status == answer
    if answer == 200:
        assert reply.length == len(blob.data)
    assert len(lab.asked("open", repo, "GET")) == (answer == 200)


def test_a_whole_answer_to_one_byte(lab: Lab) -> None:
    """A CDN that does not know Range either."""
    faults = [
        lab.origins["cdn"].fault("GET /cdn/", ignore_range=True),
        lab.origins["cdn"].fault("HEAD /cdn/", status=403),
    ]
    repo = guard(lab, ALICE)
    blob = Blob(b"x" * 5000)
    lab.origins["guarded"].add_blob(repo, blob.data)
    try:
        assert lab.get(blob_target(repo, blob.digest, "verify.test"), login(ALICE), method="HEAD").length == 5000
        assert_ok(lab.pull(blob_target(repo, blob.digest, "verify.test"), login(ALICE)), blob.data)
    finally:
        for fault in faults:
            fault.remove()
