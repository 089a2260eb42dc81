"""`access = "verify"` against people with registries of their own: their word is no proof, only bytes that they deliver."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.faults.client import Reply
from tests.faults.scene import blob_target, manifest_target
from tests.hostile.peers import RawOrigin, head, whole
from tests.policy.conftest import Starter
from tests.policy.lab import CONTAINERD, STREAMED, Lab, assert_ok, login, target_of
from tests.policy.origins import GuardedOrigin
from tests.support.commands import run_command
from tests.support.images import OCI_MANIFEST, Image
from tests.support.origin import Origin

ALICE, BOB, CAROL = "Bearer alice", "Bearer bob", "Bearer carol"
# What the liar says of the length of anything.
LIE = 3
# How many other repositories a stranger puts an object into: more than are remembered of an object.
MANY = 70


class Liar:
    """A registry that knows every digest by HEAD, and has the bytes of none. `tags` say what its tags are."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.status = 404
        self.asked: list[str] = []

    def __call__(self, connection: socket.socket, raw: bytes) -> None:
        method, path, _ = raw.decode("latin-1").split(" ", 2)
        self.asked.append(f"{method} {path}")
        reference = path.rpartition("/")[2]
        digest = self.tags.get(reference, reference)
        if method != "HEAD" or not re.fullmatch("sha256:[0-9a-f]{64}", digest):
            connection.sendall(whole(b"{}", status=self.status))
            return
        fields = (f"Content-Length: {LIE}", f"Content-Type: {OCI_MANIFEST}", f"Docker-Content-Digest: {digest}")
        connection.sendall(head(200, "Connection: close", *fields))


LIAR = Liar()
LIARS = pytest.mark.parametrize("liar", ["evil.test", "evil-verify.test"])
WAYS = pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {}),
        ("HEAD", {}),
        ("GET", {"Range": "bytes=0-9"}),
        ("GET", {"Range": "bytes=0-9,20-29"}),
        ("GET", {"If-None-Match": "*"}),
        ("GET", login(BOB)),
    ],
    ids=["get", "head", "range", "ranges", "condition", "login"],
)


@pytest.fixture(scope="module")
def lab(shared: Starter) -> Iterator[Lab]:
    guarded, twin = shared.origin(GuardedOrigin()), shared.origin(Origin())
    with RawOrigin(LIAR) as evil:
        config = "".join(
            f'[registries."{name}.test"]\nupstream = "{url}"\naccess = "{access}"\n'
            for name, url, access in (
                ("private", guarded.url, "verify"),
                ("evil", evil.url, "open"),
                ("evil-verify", evil.url, "verify"),
                ("twin", twin.url, "open"),
                ("twin-verify", twin.url, "verify"),
            )
        )
        yield shared.lab(config, {"guarded": guarded, "twin": twin})


def private(lab: Lab, *readers: str) -> tuple[str, Image]:
    """A repository that only these may read, its image in the cache."""
    repo = lab.repo()
    guarded = lab.origins["guarded"]
    assert isinstance(guarded, GuardedOrigin)
    guarded.readers[repo] = set(readers or (ALICE,))
    image = lab.image("guarded", repo)
    for kind in ("tag", "digest", "blob"):
        lab.pull(target_of(kind, repo, image, "private.test"), login(ALICE))
    return repo, image


def assert_nothing_given(reply: Reply, *secrets: bytes) -> None:
    """Neither bytes of these nor their length; what the liar said itself may be in it."""
    assert reply.cache not in ("HIT", "STALE"), reply
    assert reply.status in (200, 404), reply
    for secret in secrets:
        assert secret[:10] not in reply.body
        assert reply.length != len(secret)
        assert str(len(secret)) not in (reply.header("Content-Range") or "")


# Digests


@LIARS
@WAYS
@pytest.mark.parametrize("kind", ["digest", "blob"])
def test_a_registry_that_says_yes_to_every_head_gets_nothing(
    lab: Lab, kind: str, method: str, headers: dict[str, str], liar: str
) -> None:
    _, image = private(lab)
    for _ in range(2):
        target = target_of(kind, lab.repo(), image, liar)
        for _ in range(2):
            reply = lab.get(target, headers, method=method)
            assert_nothing_given(reply, image.manifest, image.layers[0].data)
            if method == "GET":
                assert reply.status == 404


@LIARS
def test_a_head_does_not_prepare_a_get(lab: Lab, liar: str) -> None:
    repo, image = private(lab)
    target = target_of("blob", lab.repo(), image, liar)
    assert lab.get(target, method="HEAD").length in (0, LIE)
    assert lab.get(target).status == 404
    # And the owner's are as before.
    assert lab.get(target_of("blob", repo, image, "private.test"), login(ALICE)).cache == "HIT"


@LIARS
def test_a_flight_of_the_owner_is_joined_by_no_stranger(lab: Lab, liar: str) -> None:
    repo, _ = private(lab)
    blob = lab.blob("guarded", repo, STREAMED)
    release = threading.Event()
    fault = lab.origins["guarded"].fault(f"^GET .*{blob.digest}", times=1, hold=release, hold_at=STREAMED // 2)
    with ExitStack() as clients:
        clients.callback(release.set)
        clients.callback(fault.remove)
        alice = clients.enter_context(lab.cache.connect())
        alice.ask(blob_target(repo, blob.digest, "private.test"), login(ALICE))
        answer = alice.read_head()
        for method in ("GET", "HEAD"):
            assert_nothing_given(lab.get(blob_target(lab.repo(), blob.digest, liar), method=method), blob.data)
        release.set()
        assert_ok(alice.read_body(answer), blob.data)


# Tags


@LIARS
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_tag_that_points_at_somebody_elses_digest(lab: Lab, liar: str, method: str) -> None:
    """Fresh, confirmed, and the last known one while its registry is failing."""
    _, image = private(lab)
    repo, tag = lab.repo(), f"tag{image.digest[7:17]}"
    LIAR.tags[tag] = LIAR.tags["latest"] = image.digest
    for reference in (tag, "latest"):
        target = manifest_target(repo, reference, liar)
        with lab.cache.connect() as client:
            client.ask(target, {"Accept": CONTAINERD[0]}, method="HEAD")
            client.read_reply(method="HEAD")
        for headers in ({}, {"Accept": CONTAINERD[0]}, {"If-None-Match": "*"}):
            reply = lab.get(target, headers, method=method)
            assert image.manifest[:10] not in reply.body
            assert reply.length != len(image.manifest)
            assert (reply.status == 404) == (method == "GET")
        LIAR.status = 503
        try:
            reply = lab.get(target, {"Accept": CONTAINERD[0]}, method="GET")
        finally:
            LIAR.status = 404
        assert reply.status in (404, 503)
        assert image.manifest[:10] not in reply.body


def test_a_stranger_cannot_tell_what_is_cached(lab: Lab) -> None:
    """He sees what he is asked: the same for a digest that is here and one that is not."""
    _, image = private(lab)
    repo = lab.repo()
    asked = []
    for number, digest in enumerate((image.digest, "sha256:" + "0" * 64)):
        LIAR.tags[f"probe{number}"] = digest
        LIAR.asked.clear()
        for target in (manifest_target(repo, f"probe{number}", "evil.test"), manifest_target(repo, digest, "evil.test")):
            for method in ("HEAD", "GET", "GET"):
                lab.get(target, {"Accept": CONTAINERD[0]}, method=method)
        asked.append([line.partition(" ")[0] for line in LIAR.asked])
    assert asked[0] == asked[1]


# Bytes are a proof


@pytest.mark.parametrize("kind", ["digest", "blob"])
def test_who_delivers_the_bytes_has_them(lab: Lab, kind: str) -> None:
    repo, image = private(lab)
    other = lab.repo()
    lab.origins["twin"].push(other, "1.0", image)
    target = target_of(kind, other, image, "twin.test")
    before = len(lab.asked("twin", other))
    first = lab.pull(target)
    assert first.cache == "MISS"
    assert [request.method for request in lab.asked("twin", other)[before:]] == ["GET"]
    assert_ok(lab.get(target), first.body, "HIT")
    # It is no secret any more, but the private registry still says who may have it from there.
    assert lab.get(target_of(kind, repo, image, "private.test"), login(BOB)).status == 403
    assert lab.get(target_of(kind, repo, image, "private.test")).status == 401


@pytest.mark.parametrize("kind", ["digest", "blob"])
def test_bytes_of_a_verifying_registry_are_a_proof_for_itself_only(lab: Lab, kind: str) -> None:
    _, image = private(lab)
    repo, again = lab.repo(), lab.repo()
    for name in (repo, again):
        lab.origins["twin"].push(name, "1.0", image)
    # Its HEAD says that it has the object, and it is asked for the bytes all the same.
    assert lab.pull(target_of(kind, repo, image, "twin-verify.test")).cache == "MISS"
    assert lab.get(target_of(kind, repo, image, "twin-verify.test")).cache == "HIT"
    # In a repository of the same registry its HEAD is enough then.
    assert lab.get(target_of(kind, again, image, "twin-verify.test")).cache == "HIT"
    assert [request.method for request in lab.asked("twin", again)] == ["HEAD"]
    for liar in ("evil.test", "evil-verify.test"):
        assert lab.get(target_of(kind, lab.repo(), image, liar)).status == 404


def test_strangers_cannot_push_the_owner_out(lab: Lab) -> None:
    """Somebody who has the bytes has them in ever more repositories."""
    repo, image = private(lab)
    for _ in range(MANY):
        other = lab.repo()
        lab.origins["twin"].push(other, "1.0", image)
        lab.pull(target_of("blob", other, image, "twin-verify.test"))
    before = len(lab.asked("guarded", repo))
    assert lab.get(target_of("blob", repo, image, "private.test"), login(ALICE)).cache == "HIT"
    assert len(lab.asked("guarded", repo)) == before


# Warming


def test_warming_with_a_login_opens_nothing_for_others(lab: Lab) -> None:
    repo = lab.repo()
    guarded = lab.origins["guarded"]
    assert isinstance(guarded, GuardedOrigin)
    guarded.challenge, before = 'Basic realm="test"', guarded.challenge
    try:
        guarded.readers[repo] = {"Basic YWxpY2U6c2VjcmV0"}
        image = lab.image("guarded", repo)
        name = f"private.test/{repo}:1.0"
        run_command(lab.cache, "warm", "--username", "alice", "--password-stdin", name, data=b"secret\n")
        for kind in ("tag", "digest", "blob"):
            target = target_of(kind, repo, image, "private.test")
            assert lab.get(target).status == 401
            assert lab.get(target, login(BOB)).status == 403
            assert lab.get(target_of(kind, repo, image, "evil.test")).status == 404
        for kind in ("digest", "blob"):
            target = target_of(kind, repo, image, "private.test")
            assert lab.get(target, login("Basic YWxpY2U6c2VjcmV0")).cache == "HIT"
    finally:
        guarded.challenge = before
