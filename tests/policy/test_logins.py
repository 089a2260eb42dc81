"""As whom upstreams are asked: a stored login, an anonymous token, or the client itself."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.scene import blob_target, manifest_target
from tests.policy.conftest import Starter
from tests.policy.lab import STREAMED, Lab, ask_all, assert_ok, basic, login, statuses, target_of
from tests.policy.origins import LoginOrigin
from tests.real.procs import wait_until
from tests.support.origin import Origin

PASSWORD, FILE_PASSWORD, ENV_PASSWORD = "pw-of-the-config", "pw-of-the-file", "pw-of-the-environment"
STORED = basic("robot", PASSWORD)
CLIENT = "Bearer of-the-client"
KINDS = pytest.mark.parametrize("kind", ["tag", "digest", "blob"])


def table(name: str, origin: Origin, auth: str, *lines: str) -> str:
    """The configuration of a registry."""
    return "\n".join((f'[registries."{name}"]', f'upstream = "{origin.url}"', f'auth = "{auth}"', *lines, ""))


def stored(password: str = PASSWORD) -> tuple[str, str]:
    """The lines of a stored login."""
    return 'username = "robot"', f'password = "{password}"'


@pytest.fixture(scope="module")
def password_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("secrets") / "password"
    file.write_text(f"{FILE_PASSWORD}\n")
    return file


@pytest.fixture(scope="module")
def lab(shared: Starter, password_file: Path) -> Lab:
    names = ("token", "env", "anon", "cdn", "thief", "mean", "mean2", "moved", "wrong")
    origins: dict[str, Origin] = {name: shared.origin(LoginOrigin()) for name in names}
    origins |= {name: shared.origin(Origin()) for name in ("basic", "file", "pass", "plain", "wrongbasic", "shared")}
    for name, password in (("token", PASSWORD), ("file", FILE_PASSWORD), ("env", ENV_PASSWORD), ("basic", PASSWORD)):
        origins[name].require_basic("robot", password)
    for name in ("token", "env", "anon", "pass", "moved"):
        origins[name].require_token()
    for name in ("wrong", "wrongbasic"):
        origins[name].require_basic("robot", "another password")
    origins["wrong"].require_token()
    origins["shared"].require_token()
    for name in ("mean", "mean2"):
        origins[name].require_token(origins["thief"])
    origins["thief"].require_basic("robot", PASSWORD)
    origins["token"].redirect_blobs_to(origins["cdn"])
    origins["cdn"].serve_cdn(origins["token"])
    config = "".join(
        (
            table("token.test", origins["token"], "credentials", *stored()),
            table("basic.test", origins["basic"], "credentials", *stored()),
            table("file.test", origins["file"], "credentials", 'username = "robot"', f'password_file = "{password_file}"'),
            table("env.test", origins["env"], "credentials", 'username = "robot"', 'password_env = "REGISTRY_PASSWORD"'),
            table("unset.test", origins["env"], "credentials", 'username = "robot"', 'password_env = "NO_SUCH_VARIABLE"'),
            table("anon.test", origins["anon"], "anonymous"),
            table("private.test", origins["basic"], "anonymous"),
            table("pass.test", origins["pass"], "passthrough"),
            table("plain.test", origins["plain"], "credentials", *stored()),
            table("mean.test", origins["mean"], "credentials", *stored()),
            table("allowed.test", origins["mean2"], "credentials", *stored(), f'token_realms = ["{origins["thief"].url}"]'),
            table("moved.test", origins["moved"], "credentials", *stored()),
            table("wrong.test", origins["wrong"], "credentials", *stored()),
            table("wrongbasic.test", origins["wrongbasic"], "credentials", *stored()),
            table("shared.test", origins["shared"], "anonymous"),
        )
    )
    return shared.lab(config, origins, env={"REGISTRY_PASSWORD": ENV_PASSWORD, "DEBUG": "1"})


@pytest.fixture(autouse=True)
def nothing_secret(lab: Lab) -> Iterator[None]:
    """Whatever a test does, no password, token or Authorization is in the log, with DEBUG=1."""
    yield
    secrets = [PASSWORD, FILE_PASSWORD, ENV_PASSWORD, "test-token-", "of-the-client", "Basic ", "Authorization"]
    secrets += [basic("robot", password).removeprefix("Basic ") for password in (PASSWORD, FILE_PASSWORD, ENV_PASSWORD)]
    log = lab.cache.log()
    assert [secret for secret in secrets if secret.lower() in log.lower()] == []


def tokens(lab: Lab, origin: str, repo: str) -> int:
    """How often a token for this repository was asked for."""
    found = lab.origins[origin]
    assert isinstance(found, LoginOrigin)
    return len(found.tokens_for(repo))


def authorizations(lab: Lab, origin: str, repo: str | None = None) -> set[str]:
    """The values of Authorization that this origin saw (for a repository)."""
    requests = lab.asked(origin, repo) if repo else lab.origins[origin].requests
    return {value for request in requests for value in request.header_all("Authorization")}


# Tokens


@pytest.mark.parametrize("registry", ["token", "env", "anon"])
@KINDS
def test_a_token_is_got_for_the_client(lab: Lab, registry: str, kind: str) -> None:
    repo = lab.repo()
    image = lab.image(registry, repo)
    target = target_of(kind, repo, image, f"{registry}.test")
    reply = lab.get(target, login(CLIENT))
    assert_ok(reply, image.layers[0].data if kind == "blob" else image.manifest, "MISS")
    assert tokens(lab, registry, repo) == 1
    assert all(value.startswith("Bearer test-token-") for value in authorizations(lab, registry, repo))
    lab.settle()
    assert lab.get(target).cache == "HIT"


@pytest.mark.parametrize(("registry", "password"), [("token", PASSWORD), ("env", ENV_PASSWORD), ("anon", None)])
def test_who_asks_for_the_token(lab: Lab, registry: str, password: str | None) -> None:
    repo = lab.repo()
    lab.image(registry, repo)
    lab.pull(manifest_target(repo, "1.0", f"{registry}.test"), login(CLIENT))
    origin = lab.origins[registry]
    assert isinstance(origin, LoginOrigin)
    (asked,) = origin.tokens_for(repo)
    assert asked.header("Authorization") == (password and basic("robot", password))
    assert "service=test" in asked.query


def test_one_token_serves_a_whole_pull_and_others(lab: Lab) -> None:
    repo = lab.repo()
    image = lab.image("token", repo)
    lab.image("token", repo, "2.0")
    for headers in ({}, login(CLIENT)):
        for kind in ("tag", "digest", "blob"):
            lab.pull(target_of(kind, repo, image, "token.test"), headers)
    lab.pull(manifest_target(repo, "2.0", "token.test"))
    assert tokens(lab, "token", repo) == 1


def test_many_at_once_need_one_token(lab: Lab) -> None:
    repo = lab.repo()
    blobs = [lab.blob("anon", repo) for _ in range(20)]
    with ExitStack() as clients:
        asking = ask_all(lab.cache, [blob_target(repo, blob.digest, "anon.test") for blob in blobs], clients)
        replies = [client.read_reply() for client in asking]
    for reply, blob in zip(replies, blobs, strict=True):
        assert_ok(reply, blob.data)
    assert tokens(lab, "anon", repo) == 1


def test_a_late_401_uses_the_token_that_is_there_by_then(lab: Lab) -> None:
    repo = lab.repo()
    late, quick = lab.blob("anon", repo), lab.blob("anon", repo)
    with lab.cache.connect() as client:
        lab.origins["anon"].fault(f"^GET .*{late.digest}", times=1, stall_head=0.4)
        client.ask(blob_target(repo, late.digest, "anon.test"))
        lab.wait_asked("anon", repo, 1)
        assert_ok(lab.get(blob_target(repo, quick.digest, "anon.test")), quick.data)
        assert_ok(client.read_reply(), late.data)
    assert tokens(lab, "anon", repo) == 1


def test_a_token_is_not_used_longer_than_it_holds(lab: Lab) -> None:
    origin = lab.origins["token"]
    assert isinstance(origin, LoginOrigin)
    repo = lab.repo()
    one, two, three = (lab.blob("token", repo) for _ in range(3))
    origin.expires_in = 10.7  # Ten seconds less is what cacheyd uses of it.
    lab.pull(blob_target(repo, one.digest, "token.test"))
    lab.pull(blob_target(repo, two.digest, "token.test"))
    assert tokens(lab, "token", repo) == 1
    time.sleep(0.75)
    origin.expires_in = 300
    lab.pull(blob_target(repo, three.digest, "token.test"))
    assert tokens(lab, "token", repo) == 2
    # Not tried once more: three with nothing, one with the first token, one with the second.
    values = [request.header("Authorization") for request in lab.asked("token", repo, "GET")]
    assert values.count(None) == 2


def test_a_token_that_upstream_forgot_is_replaced(lab: Lab) -> None:
    repo = lab.repo()
    one, two = lab.blob("token", repo), lab.blob("token", repo)
    lab.pull(blob_target(repo, one.digest, "token.test"))
    lab.origins["token"].expire_tokens()
    assert_ok(lab.get(blob_target(repo, two.digest, "token.test")), two.data)
    assert tokens(lab, "token", repo) == 2


@pytest.mark.parametrize("expires_in", [None, 300])
def test_the_spelling_access_token(lab: Lab, expires_in: float | None) -> None:
    origin = lab.origins["anon"]
    assert isinstance(origin, LoginOrigin)
    repo = lab.repo()
    blob = lab.blob("anon", repo)
    origin.spelling, origin.expires_in = "access_token", expires_in
    assert_ok(lab.get(blob_target(repo, blob.digest, "anon.test")), blob.data)
    origin.spelling, origin.expires_in = "token", 300


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"token": 3}', b'{"token": "a b"}', b'{"token": "a\\r\\nX: y"}'])
def test_a_token_service_that_gives_no_token_is_503(lab: Lab, answer: bytes) -> None:
    repo = lab.repo()
    blob = lab.blob("anon", repo)
    fault = lab.origins["anon"].fault(f"^GET /token.*{repo.replace('/', '%2F')}", status=200, body=answer)
    reply = lab.get(blob_target(repo, blob.digest, "anon.test"))
    fault.remove()
    assert reply.status in (502, 503)
    assert reply.header("WWW-Authenticate") is None
    assert_ok(lab.get(blob_target(repo, blob.digest, "anon.test")), blob.data)


# Basic


def test_basic_is_sent_once_it_was_asked_for(lab: Lab) -> None:
    repo = lab.repo()
    image = lab.image("basic", repo)
    for kind in ("tag", "digest", "blob"):
        lab.pull(target_of(kind, repo, image, "basic.test"), login(CLIENT))
    assert authorizations(lab, "basic", repo) == {STORED}
    with_nothing = [request for request in lab.asked("basic", repo) if request.header("Authorization") is None]
    assert len(with_nothing) <= 1


def test_nothing_is_sent_where_nothing_is_asked_for(lab: Lab) -> None:
    repo = lab.repo()
    image = lab.image("plain", repo)
    for kind in ("tag", "digest", "blob"):
        lab.pull(target_of(kind, repo, image, "plain.test"), login(CLIENT))
    assert authorizations(lab, "plain") == set()


def test_a_changed_password_file_is_read_anew(lab: Lab, password_file: Path) -> None:
    repo = lab.repo()
    one, two = lab.blob("file", repo), lab.blob("file", repo)
    assert_ok(lab.get(blob_target(repo, one.digest, "file.test")), one.data)
    lab.origins["file"].require_basic("robot", "pw-of-tomorrow")
    password_file.write_text("pw-of-tomorrow")
    try:
        assert_ok(lab.get(blob_target(repo, two.digest, "file.test")), two.data)
    finally:
        lab.origins["file"].require_basic("robot", FILE_PASSWORD)
        password_file.write_text(f"{FILE_PASSWORD}\n")


def test_a_password_file_that_went_is_503_and_one_log_line(lab: Lab, password_file: Path) -> None:
    lab.cache.expect(f"{password_file}: cannot be read")
    repo = lab.repo()
    blob = lab.blob("file", repo)
    password_file.unlink()
    before = lab.cache.log_size()
    try:
        assert lab.get(blob_target(repo, blob.digest, "file.test")).status in (502, 503)
        wait_until(lambda: any("cannot be read" in line for line in lab.cache.lines(before)), "a line", seconds=5)
        assert len([line for line in lab.cache.lines(before) if f"{password_file}: cannot be read" in line]) == 1
    finally:
        password_file.write_text(f"{FILE_PASSWORD}\n")
    assert_ok(lab.get(blob_target(repo, blob.digest, "file.test")), blob.data)


def test_an_unset_variable_is_503(lab: Lab) -> None:
    lab.cache.expect("NO_SUCH_VARIABLE is not set")
    repo = lab.repo()
    lab.image("env", repo)
    assert lab.get(manifest_target(repo, "1.0", "unset.test")).status in (502, 503)
    assert lab.asked("env", repo) == [] or authorizations(lab, "env", repo) == set()


# Refusals


@KINDS
@pytest.mark.parametrize("registry", ["wrong.test", "wrongbasic.test", "private.test"])
def test_a_refused_login_is_503_without_a_challenge(lab: Lab, registry: str, kind: str) -> None:
    """The client could do nothing with the challenge: it does not know the stored login."""
    name = registry.removesuffix(".test").replace("private", "basic")
    repo = lab.repo()
    reply = lab.get(target_of(kind, repo, lab.image(name, repo), registry), login(CLIENT))
    assert reply.status in (502, 503)
    assert reply.header("WWW-Authenticate") is None
    assert CLIENT not in authorizations(lab, name)


def test_a_refused_repository_does_not_close_the_others(lab: Lab) -> None:
    """Docker Hub answers 401 to an anonymous token for a private or missing repository; the registry is alive."""
    private, public = lab.repo(), lab.repo()
    blob = lab.blob("shared", public)
    fault = lab.origins["shared"].fault(private, status=401, headers=[("WWW-Authenticate", challenge(lab, "shared"))])
    for number in range(4):
        assert lab.get(manifest_target(private, f"{number}.0", "shared.test")).status in (502, 503)
    fault.remove()
    assert_ok(lab.get(blob_target(public, blob.digest, "shared.test")), blob.data)


def challenge(lab: Lab, origin: str) -> str:
    return f'Bearer realm="{lab.origins[origin].url}/token",service="test"'


# Where a stored login goes


def test_the_realm_of_another_host_sees_nothing(lab: Lab) -> None:
    lab.cache.expect("token_realms")
    repo = lab.repo()
    lab.image("mean", repo)
    lab.origins["thief"].clear()
    before = lab.cache.log_size()
    reply = lab.get(manifest_target(repo, "1.0", "mean.test"))
    assert reply.status in (502, 503)
    assert reply.header("WWW-Authenticate") is None
    assert lab.origins["thief"].requests == []
    wait_until(lambda: any("token_realms" in line for line in lab.cache.lines(before)), "a line that says so", seconds=5)
    assert authorizations(lab, "mean") == set()


def test_a_realm_that_is_allowed_sees_the_login(lab: Lab) -> None:
    repo = lab.repo()
    image = lab.image("mean2", repo)
    assert_ok(lab.get(manifest_target(repo, "1.0", "allowed.test")), image.manifest)
    assert authorizations(lab, "thief") == {STORED}


@pytest.mark.parametrize(
    "realm",
    [
        "http://127.0.0.1:{port}@thief.invalid/token",
        "http://robot:x@127.0.0.1:{port}/token",
        "http://127.0.0.1:{thief}/token",
        "http://localhost:{port}/token",
        "https://127.0.0.1:{thief}/token",
        "http://127.0.0.1:{port}.thief.invalid/token",
        "//127.0.0.1:{thief}/token",
        "file:///etc/passwd",
        "",
    ],
)
def test_realms_that_only_look_like_upstreams_own(lab: Lab, realm: str) -> None:
    lab.cache.expect("token_realms")
    origin, thief = lab.origins["moved"], lab.origins["thief"]
    repo = lab.repo()
    lab.image("moved", repo)
    thief.clear()
    value = f'Bearer realm="{realm.format(port=origin.port, thief=thief.port)}",service="test"'
    fault = origin.fault(repo, status=401, headers=[("WWW-Authenticate", value)])
    assert lab.get(manifest_target(repo, "1.0", "moved.test")).status in (502, 503)
    fault.remove()
    assert lab.asked("moved", repo)
    assert thief.requests == []
    assert not any(request.path == "/token" for request in origin.requests)
    settle_breaker(lab, "moved")


def settle_breaker(lab: Lab, origin: str) -> None:
    """An answer that is one, so that refusals do not add up."""
    repo = lab.repo()
    origin_ = lab.origins[origin]
    fault = origin_.fault(repo, status=404)
    lab.get(manifest_target(repo, "1.0", f"{origin}.test"))
    fault.remove()


def test_a_redirected_blob_takes_no_login_along(lab: Lab) -> None:
    repo = lab.repo()
    blob = lab.blob("token", repo, STREAMED)
    assert_ok(lab.get(blob_target(repo, blob.digest, "token.test"), login(CLIENT)), blob.data)
    assert authorizations(lab, "cdn") == set()
    assert lab.origins["cdn"].count("GET", f"/cdn/{blob.digest.partition(':')[2]}") == 1


def test_a_redirected_token_service_gets_no_login(lab: Lab) -> None:
    repo = lab.repo()
    lab.image("moved", repo)
    thief = lab.origins["thief"]
    thief.clear()
    fault = lab.origins["moved"].fault("^GET /token", redirect=f"{thief.url}/token?scope=repository:{repo}:pull")
    lab.get(manifest_target(repo, "1.0", "moved.test"))
    fault.remove()
    assert authorizations(lab, "moved") >= {STORED}
    assert authorizations(lab, "thief") == set()
    settle_breaker(lab, "moved")


# Passthrough


@KINDS
def test_passthrough_relays_the_challenge_and_the_login(lab: Lab, kind: str) -> None:
    origin = lab.origins["pass"]
    repo = lab.repo()
    image = lab.image("pass", repo)
    target = target_of(kind, repo, image, "pass.test")
    refused = lab.get(target)
    assert refused.status == 401
    scope = f'scope="repository:{repo}:pull"'
    assert refused.header("WWW-Authenticate") == f'Bearer realm="{origin.url}/token",service="test",{scope}'
    assert origin.count(path_contains="/token") == 0
    assert lab.get(target, login(CLIENT)).status == 401
    origin._tokens.issued["mine"] = frozenset({f"repository:{repo}:pull"})
    assert lab.get(target, login("Bearer mine")).status == 200
    assert authorizations(lab, "pass", repo) == {CLIENT, "Bearer mine"}


def test_statuses_of_one_client_are_not_another_ones(lab: Lab) -> None:
    """A refusal belongs to the login that was refused, also when both ask at once."""
    origin = lab.origins["pass"]
    repo = lab.repo()
    blob = lab.blob("pass", repo)
    origin._tokens.issued["good"] = frozenset({f"repository:{repo}:pull"})
    target = blob_target(repo, blob.digest, "pass.test")
    fault = origin.fault(repo, times=1, stall_head=0.3)
    with ExitStack() as clients:
        (bad,) = ask_all(lab.cache, [target], clients, login("Bearer bad"))
        lab.wait_asked("pass", repo, 1)
        good = ask_all(lab.cache, [target] * 3, clients, login("Bearer good"))
        replies = [client.read_reply() for client in (bad, *good)]
    fault.remove()
    assert statuses(replies) == [401, 200, 200, 200]
