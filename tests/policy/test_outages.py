"""Upstream is down, slow, or out of patience: the last known tags, a breaker, and no upstream at all."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.faults.client import Reply, Stopwatch
from tests.faults.scene import blob_target, closed_port, deaf_listener, manifest_target
from tests.policy.conftest import Starter
from tests.policy.lab import Lab, ask_all, assert_ok, login, statuses
from tests.support.images import digest_of
from tests.support.origin import Origin

METHODS = pytest.mark.parametrize("method", ["GET", "HEAD"])
ALICE, BOB = "Bearer alice", "Bearer bob"


def table(name: str, url: str, *lines: str) -> str:
    """The configuration of a registry; its tags are asked for each time."""
    return "\n".join((f'[registries."{name}.test"]', f'upstream = "{url}"', 'tag_ttl = "0s"', *lines, ""))


@pytest.fixture(scope="module")
def lab(shared: Starter) -> Iterator[Lab]:
    names = (
        "failing",
        "brief",
        "slow-get",
        "slow-head",
        "down",
        "limited",
        "breaker",
        "redirecting",
        "pulls",
        "floor",
        "window",
    )
    origins = {name: shared.origin(Origin()) for name in names}
    cdn_port = closed_port()
    with deaf_listener() as deaf:
        config = "".join(
            (
                table("failing", origins["failing"].url),
                table("brief", origins["brief"].url, 'stale_if_error = "400ms"'),
                table("never", origins["brief"].url, 'stale_if_error = "0s"'),
                table("slow-get", origins["slow-get"].url),
                table("slow-head", origins["slow-head"].url),
                table("down", origins["down"].url),
                table("limited", origins["limited"].url, 'retry_after_max = "0s"'),
                table("breaker", origins["breaker"].url),
                table("redirecting", origins["redirecting"].url),
                table("pulls", origins["pulls"].url),
                table("floor", origins["floor"].url, "ratelimit_floor = 50"),
                table("window", origins["window"].url, "ratelimit_floor = 50"),
                table("deaf", f"http://127.0.0.1:{deaf.getsockname()[1]}"),
            )
        )
        lab = shared.lab(config, origins)
        origins["redirecting"].fault("/blobs/", redirect=f"http://127.0.0.1:{cdn_port}/blob")
        yield lab


def stale(lab: Lab, registry: str) -> float:
    """How many tags of a registry were served although upstream failed."""
    return lab.cache.metric("cacheyd_stale_served_total", f'registry="{registry}.test"')


def assert_stale(reply: Reply, data: bytes, method: str = "GET") -> None:
    """The last known manifest, and that it is the last known one."""
    assert_ok(reply, b"" if method == "HEAD" else data, "STALE")
    assert reply.header("Docker-Content-Digest") == digest_of(data)
    assert reply.length == len(data)
    assert (reply.header("Warning") or "").startswith("110 ")
    assert reply.header("Age") is not None


# The last known tag


@METHODS
@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_a_failing_upstream(lab: Lab, status: int, method: str) -> None:
    repo = lab.repo()
    image = lab.image("failing", repo)
    target = manifest_target(repo, "1.0", "failing.test")
    lab.pull(target)
    count = stale(lab, "failing")
    mine = login(f"Bearer {repo}")  # A 429 is remembered for who got it.
    fault = lab.origins["failing"].fault(repo, status=status)
    assert_stale(lab.get(target, mine, method=method), image.manifest, method)
    fault.remove()
    assert stale(lab, "failing") == count + 1
    assert lab.get(target, method=method).cache == "REVALIDATED"


@METHODS
@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusing_upstream_is_believed(lab: Lab, status: int, method: str) -> None:
    repo = lab.repo()
    lab.image("failing", repo)
    target = manifest_target(repo, "1.0", "failing.test")
    lab.pull(target)
    fault = lab.origins["failing"].fault(repo, status=status)
    assert lab.get(target, method=method).status == status
    fault.remove()


@METHODS
def test_an_upstream_that_takes_too_long(lab: Lab, method: str) -> None:
    repo, name = lab.repo(), f"slow-{method.lower()}"
    image = lab.image(name, repo)
    target = manifest_target(repo, "1.0", f"{name}.test")
    lab.pull(target)
    fault = lab.origins[name].fault(repo, stall_head=30)
    watch = Stopwatch()
    assert_stale(lab.get(target, method=method), image.manifest, method)
    assert 0.9 < watch.seconds < 2.5
    # And the next ones do not wait again.
    watch = Stopwatch()
    assert_stale(lab.get(target, method=method), image.manifest, method)
    assert watch.seconds < 0.5
    fault.remove()


def test_an_upstream_that_is_down(lab: Lab) -> None:
    repo = lab.repo()
    image = lab.image("down", repo)
    target = manifest_target(repo, "1.0", "down.test")
    lab.pull(target)
    lab.origins["down"].down()
    try:
        for method in ("GET", "HEAD", "GET", "HEAD", "GET"):
            assert_stale(lab.get(target, method=method), image.manifest, method)
        assert lab.get(manifest_target(repo, "unknown", "down.test")).status in (502, 503)
        # What is named by its digest needs nobody.
        assert_ok(lab.get(manifest_target(repo, image.digest, "down.test")), image.manifest, "HIT")
    finally:
        lab.origins["down"].up()


def test_stale_is_no_longer_than_stale_if_error(lab: Lab) -> None:
    repo = lab.repo()
    image = lab.image("brief", repo)
    target = manifest_target(repo, "1.0", "brief.test")
    lab.pull(target)
    fault = lab.origins["brief"].fault(repo, status=503)
    assert_stale(lab.get(target), image.manifest)
    time.sleep(0.45)
    assert lab.get(target).status == 503
    assert lab.get(target, method="HEAD").status == 503
    fault.remove()
    assert lab.get(target).cache == "REVALIDATED"


def test_stale_if_error_of_zero_is_never(lab: Lab) -> None:
    repo = lab.repo()
    lab.image("brief", repo)
    target = manifest_target(repo, "1.0", "never.test")
    lab.pull(target)
    fault = lab.origins["brief"].fault(repo, status=503)
    assert lab.get(target).status == 503
    fault.remove()


def test_a_tag_of_another_type_is_not_served_stale(lab: Lab) -> None:
    repo = lab.repo()
    lab.image("failing", repo)
    target = manifest_target(repo, "1.0", "failing.test")
    lab.pull(target)
    fault = lab.origins["failing"].fault(repo, status=503)
    docker_only = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
    assert lab.get(target, docker_only).status == 503
    fault.remove()


# Rate limits


def test_429_is_remembered_for_who_got_it(lab: Lab) -> None:
    """containerd asks six times at once; one of them reaches upstream. Others are not punished."""
    repo = lab.repo()
    image = lab.image("limited", repo)
    target = manifest_target(repo, "1.0", "limited.test")
    fault = lab.origins["limited"].fault(repo, status=429, headers=[("Retry-After", "1")], body=b"slow down")
    replies = [lab.get(target, login(ALICE)) for _ in range(6)]
    assert statuses(replies) == [429] * 6
    assert {reply.header("Retry-After") for reply in replies} == {"1"}
    assert {reply.body for reply in replies} == {b"slow down"}
    assert len(lab.asked("limited", repo)) == 1
    fault.remove()
    assert lab.get(target, login(ALICE)).status == 429
    assert_ok(lab.get(target, login(BOB)), image.manifest)
    time.sleep(1.1)
    assert_ok(lab.get(target, login(ALICE)), image.manifest)


def test_429_of_a_blob_is_relayed(lab: Lab) -> None:
    repo = lab.repo()
    blob = lab.blob("limited", repo)
    fault = lab.origins["limited"].fault(repo, status=429, headers=[("Retry-After", "1")])
    reply = lab.get(blob_target(repo, blob.digest, "limited.test"), login("Bearer carol"))
    fault.remove()
    assert (reply.status, reply.header("Retry-After")) == (429, "1")
    assert_ok(lab.get(blob_target(repo, blob.digest, "limited.test"), login(BOB)), blob.data)


def test_what_is_left_is_a_metric(lab: Lab) -> None:
    repo = lab.repo()
    lab.image("pulls", repo)
    for value, left in (("93;w=21600", 93), ("17", 17), ("many", 17), ("0;w=21600", 0)):
        fault = lab.origins["pulls"].fault(repo, headers=[("ratelimit-limit", "100;w=21600"), ("RateLimit-Remaining", value)])
        reply = lab.get(manifest_target(repo, "1.0", "pulls.test"), method="HEAD")
        fault.remove()
        assert reply.status == 200
        assert lab.cache.metric("cacheyd_ratelimit_remaining", 'registry="pulls.test"') == left


@METHODS
def test_below_the_floor_tags_are_served_without_asking(lab: Lab, method: str) -> None:
    repo = lab.repo()
    image = lab.image("floor", repo)
    target = manifest_target(repo, "1.0", "floor.test")
    origin = lab.origins["floor"]
    fault = origin.fault("", headers=[("ratelimit-remaining", "50;w=21600")])
    lab.pull(target)
    assert lab.get(target, method=method).cache == "REVALIDATED"
    fault.remove()
    fault = origin.fault("", headers=[("ratelimit-remaining", "49;w=21600")])
    assert lab.get(target, method=method).cache == "REVALIDATED"
    other = lab.image("floor", repo)
    asked = len(lab.asked("floor", repo))
    assert_stale(lab.get(target, method=method), image.manifest, method)
    assert len(lab.asked("floor", repo)) == asked
    # What is not here is asked for all the same; what it brings along is news, too.
    fault.remove()
    fault = origin.fault("", headers=[("ratelimit-remaining", "80;w=21600")])
    assert lab.get(manifest_target(repo, other.digest, "floor.test")).cache == "MISS"
    assert lab.get(target, method=method).header("Docker-Content-Digest") == other.digest
    fault.remove()


def test_a_window_that_has_passed_is_no_reason_to_save(lab: Lab) -> None:
    """`w` is the length of the window in seconds: after it, what was left then says nothing."""
    repo = lab.repo()
    lab.image("window", repo)
    target = manifest_target(repo, "1.0", "window.test")
    fault = lab.origins["window"].fault(repo, headers=[("ratelimit-remaining", "3;w=1")])
    lab.pull(target)
    fault.remove()
    assert lab.get(target).cache == "STALE"
    time.sleep(1.1)
    assert lab.get(target).cache == "REVALIDATED"


# The breaker


def test_a_deaf_upstream_costs_one_timeout(lab: Lab) -> None:
    repo = lab.repo()
    with ExitStack() as clients:
        watch = Stopwatch()
        asking = ask_all(lab.cache, [manifest_target(repo, f"{n}.0", "deaf.test") for n in range(5)], clients)
        assert set(statuses(client.read_reply() for client in asking)) <= {503, 504}
        assert 0.9 < watch.seconds < 2.5
    watch = Stopwatch()
    for number in range(20):
        assert lab.get(blob_target(repo, digest_of(b"%d" % number), "deaf.test")).status == 503
    assert watch.seconds < 0.9
    assert lab.cache.metric("cacheyd_upstream_requests_total", 'registry="deaf.test"', 'code="dead"') >= 20


def test_a_dead_upstream_is_found_alive_by_one_probe(lab: Lab) -> None:
    repo = lab.repo()
    image = lab.image("breaker", repo)
    origin = lab.origins["breaker"]
    tags = [manifest_target(repo, tag, "breaker.test") for tag in ("1.0", "a", "b", "c")]
    origin.down()
    assert set(statuses(map(lab.get, tags))) <= {502, 503}
    died = time.monotonic()
    origin.up()
    assert statuses(map(lab.get, tags)) == [503] * 4
    assert lab.cache.metric("cacheyd_upstreams_dead") >= 1
    assert lab.asked("breaker", repo) == []
    time.sleep(max(0.0, died + 5.1 - time.monotonic()))
    release = threading.Event()
    fault = origin.fault(repo, hold=release, hold_at=-1)
    with ExitStack() as clients:
        (probe,) = ask_all(lab.cache, tags[:1], clients)
        lab.wait_asked("breaker", repo, 1)
        watch = Stopwatch()
        assert statuses(map(lab.get, tags[1:])) == [503] * 3
        assert watch.seconds < 0.5
        assert len(lab.asked("breaker", repo)) == 1
        release.set()
        assert_ok(probe.read_reply(), image.manifest)
    fault.remove()
    assert statuses(map(lab.get, tags)) == [200, 404, 404, 404]


def test_a_dead_cdn_is_not_a_dead_registry(lab: Lab) -> None:
    """The registry answers; where it redirects to does not."""
    repo = lab.repo()
    image = lab.image("redirecting", repo)
    for number in range(4):
        assert lab.get(blob_target(repo, digest_of(b"%d" % number), "redirecting.test")).status in (502, 503)
    assert_ok(lab.get(manifest_target(repo, "1.0", "redirecting.test")), image.manifest)


def test_clients_that_leave_kill_nothing(lab: Lab) -> None:
    """An answer that nobody waits for any more says nothing about the upstream."""
    repo = lab.repo()
    image = lab.image("limited", repo)
    with ExitStack() as clients:
        fault = lab.origins["limited"].fault(f"{repo}/tags", stall_head=0.3)
        for client in ask_all(lab.cache, [f"/v2/{repo}/tags/list?ns=limited.test"] * 5, clients):
            lab.wait_asked("limited", repo, 1)
            client.leave(reset=True)
        fault.remove()
    assert_ok(lab.get(manifest_target(repo, "1.0", "limited.test"), login("Bearer dora")), image.manifest)


# No upstream at all


def test_a_start_without_upstream_serves_what_is_here(own: Starter) -> None:
    origin = own.origin(Origin())
    deaf = f"http://127.0.0.1:{closed_port()}"
    lab = own.lab(
        f'[registries."off.test"]\nupstream = "{origin.url}"\n{table("ask", origin.url)}{table("none", deaf)}', {"o": origin}
    )
    repo = lab.repo()
    image = lab.image("o", repo)
    for registry in ("off", "ask"):
        lab.pull(manifest_target(repo, "1.0", f"{registry}.test"))
    lab.pull(blob_target(repo, image.layers[0].digest, "off.test"))
    origin.down()
    watch = Stopwatch()
    lab.cache.restart()
    assert watch.seconds < 10
    assert_ok(lab.get(manifest_target(repo, "1.0", "off.test")), image.manifest, "HIT")
    assert_ok(lab.get(manifest_target(repo, image.digest, "off.test")), image.manifest, "HIT")
    assert_ok(lab.get(blob_target(repo, image.layers[0].digest, "off.test")), image.layers[0].data, "HIT")
    assert_stale(lab.get(manifest_target(repo, "1.0", "ask.test")), image.manifest)
    assert lab.get("/v2/").status == 200
    assert lab.get("/readyz").status == 200
    assert lab.get(manifest_target(repo, "2.0", "none.test")).status in (502, 503)
    origin.up()
    assert lab.get(manifest_target(repo, "1.0", "ask.test")).cache == "REVALIDATED"
