"""Tags: how long they hold, how they are confirmed, and for whom."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.faults.client import Client, Reply
from tests.faults.scene import manifest_target
from tests.policy.conftest import Starter
from tests.policy.lab import Lab, ask_all, assert_ok, error_code
from tests.policy.origins import ChoosingOrigin, chosen_for
from tests.support.images import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Image,
    digest_of,
    make_image,
    make_index,
)
from tests.support.origin import Origin

METHODS = pytest.mark.parametrize("method", ["GET", "HEAD"])
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+json"
SIGNED_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

# Accept lines as clients send them.
ACCEPT: dict[str, tuple[str, ...]] = {
    "containerd": (f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}, */*",),
    "docker": (
        DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX, f"{SIGNED_1}", "application/json",
    ),
    "docker-old": (f"{DOCKER_MANIFEST}, {SIGNED_1}, application/json",),
    "skopeo": (OCI_MANIFEST, DOCKER_MANIFEST, SIGNED_1, SCHEMA_1, DOCKER_LIST, OCI_INDEX),
    "oci-only": (f"{OCI_MANIFEST}",),
    "index-only": (f"{OCI_INDEX}",),
    "anything": ("*/*",),
    "nothing": (),
}  # fmt: skip


@pytest.fixture(scope="module")
def lab(shared: Starter) -> Lab:
    origin, choosing = shared.origin(Origin()), shared.origin(ChoosingOrigin())
    config = f"""
        [defaults]
        tag_ttl = "1h"
        tag_ttls = {{ "nightly-*" = "0s", "short-*" = "300ms" }}
        [registries."long.test"]
        upstream = "{origin.url}"
        [registries."own.test"]
        upstream = "{origin.url}"
        tag_ttl = "0s"
        tag_ttls = {{ "v[0-9]*" = "24h", "v*" = "0s" }}
        [registries."eager.test"]
        upstream = "{origin.url}"
        tag_ttls = {{ "latest" = "1h" }}
        [registries."choosing.test"]
        upstream = "{choosing.url}"
    """
    return shared.lab(config, {"o": origin, "choosing": choosing})


def tagged(lab: Lab, tag: str, registry: str = "long.test") -> tuple[str, Image, str]:
    """A repository with an image under this tag, and the request target."""
    repo = lab.repo()
    return repo, lab.image("o", repo, tag), manifest_target(repo, tag, registry)


# How long


@METHODS
@pytest.mark.parametrize(
    ("registry", "tag", "fresh"),
    [
        ("long.test", "1.0", True),
        ("long.test", "latest", False),
        ("long.test", "latest-1", True),
        ("long.test", "nightly-1", False),
        ("long.test", "my-nightly-1", True),
        ("own.test", "1.0", False),
        ("own.test", "v1", True),
        ("own.test", "vx", False),
        ("own.test", "V1", False),
        ("own.test", "latest", False),
        # What the registry's own table says takes the place of the defaults' one.
        ("own.test", "short-1", False),
        ("eager.test", "latest", True),
        ("eager.test", "nightly-1", True),
    ],
)
def test_which_tags_are_fresh(lab: Lab, registry: str, tag: str, fresh: bool, method: str) -> None:
    repo, image, target = tagged(lab, tag, registry)
    assert_ok(lab.pull(target), image.manifest, "MISS")
    before = len(lab.asked("o", repo))
    reply = lab.get(target, method=method)
    assert reply.cache == ("HIT" if fresh else "REVALIDATED")
    assert (reply.status, reply.length, reply.header("Docker-Content-Digest")) == (200, len(image.manifest), image.digest)
    assert [request.method for request in lab.asked("o", repo)[before:]] == ([] if fresh else ["HEAD"])


def test_a_tag_that_was_fresh_is_asked_for_again(lab: Lab) -> None:
    repo, image, target = tagged(lab, "short-1")
    lab.pull(target)
    # Different heads: the same one within the same second may be answered without a look at the clock.
    assert lab.get(target, {"User-Agent": "one"}).cache == "HIT"
    time.sleep(0.35)
    assert_ok(lab.get(target, {"User-Agent": "two"}), image.manifest, "REVALIDATED")
    assert_ok(lab.get(target, {"User-Agent": "three"}), image.manifest, "HIT")
    assert [request.method for request in lab.asked("o", repo)] == ["GET", "HEAD"]


def test_latest_is_counted(lab: Lab) -> None:
    _, _, target = tagged(lab, "latest")
    _, _, other = tagged(lab, "1.0")
    before = lab.cache.metric("cache_miss_by_ignore")
    lab.pull(target)
    lab.get(target)
    lab.get(target, method="HEAD")
    lab.pull(other)
    lab.get(other)
    assert lab.cache.metric("cache_miss_by_ignore") == before + 3


def test_age_is_since_upstream_confirmed_it(lab: Lab) -> None:
    _, _, target = tagged(lab, "latest")
    lab.pull(target)
    time.sleep(1.05)
    assert lab.get(target).header("Age") == "0"
    _, image, target = tagged(lab, "1.0")
    lab.pull(target)
    assert_ok(lab.get(target), image.manifest, "HIT")
    assert lab.get(target).header("Age") in ("0", "1")


# Confirming


@contextmanager
def held(origin: Origin, pattern: str) -> Iterator[threading.Event]:
    """Answers wait before their heads until the event is set."""
    event = threading.Event()
    fault = origin.fault(pattern, hold=event, hold_at=-1)
    try:
        yield event
    finally:
        fault.remove()
        event.set()


@METHODS
def test_many_waiting_clients_are_one_head(lab: Lab, method: str) -> None:
    repo, image, target = tagged(lab, "latest")
    lab.pull(target)
    before = len(lab.asked("o", repo))
    with ExitStack() as clients, held(lab.origins["o"], repo) as release:
        asking = [clients.enter_context(lab.cache.connect()) for _ in range(10)]
        for client in asking:
            client.ask(target, method=method)
        lab.wait_waiting(10)
        release.set()
        replies = [client.read_reply(method=method) for client in asking]
    for reply in replies:
        assert_ok(reply, b"" if method == "HEAD" else image.manifest, "REVALIDATED")
    assert [request.method for request in lab.asked("o", repo)[before:]] == ["HEAD"]


def test_many_waiting_clients_are_one_get(lab: Lab) -> None:
    repo, image, target = tagged(lab, "latest")
    with ExitStack() as clients, held(lab.origins["o"], repo) as release:
        asking = ask_all(lab.cache, [target] * 10, clients)
        lab.wait_waiting(10)
        release.set()
        for client in asking:
            assert_ok(client.read_reply(), image.manifest, "MISS")
    assert [request.method for request in lab.asked("o", repo)] == ["GET"]


@METHODS
def test_a_moved_tag_is_seen(lab: Lab, method: str) -> None:
    repo, _, target = tagged(lab, "latest")
    lab.pull(target)
    moved = lab.image("o", repo, "latest")
    reply = lab.get(target, method=method)
    assert_ok(reply, b"" if method == "HEAD" else moved.manifest, "MISS")
    assert reply.header("Docker-Content-Digest") == moved.digest
    assert_ok(lab.get(target), moved.manifest)
    assert lab.get(target).cache == "REVALIDATED"


def test_a_tag_that_moves_back_needs_no_get(lab: Lab) -> None:
    repo, first, target = tagged(lab, "latest")
    lab.pull(target)
    lab.image("o", repo, "latest")
    lab.pull(target)
    lab.origins["o"].push(repo, "latest", first)
    before = len(lab.asked("o", repo))
    assert_ok(lab.get(target), first.manifest)
    assert [request.method for request in lab.asked("o", repo)[before:]] == ["HEAD"]


@METHODS
def test_a_deleted_tag_is_gone(lab: Lab, method: str) -> None:
    repo, image, target = tagged(lab, "latest")
    lab.pull(target)
    lab.origins["o"].delete_tag(repo, "latest")
    assert lab.get(target, method=method).status == 404
    # And it does not come back as the last known one.
    fault = lab.origins["o"].fault(repo, status=503)
    assert lab.get(target).status == 503
    fault.remove()
    assert_ok(lab.get(manifest_target(repo, image.digest, "long.test")), image.manifest, "HIT")


def test_a_head_is_kept_for_the_next_head(lab: Lab) -> None:
    """As containerd pulls: HEAD by tag, then GET by digest; the second node's HEAD asks nobody."""
    repo, image, target = tagged(lab, "1.0")
    assert lab.get(target, method="HEAD").cache == "MISS"
    assert lab.get(target, method="HEAD").cache == "HIT"
    assert_ok(lab.pull(manifest_target(repo, image.digest, "long.test")), image.manifest, "MISS")
    reply = lab.get(target, method="HEAD")
    assert (reply.cache, reply.length) == ("HIT", len(image.manifest))
    assert_ok(lab.get(target), image.manifest, "HIT")
    assert [request.method for request in lab.asked("o", repo)] == ["HEAD", "GET"]


# Registries that are not as they should be


@METHODS
@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_registry_that_does_not_know_head(lab: Lab, status: int, method: str) -> None:
    repo, image, target = tagged(lab, "latest")
    lab.origins["o"].fault(f"^HEAD .*{repo}", status=status)
    for _ in range(2):
        reply = lab.get(target, method=method)
        assert_ok(reply, b"" if method == "HEAD" else image.manifest)
        assert (reply.length, reply.header("Docker-Content-Digest")) == (len(image.manifest), image.digest)
    moved = lab.image("o", repo, "latest")
    assert lab.get(target, method=method).header("Docker-Content-Digest") == moved.digest


@METHODS
@pytest.mark.parametrize("missing", ["Docker-Content-Digest", "Content-Length", "Content-Type"])
def test_a_head_that_does_not_say_all(lab: Lab, missing: str, method: str) -> None:
    """containerd would stumble over it, so a GET fills the gap."""
    repo, image, target = tagged(lab, "latest")
    lab.origins["o"].fault(f"^HEAD .*{repo}", remove_headers=[missing])
    for _ in range(2):
        reply = lab.get(target, method=method)
        assert_ok(reply, b"" if method == "HEAD" else image.manifest)
        assert (reply.length, reply.header("Docker-Content-Digest")) == (len(image.manifest), image.digest)
        assert reply.header("Content-Type") == OCI_MANIFEST


@METHODS
def test_a_registry_that_never_says_the_digest(lab: Lab, method: str) -> None:
    repo, image, target = tagged(lab, "latest")
    lab.origins["o"].fault(repo, remove_headers=["Docker-Content-Digest"])
    for _ in range(2):
        assert lab.get(target, method=method).header("Docker-Content-Digest") == image.digest


@METHODS
@pytest.mark.parametrize("stated", ["sha256:" + "0" * 64, "sha512:" + "0" * 128])
def test_a_wrong_digest_is_not_passed_on_as_the_manifests(lab: Lab, stated: str, method: str) -> None:
    repo, image, target = tagged(lab, "1.0")
    fault = lab.origins["o"].fault(f"^GET .*{repo}", headers=[("Docker-Content-Digest", stated)])
    reply = lab.get(target)
    assert (reply.status, error_code(reply)) == (502, "DIGEST_INVALID")
    fault.remove()
    assert lab.get(target, method=method).header("Docker-Content-Digest") == image.digest


@pytest.mark.parametrize("stated", ["nonsense", "md5:" + "0" * 32])
def test_a_digest_that_is_none_is_worked_out(lab: Lab, stated: str) -> None:
    repo, image, target = tagged(lab, "latest")
    lab.origins["o"].fault(repo, headers=[("Docker-Content-Digest", stated)])
    for method in ("GET", "HEAD", "GET"):
        reply = lab.get(target, method=method)
        assert (reply.status, reply.header("Docker-Content-Digest")) == (200, image.digest)


def test_an_etag_of_upstreams_own_is_not_passed_on(lab: Lab) -> None:
    repo, image, target = tagged(lab, "latest")
    lab.origins["o"].fault(repo, headers=[("ETag", 'W/"abc"')])
    for method in ("HEAD", "GET", "GET"):
        assert lab.get(target, method=method).header("ETag") == f'"{image.digest}"'


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_get_of_a_known_tag_says_why(lab: Lab, status: int) -> None:
    """Upstream was asked by HEAD, whose answer has no body; clients read error JSON all the same."""
    repo, _, target = tagged(lab, "latest")
    lab.pull(target)
    headers = [("WWW-Authenticate", 'Basic realm="x"')] if status == 401 else []
    fault = lab.origins["o"].fault(repo, status=status, headers=headers)
    reply = lab.get(target)
    fault.remove()
    assert reply.status == status
    assert error_code(reply) in ("DENIED", "UNAUTHORIZED")


# Who accepts what


def ask(client: Client, target: str, accept: tuple[str, ...], method: str = "GET") -> Reply:
    """A request with these Accept lines."""
    lines = [f"{method} {target} HTTP/1.1", "Host: cache.test", *(f"Accept: {line}" for line in accept), "", ""]
    client.send("\r\n".join(lines).encode())
    return client.read_reply(method=method)


@pytest.mark.parametrize(("tag", "docker"), [("1.0", False), ("latest", True)])
def test_nobody_gets_what_was_for_somebody_else(lab: Lab, tag: str, docker: bool) -> None:
    """After each client, each other one gets what upstream itself would give it; by HEAD and by GET."""
    origin = lab.origins["choosing"]
    assert isinstance(origin, ChoosingOrigin)
    index = make_index(make_image(seed=1, docker=docker), make_image(seed=1, docker=docker, architecture="arm64"))
    with lab.cache.connect() as client:
        for first, second in itertools.permutations(ACCEPT, 2):
            repo = lab.repo()
            origin.choose(repo, tag, index)
            target = manifest_target(repo, tag, "choosing.test")
            for who, method in ((first, "HEAD"), (first, "GET"), (second, "HEAD"), (second, "GET"), (first, "GET")):
                reply = ask(client, target, ACCEPT[who], method)
                wanted = chosen_for(index, list(ACCEPT[who]))
                assert reply.status == 200
                assert (reply.header("Content-Type"), reply.header("Docker-Content-Digest")) == (
                    wanted.media_type,
                    wanted.digest,
                ), f"{who} after {first}"
                if method == "GET":
                    assert digest_of(reply.body) == wanted.digest


@pytest.mark.parametrize("who", ["containerd", "docker", "skopeo", "nothing"])
def test_the_same_client_again_hits(lab: Lab, who: str) -> None:
    repo, image, target = tagged(lab, "1.0")
    with lab.cache.connect() as client:
        assert_ok(ask(client, target, ACCEPT[who]), image.manifest, "MISS")
        lab.settle()
        assert_ok(ask(client, target, ACCEPT[who]), image.manifest, "HIT")
        assert_ok(ask(client, target, tuple(reversed(ACCEPT[who]))), image.manifest, "HIT")
        assert_ok(ask(client, target, (", ".join(ACCEPT[who]),) if ACCEPT[who] else ()), image.manifest, "HIT")
    assert len(lab.asked("o", repo)) == 1


def test_all_accept_lines_go_upstream(lab: Lab) -> None:
    repo, _, target = tagged(lab, "1.0")
    with lab.cache.connect() as client:
        ask(client, target, ACCEPT["skopeo"])
    (asked,) = lab.asked("o", repo)
    assert tuple(asked.header_all("Accept")) == ACCEPT["skopeo"]


def test_by_digest_the_type_counts_too(lab: Lab) -> None:
    """A client that does not take the type that is here gets upstream's word for it."""
    repo, image, _ = tagged(lab, "1.0")
    target = manifest_target(repo, image.digest, "long.test")
    with lab.cache.connect() as client:
        assert_ok(ask(client, target, ACCEPT["containerd"]), image.manifest, "MISS")
        assert_ok(ask(client, target, ACCEPT["oci-only"]), image.manifest, "HIT")
        assert_ok(ask(client, target, ()), image.manifest, "HIT")
        fault = lab.origins["o"].fault(repo, status=404)
        assert ask(client, target, ACCEPT["docker-old"]).status == 404
        fault.remove()
