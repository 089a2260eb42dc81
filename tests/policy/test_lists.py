"""Tag lists and referrers are kept for `tag_ttl`, and served stale on outages: admission controllers ask with every pod."""

import json
import threading
import time
from contextlib import ExitStack
from urllib.parse import quote

import pytest

from tests.faults.scene import manifest_target
from tests.hostile.launched import Launched
from tests.policy.conftest import Starter
from tests.policy.lab import Lab, assert_ok, login
from tests.policy.origins import GuardedOrigin
from tests.real.procs import wait_until
from tests.support.images import OCI_INDEX
from tests.support.origin import Origin

ALICE, BOB = "Bearer alice", "Bearer bob"
SUBJECT = "sha256:" + "5" * 64
KINDS = pytest.mark.parametrize("kind", ["tags", "referrers"])
BRIEF = 0.3


@pytest.fixture(scope="module")
def lab(shared: Starter) -> Lab:
    origin, guarded = shared.origin(Origin()), shared.origin(GuardedOrigin())
    config = f"""
        [registries."reg.test"]
        upstream = "{origin.url}"
        tag_ttl = "1h"
        [registries."brief.test"]
        upstream = "{origin.url}"
        tag_ttl = "{int(BRIEF * 1000)}ms"
        [registries."never.test"]
        upstream = "{origin.url}"
        tag_ttl = "0s"
        [registries."strict.test"]
        upstream = "{origin.url}"
        tag_ttl = "0s"
        stale_if_error = "0s"
        [registries."verify.test"]
        upstream = "{guarded.url}"
        access = "verify"
        tag_ttl = "{int(BRIEF * 1000)}ms"
    """
    return shared.lab(config, {"o": origin, "guarded": guarded})


def body_of(kind: str, number: int = 1) -> bytes:
    if kind == "tags":
        return json.dumps({"name": "any", "tags": [f"v{number}"]}).encode()
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": f"sha256:{number:064x}", "size": 7}
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()


def path_of(kind: str, repo: str) -> str:
    return f"/v2/{repo}/tags/list" if kind == "tags" else f"/v2/{repo}/referrers/{SUBJECT}"


def say(lab: Lab, origin: str, kind: str, repo: str, body: bytes, *headers: tuple[str, str], times: int | None = None) -> None:
    media_type = "application/json" if kind == "tags" else OCI_INDEX
    lab.origins[origin].fault(
        f"(GET|HEAD) {path_of(kind, repo)}", times=times, status=200, body=body,
        headers=(("Content-Type", media_type), ("Content-Length", str(len(body))), *headers),
    )  # fmt: skip


@KINDS
def test_a_list_is_kept_for_tag_ttl(lab: Lab, kind: str) -> None:
    repo = lab.repo()
    say(lab, "o", kind, repo, body_of(kind), ("OCI-Filters-Applied", "artifactType"), ("X-Else", "1"))
    target = f"{path_of(kind, repo)}?ns=reg.test"
    first = lab.get(target)
    assert_ok(first, body_of(kind), "MISS")
    again = lab.get(target)
    assert_ok(again, body_of(kind), "HIT")
    for name in ("Content-Type", "OCI-Filters-Applied", "OCI-Namespace"):
        assert again.header(name) == first.header(name) != None, name  # noqa: E711
    assert again.header("Age") == "0"
    assert len(lab.asked("o", repo)) == 1
    head = lab.get(target, method="HEAD")
    assert (head.status, head.length, head.cache) == (200, len(body_of(kind)), "BYPASS")


@KINDS
def test_after_it_upstream_is_asked(lab: Lab, kind: str) -> None:
    repo = lab.repo()
    say(lab, "o", kind, repo, body_of(kind, 1))
    target = f"{path_of(kind, repo)}?ns=brief.test"
    lab.get(target)
    say(lab, "o", kind, repo, body_of(kind, 2))
    assert lab.get(target).cache == "HIT"
    time.sleep(BRIEF)
    assert_ok(lab.get(target), body_of(kind, 2), "MISS")


@KINDS
@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_stale_on_an_outage(lab: Lab, kind: str, status: int) -> None:
    repo = lab.repo()
    say(lab, "o", kind, repo, body_of(kind))
    target = f"{path_of(kind, repo)}?ns=never.test"
    assert lab.get(target).cache == "MISS"
    fault = lab.origins["o"].fault(path_of(kind, repo), status=status, headers=(("Retry-After", "0"),))
    reply = lab.get(target)
    assert_ok(reply, body_of(kind), "STALE")
    assert (reply.header("Warning") or "").startswith("110")
    strict = f"{path_of(kind, repo)}?ns=strict.test"
    assert lab.get(strict).status == (429 if status == 429 else status), "nothing is known of it here"
    fault.remove()
    lab.cache.get(target)


@KINDS
def test_stale_on_a_body_that_breaks(lab: Lab, kind: str) -> None:
    repo = lab.repo()
    say(lab, "o", kind, repo, body_of(kind))
    target = f"{path_of(kind, repo)}?ns=never.test"
    assert lab.get(target).cache == "MISS"
    lab.origins["o"].fault(f"GET {path_of(kind, repo)}", status=200, body=body_of(kind), cut_after=5)
    assert_ok(lab.get(target), body_of(kind), "STALE")


@KINDS
def test_each_query_is_its_own(lab: Lab, kind: str) -> None:
    repo = lab.repo()
    name = "n" if kind == "tags" else "artifactType"
    for value in ("1", "2"):
        lab.origins["o"].fault(
            rf"GET {path_of(kind, repo)}\?{name}={value}$", status=200, body=body_of(kind, int(value)),
            headers=(("Content-Type", "application/json"), ("Content-Length", str(len(body_of(kind, int(value))))),
                     ("Link", f'<{path_of(kind, repo)}?{name}=9&last=v1>; rel="next"')),
        )  # fmt: skip
    for cache in ("MISS", "HIT"):
        for value in ("1", "2"):
            reply = lab.get(f"{path_of(kind, repo)}?{name}={value}&ns=reg.test")
            assert_ok(reply, body_of(kind, int(value)), cache)
            assert reply.header("Link") == f'<{path_of(kind, repo)}?{name}=9&last=v1&ns=reg.test>; rel="next"'
    # The link is for who asks: in the path form it is the path form.
    reply = lab.get(f"/v2/reg.test{path_of(kind, repo).removeprefix('/v2')}?{name}=1")
    assert (reply.cache, reply.header("Link")) == (
        "HIT", f'</v2/reg.test{path_of(kind, repo).removeprefix("/v2")}?{name}=9&last=v1>; rel="next"',
    )  # fmt: skip


@KINDS
def test_with_verify_a_list_is_for_its_login(lab: Lab, kind: str) -> None:
    repo = lab.repo()
    guarded = lab.origins["guarded"]
    assert isinstance(guarded, GuardedOrigin)
    guarded.readers[repo] = {ALICE}
    body, target = body_of(kind), f"{path_of(kind, repo)}?ns=verify.test"
    guarded.fault(f"GET {path_of(kind, repo)}", times=1, status=200, body=body, headers=(("Content-Length", str(len(body))),))
    assert_ok(lab.get(target, login(ALICE)), body, "MISS")
    assert_ok(lab.get(target, login(ALICE)), body, "HIT")
    assert lab.get(target, login(BOB)).status == 403
    assert lab.get(target).status in (401, 403)
    time.sleep(BRIEF)
    down = guarded.fault(f"GET {path_of(kind, repo)}", status=503)
    assert_ok(lab.get(target, login(ALICE)), body, "STALE")
    assert lab.get(target, login(BOB)).status == 503
    down.remove()
    # What she is refused now is not hers any more, neither fresh nor stale.
    guarded.readers[repo] = set()
    assert lab.get(target, login(ALICE)).status == 403
    guarded.fault(f"GET {path_of(kind, repo)}", status=503)
    assert lab.get(target, login(ALICE)).status == 503


def test_a_registry_without_referrers_is_asked_once(lab: Lab) -> None:
    """docker-registry 2.8 answers 404; clients fall back to a tag then, with every pod. For this login only."""
    repo = lab.repo()
    image = lab.image("o", repo)
    target = f"/v2/{repo}/referrers/{image.digest}?ns=reg.test"
    lab.origins["o"].fault(f"GET /v2/{repo}/referrers", status=404, body=b'{"errors": []}')
    for _ in range(3):
        reply = lab.get(target)
        assert (reply.status, reply.body) == (404, b'{"errors": []}')
    assert len(lab.asked("o", repo)) == 1
    assert lab.get(target, login(ALICE)).status == 404
    assert len(lab.asked("o", repo)) == 2
    never = target.replace("reg.test", "never.test")
    assert lab.get(never).status == 404
    lab.origins["o"].fault(f"GET /v2/{repo}/referrers", status=503)
    assert lab.get(never).status == 404, "on an outage, too: clients go on to the tag, which is here"
    # A 404 of a tag list says that there is no such repository, perhaps only for this login, and only now.
    tags = f"/v2/{repo}x/tags/list?ns=reg.test"
    for _ in range(2):
        assert lab.get(tags).status == 404
    assert len(lab.asked("o", f"{repo}x")) == 2


@KINDS
@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b"<html>", b'{"tags": 5, "manifests": 5}', b'{"tags": ["\xff"], "manifests": []}', b""]
)
def test_what_is_no_list_passes_through(lab: Lab, kind: str, body: bytes) -> None:
    repo = lab.repo()
    say(lab, "o", kind, repo, body)
    for _ in range(2):
        assert_ok(lab.get(f"{path_of(kind, repo)}?ns=reg.test"), body, "BYPASS")
    assert len(lab.asked("o", repo)) == 2


@KINDS
@pytest.mark.parametrize("chunked", [True, False])
def test_a_huge_list_passes_through(lab: Lab, kind: str, chunked: bool) -> None:
    repo = lab.repo()
    member = "tags" if kind == "tags" else "manifests"
    body = json.dumps({member: ["x" * 1000] * 3000}).encode()
    headers = () if chunked else (("Content-Length", str(len(body))),)
    lab.origins["o"].fault(f"GET {path_of(kind, repo)}", status=200, body=body, headers=headers, chunked=chunked)
    for _ in range(2):
        assert_ok(lab.get(f"{path_of(kind, repo)}?ns=reg.test"), body, "BYPASS")


@KINDS
def test_many_at_once_are_one_question(lab: Lab, kind: str) -> None:
    repo = lab.repo()
    release = threading.Event()
    body = body_of(kind)
    lab.origins["o"].fault(
        f"GET {path_of(kind, repo)}", status=200, body=body, headers=(("Content-Length", str(len(body))),),
        hold=release, hold_at=-1,
    )  # fmt: skip
    with ExitStack() as stack:
        clients = [stack.enter_context(lab.cache.connect()) for _ in range(20)]
        for client in clients:
            client.ask(f"{path_of(kind, repo)}?ns=reg.test")
        lab.wait_waiting(20)
        release.set()
        for client in clients:
            assert_ok(client.read_reply(), body)
    assert len(lab.asked("o", repo)) == 1


@pytest.mark.parametrize("status", [200, 404])
def test_no_referrers_are_not_believed_for_long(own: Starter, status: int) -> None:
    """A signature comes a moment after its image, and whoever asked between the two must not be refused for `tag_ttl`."""
    origin = own.origin(Origin())
    config = f'[registries."reg.test"]\nupstream = "{origin.url}"\ntag_ttl = "1h"'
    env = {"HOSTILE_CONSTANTS": "cacheyd.cache.kept_lists.NOTHING_TTL=0.3"}
    lab = Lab(own.daemon(config, env=env, kind=Launched), {"o": origin}, own.numbers)
    repo = lab.repo()
    target = f"{path_of('referrers', repo)}?ns=reg.test"
    empty = b'{"schemaVersion": 2, "manifests": []}'
    fault = origin.fault(f"GET {path_of('referrers', repo)}", status=status, body=empty)
    for _ in range(2):
        assert (lab.get(target).status, len(lab.asked("o", repo))) == (status, 1)
    fault.remove()
    say(lab, "o", "referrers", repo, body_of("referrers"))
    time.sleep(0.35)
    for cache in ("MISS", "HIT"):
        assert_ok(lab.get(target), body_of("referrers"), cache)
    time.sleep(0.35)
    assert_ok(lab.get(target), body_of("referrers"), "HIT")


@KINDS
def test_lists_survive_a_restart(own: Starter, kind: str) -> None:
    origin = own.origin(Origin())
    lab = own.lab(f'[registries."reg.test"]\nupstream = "{origin.url}"\ntag_ttl = "1h"', {"o": origin})
    repo = lab.repo()
    say(lab, "o", kind, repo, body_of(kind))
    target = f"{path_of(kind, repo)}?ns=reg.test"
    lab.get(target)
    lab.cache.restart()
    origin.fault(".*", status=503)
    wait_until(lambda: lab.get(target).status == 200, "the index is read", seconds=5)
    assert_ok(lab.get(target), body_of(kind), "HIT")


def test_an_admission_controller_during_an_outage(lab: Lab) -> None:
    """Tag, referrers, and the signature by its tag: all that a policy asks for with each pod is here."""
    repo = lab.repo()
    image, signature = lab.image("o", repo), lab.image("o", repo, "sig")
    subject = quote(image.digest, safe=":")
    body = body_of("referrers")
    lab.origins["o"].fault(f"GET /v2/{repo}/referrers", times=1, status=200, body=body)
    targets = [
        manifest_target(repo, "1.0", "never.test"), f"/v2/{repo}/referrers/{subject}?ns=never.test",
        manifest_target(repo, "sig", "never.test"),
    ]  # fmt: skip
    for target in targets:
        assert lab.get(target).status == 200
    lab.origins["o"].fault(f"/v2/{repo}/", status=502)
    bodies = [image.manifest, body, signature.manifest]
    for target, expected in zip(targets, bodies, strict=True):
        assert_ok(lab.get(target), expected, "STALE")
