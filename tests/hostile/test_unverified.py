"""What is asked for by its digest is never complete before it is verified, whichever way it comes."""

import contextlib
import json
import socket
import threading

import pytest

from tests.faults.client import Client, Stopwatch
from tests.faults.scene import HOLD, blob_target, manifest_target, registry_table
from tests.hostile.launched import Launched
from tests.hostile.peers import MIB, PATIENCE, RawOrigin, head, whole
from tests.policy.conftest import Starter
from tests.policy.lab import Lab, assert_ok
from tests.support.images import OCI_MANIFEST, Blob, digest_of, make_image, random_bytes
from tests.support.origin import Origin

SIZE = 1 << 20
RANGES = ["0-", f"0-{SIZE - 1}", "0-99", "1000-500000", f"{SIZE - 100}-", "-100", f"{SIZE - 50}-{SIZE - 1}", "5-"]


@pytest.fixture(scope="module")
def tight(shared: Starter) -> Lab:
    """Nothing fits into this cache: all passes through."""
    origin = shared.origin(Origin())
    return shared.lab(registry_table("reg.test", origin.url), {"o": origin}, {"max_size": "10KiB", "progress_timeout": "5s"})


@pytest.fixture(scope="module")
def roomy(shared: Starter) -> Lab:
    origin = shared.origin(Origin())
    return shared.lab(registry_table("reg.test", origin.url), {"o": origin}, {"progress_timeout": "10s", "retries": "0"})


def cold(lab: Lab, size: int = SIZE) -> tuple[Blob, str]:
    repo = lab.repo()
    blob = lab.blob("o", repo, size)
    return blob, blob_target(repo, blob.digest, "reg.test")


def hex_of(blob: Blob) -> str:
    return blob.digest.partition(":")[2]


@pytest.mark.parametrize("at", [0, SIZE // 2, SIZE - 1])
@pytest.mark.parametrize("chunked", [False, True])
def test_what_passes_through_is_hashed(tight: Lab, at: int, chunked: bool) -> None:
    blob, target = cold(tight)
    tight.origins["o"].fault(hex_of(blob), corrupt_at=at, chunked=chunked)
    reply = tight.get(target)
    assert (reply.status, reply.cache, reply.end) == (200, "BYPASS", "fin")
    assert len(reply.body) <= SIZE - HOLD
    assert tight.cache.metric("cacheyd_verify_failures_total") > 0


@pytest.mark.parametrize("wanted", RANGES)
def test_a_part_that_passes_through_waits_for_the_whole(tight: Lab, wanted: str) -> None:
    blob, target = cold(tight)
    fault = tight.origins["o"].fault(hex_of(blob), corrupt_at=SIZE - 200_000)
    reply = tight.get(target, {"Range": f"bytes={wanted}"})
    assert (reply.status, reply.cache, reply.end) == (206, "BYPASS", "fin")
    assert reply.length > len(reply.body)
    fault.remove()
    reply = tight.get(target, {"Range": f"bytes={wanted}"})
    assert (reply.status, reply.cache, reply.end) == (206, "BYPASS", "complete")
    start, _, end = reply.header("Content-Range").removeprefix("bytes ").partition("/")[0].partition("-")  # type: ignore[union-attr]
    assert reply.body == blob.data[int(start) : int(end) + 1]


def test_parts_that_are_not_there_and_several_of_them(tight: Lab) -> None:
    blob, target = cold(tight)
    beyond = tight.get(target, {"Range": f"bytes={SIZE}-"})
    assert (beyond.status, beyond.header("Content-Range")) == (416, f"bytes */{SIZE}")
    assert_ok(tight.get(target, {"Range": "bytes=0-9,20-29"}), blob.data, "BYPASS")
    assert_ok(tight.get(target, {"Range": "bytes=0-9", "If-Range": '"other"'}), blob.data, "BYPASS")
    with tight.cache.connect() as client:  # The connection goes on.
        for _ in range(2):
            assert client.exchange(target, {"Range": "bytes=7-8"}).body == blob.data[7:9]


def test_a_wrong_manifest_of_a_type_that_the_client_does_not_take(roomy: Lab) -> None:
    """It is here, but upstream is asked, as it knows what to say; what it says is not the object."""
    repo = roomy.repo()
    image = roomy.image("o", repo)
    target = manifest_target(repo, image.digest, "reg.test")
    roomy.pull(target)
    roomy.origins["o"].fault(f"{repo}/manifests/", corrupt_at=30)
    reply = roomy.get(target, {"Accept": "application/vnd.oci.image.index.v1+json"})
    assert (reply.status, reply.cache) in ((200, "BYPASS"), (502, None))
    if reply.status == 200:
        assert reply.end == "fin"


def test_a_part_that_nobody_asked_for(own: Starter) -> None:
    """206 to a request without Range, and 206 with all of it to one for a piece."""
    wrong = b"y" * 5000
    digest = digest_of(b"x" * 5000)

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(whole(wrong, "Content-Range: bytes 0-4999/5000", status=206))

    with RawOrigin(answer) as origin:
        for settings in ({"max_size": "1KiB"}, {}):
            daemon = own.daemon(registry_table("evil.test", origin.url), settings)
            for headers in ({}, {"Range": "bytes=0-99"}, {"Range": "bytes=0-4999"}, {"Range": "bytes=0-"}):
                reply = daemon.get(blob_target("a/b", digest, "evil.test"), headers)
                assert reply.status >= 400 or reply.end == "fin", (settings, headers, reply.status)


@pytest.mark.parametrize("wanted", ["0-99", f"0-{SIZE - 1}", "0-", "1000-500000", f"{SIZE - 50}-{SIZE - 1}"])
def test_a_part_of_a_running_flight_is_not_complete_before_the_whole_is_verified(roomy: Lab, wanted: str) -> None:
    blob, target = cold(roomy)
    release = threading.Event()
    roomy.origins["o"].fault(hex_of(blob), times=1, corrupt_at=SIZE - 1, hold=release, hold_at=SIZE - 10)
    with roomy.cache.connect() as filling, Client(roomy.cache.port, patience=PATIENCE) as client:
        filling.ask(target)
        filling.read_head()
        client.ask(target, {"Range": f"bytes={wanted}"})
        threading.Timer(0.2, release.set).start()
        reply = client.read_reply()
    # Either nobody was told that it is there, or it does not end; a piece of upstream's own is another request.
    assert reply.status == 502 or reply.end == "fin", (reply.status, reply.cache)


def test_one_flipped_byte_is_no_ban_for_everybody(roomy: Lab) -> None:
    """A layer was 502 for 60 s. Only who goes on where it broke is refused."""
    blob, target = cold(roomy)
    roomy.origins["o"].fault(hex_of(blob), times=1, corrupt_at=SIZE // 2)
    broken = roomy.get(target)
    assert (broken.status, broken.end) == (200, "fin")
    resume = {"Range": f"bytes={len(broken.body)}-"}
    assert roomy.get(target, resume).status == 502
    with Stopwatch.started() as watch:
        assert_ok(roomy.get(target), blob.data)
    assert watch.seconds < 2
    roomy.settle()
    first = roomy.get(target, {"Range": "bytes=0-"})
    assert (first.status, first.body) == (206, blob.data)
    assert roomy.get(target, resume).status == 502
    beyond = roomy.get(target, {"Range": f"bytes={SIZE - 5}-"})
    assert (beyond.status, beyond.body) in ((206, blob.data[-5:]), (502, beyond.body))


def test_a_bypassed_manifest_is_what_it_should_be(tight: Lab) -> None:
    image = make_image(seed=77)
    repo = tight.repo()
    tight.origins["o"].push(repo, "v1", image)
    reply = tight.get(manifest_target(repo, image.digest, "reg.test"))
    assert (reply.status, json.loads(reply.body)["schemaVersion"]) == (200, 2)
    assert reply.header("Content-Type") == OCI_MANIFEST


def test_a_beginning_that_was_not_kept_is_not_gone_on_with(own: Starter) -> None:
    """A body without a length is wrong, and outgrows the room; what comes next from upstream is right."""
    right, wrong = random_bytes(6 * MIB, 71), b"w" * MIB
    digest = digest_of(right)

    def answer(connection: socket.socket, request: bytes) -> None:
        if len(origin.heads) > 1:
            connection.sendall(whole(right))
            return
        connection.sendall(head(200, "Transfer-Encoding: chunked"))
        for _ in range(3):
            connection.sendall(b"%x\r\n%s\r\n" % (len(wrong), wrong))
        # So long that the client is given a head.
        origin.stopping.wait(1.5)
        with contextlib.suppress(OSError):
            for _ in range(60):
                connection.sendall(b"%x\r\n%s\r\n" % (len(wrong), wrong))

    with RawOrigin(answer) as origin:
        settings = {"max_size": "20MiB", "progress_timeout": "20s"}
        changed = {"HOSTILE_CONSTANTS": "cacheyd.cache.boarding.LENGTH_WAIT=0.5"}
        daemon = own.daemon(registry_table("evil.test", origin.url), settings, env=changed, kind=Launched)
        target = blob_target("a/b", digest, "evil.test")
        with Client(daemon.port, patience=30) as client:
            reply = client.exchange(target)
        assert (reply.status, reply.end) == (200, "fin")
        assert reply.body.startswith(wrong)
        assert daemon.get(target, {"Range": f"bytes={2 * MIB}-"}).status == 502
        assert_ok(daemon.get(target), right)


def test_an_upstream_that_is_wrong_again_is_left_alone_for_a_while(roomy: Lab) -> None:
    """Clients with a fallback get right bytes there; a client that begins here would never get them."""
    blob, target = cold(roomy)
    fault = roomy.origins["o"].fault(hex_of(blob), corrupt_at=SIZE // 2)
    for _ in range(2):
        assert (roomy.get(target).status, roomy.get(target, {"Range": "bytes=1-"}).status) == (200, 502)
    asked = len(fault_requests(roomy, blob))
    for headers in ({}, {"Range": "bytes=0-"}, {"Range": "bytes=5-9"}):
        assert roomy.get(target, headers).status == 502
    assert len(fault_requests(roomy, blob)) == asked
    fault.remove()


def fault_requests(lab: Lab, blob: Blob) -> list[object]:
    return [request for request in lab.origins["o"].requests if hex_of(blob) in request.path]
