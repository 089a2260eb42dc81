"""Logins and limits are between client and upstream: refusals go through as they are, and no credential is ever logged."""

import base64
import http.client
from pathlib import Path

import pytest

from tests.faults.conftest import MakeDaemon
from tests.faults.daemon import Daemon
from tests.faults.scene import Scene, assert_whole, bearer, blob_target, manifest_target
from tests.support.images import Blob, make_image, random_bytes
from tests.support.origin import Origin

SECRET = "hunter2-dckr_pat_Zm9vYmFy"
CHALLENGES = [
    ("WWW-Authenticate", 'Bearer realm="https://auth.test/token?a=b%20c",service="a \\"quoted\\" one",scope="x:y:pull,push"'),
    ("WWW-Authenticate", 'Basic realm="a, b"'),
]
BODY = b'{"errors": [ {"code":"DENIED" ,"message":"caf\xc3\xa9"} ]}\n'
KINDS = ("blob", "tag", "digest", "head", "tags")


def target_of(scene: Scene, kind: str, registry: str = "reg") -> str:
    """Something that upstream has."""
    match kind:
        case "blob":
            return scene.target(scene.blob(registry=registry), registry)
        case "digest":
            return scene.tag_target(scene.image(registry=registry).digest, registry)
        case "tags":
            scene.image(registry=registry)
            return f"/v2/{scene.repo}/tags/list?ns={scene.ns(registry)}"
        case _:
            scene.image(registry=registry)
            return scene.tag_target("1.0", registry)


def method_of(kind: str) -> str:
    return "HEAD" if kind == "head" else "GET"


def token_of(scene: Scene, registry: str = "login") -> str:
    """A token of the origin's own token service for this test's repository."""
    origin = scene.origin(registry)
    connection = http.client.HTTPConnection(origin.host, origin.port, timeout=5)
    connection.request("GET", f"/token?scope=repository:{scene.repo}:pull")
    body = connection.getresponse().read()
    connection.close()
    return body.decode().split('"token": "')[1].split('"')[0]


# Refusals go through as they are


@pytest.mark.parametrize("kind", KINDS)
def test_a_challenge_is_relayed_byte_for_byte_and_never_kept(scene: Scene, kind: str) -> None:
    target = target_of(scene, kind)
    method = method_of(kind)
    scene.fault(scene.repo, method=method, status=401, headers=CHALLENGES, body=BODY)
    for asked in (1, 2):
        reply = scene.get(target, method=method)
        assert reply.status == 401
        assert [value for name, value in reply.headers if name == "www-authenticate"] == [value for _, value in CHALLENGES]
        assert reply.body == (b"" if kind == "head" else BODY)
        assert len(scene.asked()) == asked


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("registry", ["login", "basic"])
def test_a_client_can_log_in_through_the_cache(scene: Scene, kind: str, registry: str) -> None:
    target = target_of(scene, kind, registry)
    refused = scene.get(target, method=method_of(kind))
    assert refused.status == 401
    challenge = refused.header("WWW-Authenticate") or ""
    if registry == "basic":
        assert challenge == 'Basic realm="test"'
        login = {"Authorization": "Basic " + base64.b64encode(b"alice:wonderland").decode()}
    else:
        realm = scene.origin(registry).url
        assert challenge == f'Bearer realm="{realm}/token",service="test",scope="repository:{scene.repo}:pull"'
        login = bearer(token_of(scene))
    assert scene.get(target, login, method=method_of(kind)).status == 200
    assert scene.asked(registry=registry)[-1].header("Authorization") == login["Authorization"]


def test_a_wrong_token_is_told_so(scene: Scene) -> None:
    reply = scene.get(target_of(scene, "tag", "login"), bearer("wrong"))
    assert reply.status == 401
    assert 'error="invalid_token"' in (reply.header("WWW-Authenticate") or "")


@pytest.mark.parametrize("status", [400, 403, 404, 406, 410, 451, 500, 503])
@pytest.mark.parametrize("kind", ["blob", "tag", "digest", "tags"])
def test_an_error_is_relayed_and_never_kept(scene: Scene, status: int, kind: str) -> None:
    target = target_of(scene, kind)
    headers = [("Content-Type", "application/json; charset=utf-8"), ("Retry-After", "7"), ("ratelimit-remaining", "0;w=21600")]
    scene.fault(scene.repo, status=status, headers=headers, body=BODY)
    for asked in (1, 2):
        reply = scene.get(target)
        assert (reply.status, reply.body) == (status, BODY)
        for name, value in headers:
            assert reply.header(name) == value
        assert len(scene.asked()) == asked
    scene.clean()
    assert scene.get(target).status == 200


@pytest.mark.parametrize("status", [401, 403, 429])
def test_a_head_is_refused_with_a_head(scene: Scene, status: int) -> None:
    """No GET follows a HEAD that was refused."""
    scene.image()
    scene.fault(scene.repo, method="HEAD", status=status, headers=[("Retry-After", "7")])
    reply = scene.get(scene.tag_target("1.0"), method="HEAD")
    assert (reply.status, reply.header("Retry-After")) == (status, "7")
    assert [request.method for request in scene.asked()] == ["HEAD"]


# Limits


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_limit_is_remembered(scene: Scene, kind: str) -> None:
    """containerd asks six times at once: upstream is asked once."""
    target = target_of(scene, kind)
    method = method_of(kind)
    headers = [("Retry-After", "120"), ("ratelimit-remaining", "0;w=21600"), ("Content-Type", "application/json")]
    scene.fault(scene.repo, method=method, status=429, headers=headers, body=BODY)
    for _ in range(6):
        reply = scene.get(target, method=method)
        assert (reply.status, reply.header("Retry-After")) == (429, "120")
        assert reply.header("ratelimit-remaining") == "0;w=21600"
        assert reply.body == (b"" if kind == "head" else BODY)
    assert len(scene.asked()) == 1


def test_a_rate_limit_ends_with_its_retry_after(scene: Scene) -> None:
    """A short one before the client hears of it."""
    target = target_of(scene, "tag")
    scene.fault(scene.repo, times=1, status=429, headers=[("Retry-After", "1")])
    assert scene.get(target).status == 200
    assert len(scene.asked()) == 2


def test_a_rate_limit_is_one_logins_own(scene: Scene) -> None:
    target = target_of(scene, "tag")
    scene.fault(scene.repo, times=1, status=429, headers=[("Retry-After", "120")])
    assert scene.get(target, bearer("limited")).status == 429
    assert scene.get(target, bearer("other")).status == 200
    assert scene.get(target_of(scene, "blob"), bearer("limited")).status == 429


def test_a_rate_limit_does_not_close_what_is_kept(scene: Scene) -> None:
    blob = scene.blob()
    scene.assert_served(blob)
    scene.fault(scene.repo, status=429, headers=[("Retry-After", "120")])
    assert scene.get(target_of(scene, "tag")).status == 429
    assert_whole(scene.get(blob), blob)


# No credential in a log


@pytest.fixture
def talkative(make_daemon: MakeDaemon, origin: Origin, tmp_path: Path) -> Daemon:
    """A daemon that logs all that it ever logs, with a stored login for one registry."""
    (tmp_path / "password").write_text(SECRET)
    stored = f'auth = "credentials"\nusername = "bob"\npassword_file = "{tmp_path / "password"}"\n'
    tables = (
        f'[registries."up.test"]\nupstream = "{origin.url}"\n[registries."stored.test"]\nupstream = "{origin.url}"\n{stored}'
    )
    return make_daemon(tables, env={"DEBUG": "1"})


def test_no_credential_is_ever_shown(talkative: Daemon, origin: Origin) -> None:
    """Whatever becomes of the request: the log, the status page and the metrics do not have it."""
    image, blob, cut = make_image(), Blob(random_bytes(5000, 1)), Blob(random_bytes(2 << 20, 2))
    origin.push("app", "1.0", image)
    for each in (blob, cut):
        origin.add_blob("app", each.data)
    login = bearer(SECRET)
    basic = base64.b64encode(f"bob:{SECRET}".encode()).decode()
    tag, kept = manifest_target("app", "1.0", "up.test"), blob_target("app", blob.digest, "up.test")
    for target in (tag, kept, kept, tag):  # A miss and a hit of each.
        assert talkative.get(target, login).status == 200
        assert talkative.get(target, {"Authorization": f"Basic {basic}"}, method="HEAD").status == 200
    origin.fault("GET .*/manifests/gone", status=404)
    origin.fault("GET .*/manifests/broken", close_before_head=True)
    origin.fault("GET .*/manifests/rubbish", garbage=b"\x00\x01\r\n\r\n")
    origin.fault(f"GET .*{cut.digest}", redirect=f"/v2/app/blobs/{cut.digest}?X-Amz-Signature={SECRET}")
    origin.fault("Signature", cut_after=0)
    origin.fault("Signature", times=1, cut_after=300_000)
    for tag_name, status in (("gone", 404), ("broken", 502), ("rubbish", 502)):
        assert talkative.get(manifest_target("app", tag_name, "up.test"), login).status == status
    assert talkative.get(blob_target("app", cut.digest, "up.test"), login).end == "fin"
    origin.fault("GET .*/manifests/asks", status=401, headers=[("WWW-Authenticate", 'Basic realm="x"')])
    assert talkative.get(manifest_target("app", "asks", "stored.test")).status >= 500
    authorization = f"Authorization: Basic {basic}"
    for raw in (
        f"GET {tag} HTTP/1.1\r\nHost: x\r\n{authorization}\r\nBad Header\r\n\r\n",
        f"GET {tag} HTTP/1.1\r\nHost: x\r\n {authorization}\r\n\r\n",
        f"GET {tag} HTTP/1.1\r\nHost: x\r\n{authorization}\x00\r\n\r\n",
        f"GET {tag} HTTP/1.1\r\n{authorization}\r\n\r\n",
        f"GET {tag} HTTP/9.9\r\nHost: x\r\n{authorization}\r\n\r\n",
        f"GET {tag} HTTP/1.1\r\nHost: x\r\n{authorization}\r\n" + f"X: {SECRET}\r\n" * 4000 + "\r\n",
        f"GET {tag} HTTP/1.1\r\nHost: x\r\n{authorization}\r\n" + f"X: {SECRET}\r\n" * 4000,
        f"POST {tag} HTTP/1.1\r\nHost: x\r\n{authorization}\r\nContent-Length: 999999\r\n\r\npassword={SECRET}",
        f"GET /v2/app/manifests/1.0?ns=bob:{SECRET}@up.test HTTP/1.1\r\nHost: x\r\n\r\n",
        f"GET http://bob:{SECRET}@x{tag} HTTP/1.1\r\nHost: x\r\n{authorization}\r\n\r\n",
        f"GET /v2/app/blobs/{SECRET}?ns=up.test&token={SECRET} HTTP/1.1\r\nHost: x\r\n\r\n",
        f"GET {tag}&token={SECRET} HTTP/1.1\r\nHost: x\r\n\r\n",
        f"GET /{SECRET} HTTP/1.1\r\nHost: x\r\n\r\n",
        f"{authorization}\r\n\r\n",
    ):
        with talkative.connect() as client:
            client.send(raw.encode("latin-1"))
            client.finish_sending()
            client.rest()
    with talkative.connect() as client:  # Leaves in the middle.
        origin.fault("GET .*/manifests/slow", stall_head=0.3)
        client.ask(manifest_target("app", "slow", "up.test"), login)
    shown = talkative.get("/metrics").body + talkative.get("/", {"Accept": "text/html"}).body
    assert talkative.stop() == 0
    for text in (talkative.log(), shown.decode()):
        assert SECRET not in text
        assert basic not in text
    assert SECRET not in str(sorted(path.name for path in talkative.cache_dir.rglob("*")))
