"""`allow` and `deny` by repository and tag, over sockets: each kind of request, hits too, and `warm`."""

import json
from dataclasses import dataclass

import pytest

from cacheyd import cli
from tests.faults.client import Reply
from tests.policy.conftest import Starter
from tests.policy.lab import CONTAINERD, Lab, assert_denied, assert_ok
from tests.policy.test_config_commands import FileDaemon
from tests.support.commands import run_command
from tests.support.images import Image
from tests.support.origin import Origin

ACCEPT = {"Accept": CONTAINERD[0]}
RULES = """
allow = ["reg.test/library/*", "reg.test/tagged/app:1.*", "open.test", "docker.io"]
deny = ["reg.test", "open.test/secret/*", "reg.test/library/banned", "*/*:latest", "docker.io/bad"]
"""


@pytest.fixture(scope="module")
def lab(shared: Starter) -> Lab:
    origin = shared.origin(Origin())
    names = ("reg.test", "open.test", "docker.io", "other.test")
    tables = "".join(f'[registries."{name}"]\nupstream = "{origin.url}"\n' for name in names)
    return shared.lab(RULES + tables, {"o": origin})


def rule(reply: Reply) -> str:
    """The rule that a 403 names."""
    assert_denied(reply)
    (error,) = json.loads(reply.body)["errors"]
    assert error["detail"]["rule"] in error["message"]
    return str(error["detail"]["rule"])


def targets(repo: str, image: Image, tag: str = "1.0") -> dict[str, str]:
    """Everything that there is to ask for."""
    return {
        "tag": f"{repo}/manifests/{tag}", "digest": f"{repo}/manifests/{image.digest}",
        "blob": f"{repo}/blobs/{image.config.digest}", "tags": f"{repo}/tags/list",
        "referrers": f"{repo}/referrers/{image.digest}",
    }  # fmt: skip


KINDS = ("tag", "digest", "blob", "tags", "referrers")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("registry", "repo", "by"),
    [
        ("reg.test", "elsewhere/app", 'deny = "reg.test"'),
        ("reg.test", "library/banned", 'deny = "reg.test/library/banned"'),
        ("reg.test", "tagged/other", 'deny = "reg.test"'),
        ("open.test", "secret/app", 'deny = "open.test/secret/*"'),
        ("docker.io", "library/bad", 'deny = "docker.io/bad"'),
        ("docker.io", "bad", 'deny = "docker.io/bad"'),
        ("other.test", "library/app", "allow"),
    ],
)
def test_what_is_refused_in_a_repository_is_refused_in_each_way(
    lab: Lab, registry: str, repo: str, by: str, kind: str
) -> None:
    image = lab.image("o", repo)
    before = len(lab.origins["o"].requests)
    rest = targets(repo, image)[kind]
    for target in (f"/v2/{rest}?ns={registry}", f"/v2/{registry}/{rest}", f"/v2/{registry}/{rest}?ns={registry}"):
        assert rule(lab.get(target, ACCEPT)) == by
        assert lab.get(target, ACCEPT, method="HEAD").status == 403
    assert len(lab.origins["o"].requests) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("registry", "repo"),
    [("reg.test", "library/fine"), ("reg.test", "tagged/app"), ("open.test", "public/app"), ("docker.io", "library/good")],
)
def test_what_is_allowed_is_answered(lab: Lab, registry: str, repo: str, kind: str) -> None:
    image = lab.image("o", repo)
    for _ in range(2):
        reply = lab.get(f"/v2/{targets(repo, image)[kind]}?ns={registry}", ACCEPT)
        # The origin knows no referrers of an image that has none.
        assert reply.status == 200 or (kind, reply.status) == ("referrers", 404), reply.body
        lab.settle()


def test_a_tag_is_refused_and_the_same_by_its_digest_is_not(lab: Lab) -> None:
    repo = f"public/{lab.repo()}"
    image = lab.image("o", repo, "latest")
    lab.origins["o"].push(repo, "1.0", image)
    assert rule(lab.get(f"/v2/{repo}/manifests/latest?ns=open.test", ACCEPT)) == 'deny = "*/*:latest"'
    assert_ok(lab.get(f"/v2/{repo}/manifests/1.0?ns=open.test", ACCEPT), image.manifest)
    assert_ok(lab.get(f"/v2/{repo}/manifests/{image.digest}?ns=open.test", ACCEPT), image.manifest)


def test_only_some_tags_are_allowed(lab: Lab) -> None:
    image = lab.image("o", "tagged/app", "1.7")
    lab.origins["o"].push("tagged/app", "2.0", image)
    assert_ok(lab.get("/v2/tagged/app/manifests/1.7?ns=reg.test", ACCEPT), image.manifest)
    assert rule(lab.get("/v2/tagged/app/manifests/2.0?ns=reg.test", ACCEPT)) == 'deny = "reg.test"'


def test_warm_is_refused_too(lab: Lab) -> None:
    repo = f"secret/{lab.repo()}"
    lab.image("o", repo)
    lab.image("o", "library/warmed")
    done = run_command(lab.cache, "warm", f"open.test/{repo}:1.0", "reg.test/library/warmed:1.0", status=1)
    assert 'deny = "open.test/secret/*"' in (done.stdout + done.stderr).decode()
    assert "1 of 2 images is in the cache" in done.stdout.decode()
    assert lab.asked("o", repo) == []


# Hits


@dataclass(frozen=True)
class Reloading:
    """A daemon whose file can be changed."""

    daemon: FileDaemon
    origin: Origin

    def take(self, rules: str) -> None:
        """New rules."""
        self.daemon.reload(f'{rules}\n[registries."a.test"]\nupstream = "{self.origin.url}"\n')


@pytest.fixture
def reloading(own: Starter) -> Reloading:
    origin = own.origin(Origin())
    daemon = own.daemon(f'[registries."a.test"]\nupstream = "{origin.url}"\n', kind=FileDaemon)
    assert isinstance(daemon, FileDaemon)
    return Reloading(daemon, origin)


def test_hits_are_refused_from_the_next_reload_on(reloading: Reloading, own: Starter) -> None:
    lab = Lab(reloading.daemon, {"o": reloading.origin}, own.numbers)
    image, other = lab.image("o", "acme/app"), lab.image("o", "acme/other")
    found = targets("acme/app", image)
    hits = {kind: f"/v2/{found[kind]}?ns=a.test" for kind in ("tag", "digest", "blob")}
    beside = "/v2/acme/other/manifests/1.0?ns=a.test"
    for target in (*hits.values(), beside):
        lab.pull(target, ACCEPT)
        # The second one is a quick reply.
        for _ in range(2):
            assert lab.get(target, ACCEPT).cache == "HIT"
    for rules, refused in (
        ('deny = ["a.test/acme/app"]', {"tag", "digest", "blob"}),
        ('deny = ["*/*/app:1.0"]', {"tag"}),
        ('allow = ["a.test/acme/other"]', {"tag", "digest", "blob"}),
        ('allow = ["a.test/acme/app:2.*", "a.test/acme/other"]', {"tag"}),
        ('allow = ["a.test/acme/app"]\ndeny = ["a.test"]', set()),
        ("", set()),
    ):
        reloading.take(rules)
        for kind, target in hits.items():
            for method in ("GET", "GET", "HEAD"):
                reply = lab.get(target, ACCEPT, method=method)
                assert reply.status == (403 if kind in refused else 200), (rules, kind)
                assert kind in refused or reply.cache == "HIT"
        if 'acme/app"]\ndeny' not in rules:
            assert_ok(lab.get(beside, ACCEPT), other.manifest, "HIT")


def test_a_rule_that_can_never_match_changes_nothing_while_running(reloading: Reloading) -> None:
    reloading.daemon.expect("settings not reloaded")
    (line,) = reloading.daemon.reload('deny = ["a.test/Acme/*"]')
    assert json.loads(line)["level"] == "error"
    assert "a.test/Acme/*" in json.loads(line)["msg"]


# The start


@pytest.mark.parametrize("setting", ["allow", "deny"])
@pytest.mark.parametrize("pattern", ["docker.io/Library/*", "ghcr.io/", "ghcr.io/a:b:c", "https://ghcr.io", "*.Corp.test"])
def test_a_rule_that_can_never_match_stops_the_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, setting: str, pattern: str
) -> None:
    monkeypatch.setenv(f"CACHEYD_{setting.upper()}", f"quay.io,{pattern}")
    for command in (["config", "check"], ["serve"]):
        assert cli.main(command) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert f"CACHEYD_{setting.upper()} = " in err
        assert f'"{pattern}" can never match: ' in err
