"""`access = "verify"`: a hit needs that upstream lets this client's own credentials read this in this repository."""

import shutil
import threading
import time
from contextlib import ExitStack

import pytest

from tests.faults.scene import blob_target, eventually, manifest_target
from tests.policy.conftest import Starter
from tests.policy.lab import STREAMED, Lab, assert_ok, basic, early_in_a_second, error_code, login, target_of
from tests.policy.origins import CHALLENGE, GuardedOrigin, LoginOrigin

ALICE, BOB, CAROL = "Bearer alice", "Bearer bob", "Bearer carol"
STORED = basic("cache", "stored-secret")
KINDS = pytest.mark.parametrize("kind", ["tag", "digest", "blob"])
METHODS = pytest.mark.parametrize("method", ["GET", "HEAD"])


@pytest.fixture(scope="module")
def lab(shared: Starter) -> Lab:
    guarded, fragile = shared.origin(GuardedOrigin()), shared.origin(GuardedOrigin())
    stored = shared.origin(GuardedOrigin('Basic realm="test"'))
    tokened = shared.origin(LoginOrigin())
    tokened.require_basic("cache", "stored-secret")
    tokened.require_token()
    config = f"""
        [registries."verify.test"]
        upstream = "{guarded.url}"
        access = "verify"
        [registries."brief.test"]
        upstream = "{guarded.url}"
        access = "verify"
        access_ttl = "300ms"
        [registries."always.test"]
        upstream = "{guarded.url}"
        access = "verify"
        access_ttl = "0s"
        [registries."open.test"]
        upstream = "{guarded.url}"
        [registries."fragile.test"]
        upstream = "{fragile.url}"
        access = "verify"
        access_ttl = "100ms"
        [registries."stored.test"]
        upstream = "{stored.url}"
        access = "verify"
        auth = "credentials"
        username = "cache"
        password = "stored-secret"
        [registries."tokened.test"]
        upstream = "{tokened.url}"
        access = "verify"
        auth = "credentials"
        username = "cache"
        password = "stored-secret"
    """
    return shared.lab(config, {"guarded": guarded, "fragile": fragile, "stored": stored, "tokened": tokened})


def guard(lab: Lab, *readers: str | None, origin: str = "guarded") -> str:
    """A repository with these readers."""
    repo = lab.repo()
    guarded = lab.origins[origin]
    assert isinstance(guarded, GuardedOrigin)
    guarded.readers[repo] = set(readers)
    return repo


# Whose credentials


@METHODS
@KINDS
def test_others_are_refused_what_is_here(lab: Lab, kind: str, method: str) -> None:
    repo = guard(lab, ALICE)
    image = lab.image("guarded", repo)
    target = target_of(kind, repo, image, "verify.test")
    lab.pull(target, login(ALICE))
    assert lab.get(target, login(ALICE), method=method).cache == "HIT"
    assert lab.get(target, login(BOB), method=method).status == 403
    nobody = lab.get(target, method=method)
    assert (nobody.status, nobody.header("WWW-Authenticate")) == (401, CHALLENGE)
    assert nobody.header("Docker-Content-Digest") is None
    assert lab.get(target, login(ALICE), method=method).cache == "HIT"


@KINDS
def test_a_refused_get_says_why(lab: Lab, kind: str) -> None:
    """Upstream was asked by HEAD, whose answer has no body; clients read error JSON all the same."""
    repo = guard(lab, ALICE)
    target = target_of(kind, repo, lab.image("guarded", repo), "verify.test")
    lab.pull(target, login(ALICE))
    assert error_code(lab.get(target, login(BOB))) == "DENIED"
    assert error_code(lab.get(target)) == "UNAUTHORIZED"


@KINDS
def test_others_are_refused_after_a_head_too(lab: Lab, kind: str) -> None:
    repo = guard(lab, ALICE)
    target = target_of(kind, repo, lab.image("guarded", repo), "verify.test")
    assert lab.get(target, login(ALICE), method="HEAD").status == 200
    assert lab.get(target, login(BOB), method="HEAD").status == 403
    assert lab.get(target, login(BOB)).status == 403
    assert lab.get(target, method="HEAD").status == 401


def test_upstream_is_asked_by_head_once_for_each_login(lab: Lab) -> None:
    repo = guard(lab, ALICE, CAROL)
    image = lab.image("guarded", repo)
    targets = [target_of(kind, repo, image, "verify.test") for kind in ("tag", "digest", "blob")]
    for target in targets:
        lab.pull(target, login(ALICE))
    before = len(lab.asked("guarded", repo))
    for target in targets * 3:
        assert lab.get(target, login(ALICE)).cache == "HIT"
    assert len(lab.asked("guarded", repo)) == before
    for target in targets * 3:
        assert lab.get(target, login(CAROL)).cache == "HIT"
    asked = lab.asked("guarded", repo)[before:]
    assert [(request.method, request.header("Authorization")) for request in asked] == [("HEAD", CAROL)]


def test_upstream_is_asked_for_each_repository(lab: Lab) -> None:
    first, second = guard(lab, ALICE), guard(lab, BOB)
    for repo in (first, second):
        lab.image("guarded", repo)
    lab.pull(manifest_target(first, "1.0", "verify.test"), login(ALICE))
    lab.pull(manifest_target(second, "1.0", "verify.test"), login(BOB))
    assert lab.get(manifest_target(second, "1.0", "verify.test"), login(ALICE)).status == 403


def test_the_answer_holds_for_access_ttl(lab: Lab) -> None:
    repo = guard(lab, ALICE)
    blob = lab.blob("guarded", repo)
    target = blob_target(repo, blob.digest, "brief.test")
    assert_ok(lab.pull(target, login(ALICE)), blob.data, "MISS")
    time.sleep(0.35)
    before = len(lab.asked("guarded", repo, "HEAD"))
    assert_ok(lab.get(target, login(ALICE)), blob.data, "HIT")
    assert len(lab.asked("guarded", repo, "HEAD")) == before + 1
    guard_again(lab, repo, BOB)
    time.sleep(0.35)
    assert lab.get(target, login(ALICE)).status == 403
    assert len(lab.asked("guarded", repo, "GET")) == 1


def guard_again(lab: Lab, repo: str, *readers: str | None) -> None:
    guarded = lab.origins["guarded"]
    assert isinstance(guarded, GuardedOrigin)
    guarded.readers[repo] = set(readers)


@KINDS
def test_an_access_ttl_of_zero_asks_each_time_and_still_hits(lab: Lab, kind: str) -> None:
    repo = guard(lab, ALICE)
    image = lab.image("guarded", repo)
    target = target_of(kind, repo, image, "always.test")
    lab.pull(target, login(ALICE))
    before = len(lab.asked("guarded", repo, "HEAD"))
    for _ in range(2):
        assert lab.get(target, login(ALICE)).cache == "HIT"
    assert len(lab.asked("guarded", repo, "HEAD")) == before + 2
    assert len(lab.asked("guarded", repo, "GET")) == 1


def test_a_registry_without_head_is_asked_by_get(lab: Lab) -> None:
    repo = guard(lab, ALICE)
    blob = lab.blob("guarded", repo)
    lab.origins["guarded"].fault(f"^HEAD .*{repo}", status=405)
    target = blob_target(repo, blob.digest, "verify.test")
    assert_ok(lab.get(target, login(ALICE)), blob.data)
    assert lab.get(target, login(BOB)).status == 403
    assert_ok(lab.get(target, login(ALICE)), blob.data, "HIT")


def test_ranges_are_checked(lab: Lab) -> None:
    repo = guard(lab, ALICE)
    blob = lab.blob("guarded", repo)
    target = blob_target(repo, blob.digest, "verify.test")
    lab.pull(target, login(ALICE))
    part = {"Range": "bytes=10-19"}
    assert lab.get(target, login(ALICE) | part).body == blob.data[10:20]
    assert lab.get(target, login(BOB) | part).status == 403
    assert lab.get(target, part | {"If-None-Match": f'"{blob.digest}"'}).status == 401


# Which repository


@METHODS
@pytest.mark.parametrize("kind", ["digest", "blob"])
def test_a_digest_of_another_repository_is_not_given_away(lab: Lab, kind: str, method: str) -> None:
    secret, own, closed = guard(lab, ALICE), guard(lab, BOB), guard(lab, ALICE)
    image = lab.image("guarded", secret)
    lab.image("guarded", own)
    lab.pull(target_of(kind, secret, image, "verify.test"), login(ALICE))
    lab.pull(manifest_target(own, "1.0", "verify.test"), login(BOB))
    # A repository that he can read and that does not have it, and one that he cannot read.
    assert lab.get(target_of(kind, own, image, "verify.test"), login(BOB), method=method).status == 404
    assert lab.get(target_of(kind, closed, image, "verify.test"), login(BOB), method=method).status == 403
    assert lab.get(target_of(kind, secret, image, "verify.test"), login(BOB), method=method).status == 403


def test_a_digest_of_another_registry_is_not_given_away(lab: Lab) -> None:
    repo = guard(lab, ALICE)
    blob = lab.blob("guarded", repo)
    lab.pull(blob_target(repo, blob.digest, "open.test"), login(ALICE))
    assert lab.get(blob_target(repo, blob.digest, "verify.test"), login(BOB)).status == 403
    other = guard(lab, BOB, origin="fragile")
    assert lab.get(blob_target(other, blob.digest, "fragile.test"), login(BOB)).status == 404


def test_a_digest_that_two_repositories_have_is_fetched_once(lab: Lab) -> None:
    first, second = guard(lab, ALICE), guard(lab, BOB)
    blob = lab.blob("guarded", first)
    lab.origins["guarded"].add_blob(second, blob.data)
    assert_ok(lab.pull(blob_target(first, blob.digest, "verify.test"), login(ALICE)), blob.data, "MISS")
    assert_ok(lab.get(blob_target(second, blob.digest, "verify.test"), login(BOB)), blob.data, "HIT")
    assert [request.method for request in lab.asked("guarded", second)] == ["HEAD"]


# What is on its way


def test_joining_a_blob_on_its_way_needs_it_too(lab: Lab) -> None:
    repo, other = guard(lab, ALICE, CAROL), guard(lab, BOB)
    blob = lab.blob("guarded", repo, STREAMED)
    own = lab.blob("guarded", other)
    lab.pull(blob_target(other, own.digest, "verify.test"), login(BOB))
    target = blob_target(repo, blob.digest, "verify.test")
    with ExitStack() as clients:
        release = hold(lab, f"^GET .*{blob.digest}", STREAMED // 2, clients)
        alice = clients.enter_context(lab.cache.connect())
        alice.ask(target, login(ALICE))
        head = alice.read_head()
        assert lab.get(target, login(BOB)).status == 403
        assert lab.get(target).status == 401
        assert lab.get(target, method="HEAD").status == 401
        assert lab.get(blob_target(other, blob.digest, "verify.test"), login(BOB)).status == 404
        carol = clients.enter_context(lab.cache.connect())
        carol.ask(target, login(CAROL))
        shared = carol.read_head()
        release()
        assert_ok(alice.read_body(head), blob.data)
        assert_ok(carol.read_body(shared), blob.data)
    assert [request.header("Authorization") for request in lab.asked("guarded", repo, "GET")] == [ALICE]


def test_joining_a_manifest_on_its_way_needs_it_too(lab: Lab) -> None:
    """By digest, under a repository that this client can read, and that does not have it."""
    secret, own = guard(lab, ALICE), guard(lab, BOB)
    image = lab.image("guarded", secret)
    lab.image("guarded", own)
    lab.pull(manifest_target(own, "1.0", "verify.test"), login(BOB))
    before = len(lab.asked("guarded", own))
    with ExitStack() as clients:
        release = hold(lab, f"^GET .*{image.digest}", -1, clients)
        alice, bob = clients.enter_context(lab.cache.connect()), clients.enter_context(lab.cache.connect())
        alice.ask(manifest_target(secret, image.digest, "verify.test"), login(ALICE))
        lab.wait_asked("guarded", secret, 1, "GET")
        bob.ask(manifest_target(own, image.digest, "verify.test"), login(BOB))
        deadline = time.monotonic() + 5
        while len(lab.asked("guarded", own)) == before and lab.cache.metric("cacheyd_waiting") < 2:
            assert time.monotonic() < deadline
        release()
        assert_ok(alice.read_reply(), image.manifest)
        assert bob.read_reply().status == 404


def test_joining_a_tag_on_its_way_needs_it_too(lab: Lab) -> None:
    repo = guard(lab, ALICE)
    image = lab.image("guarded", repo)
    target = manifest_target(repo, "1.0", "verify.test")
    with ExitStack() as clients:
        release = hold(lab, f"^GET .*{repo}/manifests/1.0", -1, clients)
        alice = clients.enter_context(lab.cache.connect())
        alice.ask(target, login(ALICE))
        lab.wait_asked("guarded", repo, 1, "GET")
        assert lab.get(target, login(BOB)).status == 403
        assert lab.get(target, method="HEAD").status == 401
        release()
        assert_ok(alice.read_reply(), image.manifest)


def hold(lab: Lab, pattern: str, at: int, until: ExitStack) -> "Release":
    """The next answer to this waits at that byte (-1: before its head)."""
    release = Release()
    fault = lab.origins["guarded"].fault(pattern, times=1, hold=release.event, hold_at=at)
    until.callback(release)
    until.callback(fault.remove)
    return release


class Release:
    """Lets an answer go on."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self) -> None:
        self.event.set()


# Upstream fails


@KINDS
def test_a_failing_upstream_is_no_permission(lab: Lab, kind: str) -> None:
    repo = guard(lab, ALICE, origin="fragile")
    target = target_of(kind, repo, lab.image("fragile", repo), "fragile.test")
    lab.pull(target, login(ALICE))
    fault = lab.origins["fragile"].fault(repo, status=503)
    time.sleep(0.15)
    assert lab.get(target, login(ALICE)).status >= 500
    assert lab.get(target, login(BOB)).status >= 500
    assert lab.get(target, method="HEAD").status >= 500
    fault.remove()
    assert lab.get(target, login(ALICE)).cache == "HIT"


def test_an_upstream_that_is_down_is_no_permission(lab: Lab) -> None:
    repo = guard(lab, ALICE, origin="fragile")
    image = lab.image("fragile", repo)
    targets = [target_of(kind, repo, image, "fragile.test") for kind in ("tag", "digest", "blob")]
    for target in targets:
        lab.pull(target, login(ALICE))
    lab.origins["fragile"].down()
    time.sleep(0.15)
    for target in targets:
        assert lab.get(target, login(ALICE)).status >= 500
        assert lab.get(target, login(BOB)).status >= 500
    lab.origins["fragile"].up()


# The same head within a second


def test_what_is_answered_twice_in_a_second_is_checked_twice(lab: Lab) -> None:
    repo = guard(lab, None)
    blob = lab.blob("guarded", repo)
    target = blob_target(repo, blob.digest, "always.test")
    early_in_a_second()
    for _ in range(3):
        assert_ok(lab.get(target), blob.data)
    guard_again(lab, repo, ALICE)
    assert lab.get(target).status == 401


def test_the_head_of_one_registry_opens_no_other(lab: Lab) -> None:
    """An open registry's quick answers are its own."""
    repo = guard(lab, ALICE)
    blob = lab.blob("guarded", repo)
    lab.pull(blob_target(repo, blob.digest, "open.test"), login(ALICE))
    early_in_a_second()
    for _ in range(3):
        assert_ok(lab.get(blob_target(repo, blob.digest, "open.test")), blob.data, "HIT")
    assert lab.get(blob_target(repo, blob.digest, "verify.test")).status == 401


# Other settings


@METHODS
@KINDS
def test_open_stays_open(lab: Lab, kind: str, method: str) -> None:
    repo = guard(lab, ALICE)
    target = target_of(kind, repo, lab.image("guarded", repo), "open.test")
    lab.pull(target, login(ALICE))
    before = len(lab.asked("guarded", repo))
    assert lab.get(target, method=method).cache == "HIT"
    assert lab.get(target, login(BOB), method=method).cache == "HIT"
    assert len(lab.asked("guarded", repo)) == before


@KINDS
def test_a_stored_login_fetches_but_opens_nothing(lab: Lab, kind: str) -> None:
    repo = guard(lab, STORED, ALICE, origin="stored")
    target = target_of(kind, repo, lab.image("stored", repo), "stored.test")
    nobody = lab.get(target)
    assert (nobody.status, nobody.header("WWW-Authenticate")) == (401, 'Basic realm="test"')
    assert lab.get(target, login(BOB)).status == 403
    lab.pull(target, login(ALICE))
    assert lab.get(target, login(ALICE)).cache == "HIT"
    assert lab.get(target, login(BOB)).status == 403
    fetched = [request.header("Authorization") for request in lab.asked("stored", repo, "GET")]
    assert fetched[-1] == STORED
    assert ALICE not in fetched


@pytest.mark.parametrize("what", ["tags/list", "referrers/sha256:" + "0" * 64])
def test_a_stored_login_lists_nothing_for_others(lab: Lab, what: str) -> None:
    repo = guard(lab, STORED, ALICE, origin="stored")
    lab.image("stored", repo)
    target = f"/v2/{repo}/{what}?ns=stored.test"
    lab.pull(target, login(ALICE))
    assert lab.get(target, login(BOB)).status == 403
    assert lab.get(target).status == 401


@KINDS
def test_the_token_of_a_stored_login_is_no_anonymous_token(lab: Lab, kind: str) -> None:
    """Clients that name the registry in the path and bring no login are asked for as nobody (skopeo, podman)."""
    repo = lab.repo()
    origin = lab.origins["tokened"]
    origin._tokens.issued["alice"] = frozenset({f"repository:{repo}:pull"})
    scoped = target_of(kind, repo, lab.image("tokened", repo), "tokened.test")
    lab.pull(scoped, login(ALICE))
    assert "test-token" in str([request.header("Authorization") for request in lab.asked("tokened", repo, "GET")])
    in_path = scoped.partition("?")[0].replace("/v2/", "/v2/tokened.test/")
    assert lab.get(in_path).status == 401
    assert lab.get(in_path, login(BOB)).status == 401
    assert lab.get(in_path, login(ALICE)).cache == "HIT"


# Other registries


@METHODS
@pytest.mark.parametrize("kind", ["digest", "blob"])
def test_what_only_a_verifying_registry_has_is_not_served_under_an_open_one(lab: Lab, kind: str, method: str) -> None:
    repo, elsewhere = guard(lab, ALICE), guard(lab, None)
    image = lab.image("guarded", repo)
    lab.pull(target_of(kind, repo, image, "verify.test"), login(ALICE))
    assert lab.get(target_of(kind, elsewhere, image, "open.test"), method=method).status == 404
    # Where the open registry has it, too, it is everybody's: once it gave the bytes.
    lab.origins["guarded"].push(elsewhere, "1.0", image)
    assert lab.get(target_of(kind, elsewhere, image, "open.test"), method=method).status == 200
    lab.pull(target_of(kind, elsewhere, image, "open.test"))
    assert lab.get(target_of(kind, elsewhere, image, "open.test"), method=method).cache == "HIT"


def test_a_tag_of_an_open_registry_is_no_way_to_a_verifying_one(lab: Lab) -> None:
    """A registry can say of a tag whatever it likes."""
    repo, elsewhere = guard(lab, ALICE), guard(lab, None)
    image = lab.image("guarded", repo)
    lab.pull(target_of("digest", repo, image, "verify.test"), login(ALICE))
    own = lab.image("guarded", elsewhere)
    lab.origins["guarded"].fault(
        f"HEAD /v2/{elsewhere}/manifests/1.0",
        remove_headers=["Docker-Content-Digest"],
        headers=[("Docker-Content-Digest", image.digest)],
    )
    target = manifest_target(elsewhere, "1.0", "open.test")
    lab.get(target, method="HEAD")
    assert_ok(lab.get(target), own.manifest)


def test_what_is_found_without_a_row_is_nobodys(shared: Starter) -> None:
    """After the index was lost nothing says which registry an object is from."""
    guarded = shared.origin(GuardedOrigin())
    lab = shared.lab(
        f'[registries."verify.test"]\nupstream = "{guarded.url}"\naccess = "verify"\n'
        f'[registries."open.test"]\nupstream = "{guarded.url}"\n',
        {"guarded": guarded},
    )
    repo, elsewhere = guard(lab, ALICE), guard(lab, None)
    image = lab.image("guarded", repo)
    blob = image.blobs[0]
    lab.pull(blob_target(repo, blob.digest, "verify.test"), login(ALICE))
    assert lab.cache.stop() == 0
    shutil.rmtree(lab.cache.cache_dir / "index")
    lab.cache.start()
    eventually(lambda: lab.cache.metric("cacheyd_store_objects"), 1)
    assert lab.get(blob_target(elsewhere, blob.digest, "open.test")).status == 404
    assert lab.get(blob_target(repo, blob.digest, "verify.test")).status == 401
    # That this registry has it is known when it has given the bytes again.
    assert_ok(lab.pull(blob_target(repo, blob.digest, "verify.test"), login(ALICE)), blob.data, "MISS")
    assert_ok(lab.get(blob_target(repo, blob.digest, "verify.test"), login(ALICE)), blob.data, "HIT")
