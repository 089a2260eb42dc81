"""What was decided by the old settings counts no more after a reload: grants, failures, rate limits, dead origins."""

import threading
import time
from contextlib import ExitStack

import pytest

from tests.faults.scene import blob_target, manifest_target
from tests.policy.conftest import Starter
from tests.policy.lab import STREAMED, Lab, assert_ok, login, target_of
from tests.policy.origins import GuardedOrigin
from tests.policy.test_config_commands import FileDaemon
from tests.real.procs import wait_until
from tests.support.images import random_bytes
from tests.support.origin import Origin

ALICE, BOB = "Bearer alice", "Bearer bob"
KINDS = pytest.mark.parametrize("kind", ["tag", "digest", "blob"])


@pytest.fixture(scope="module")
def lab(shared: Starter) -> Lab:
    origins: dict[str, Origin] = {name: shared.origin(GuardedOrigin()) for name in ("first", "second")}
    origins |= {name: shared.origin(Origin()) for name in ("plain", "down", "floor")}
    return Lab(shared.daemon(config(origins), kind=FileDaemon), origins, shared.numbers)


def config(origins: dict[str, Origin], upstream: str = "first", *, access_ttl: str = "1h") -> str:
    others = "".join(
        f'[registries."{name}.test"]\nupstream = "{origins[name].url}"\ntag_ttl = "0s"\nratelimit_floor = 50\n'
        for name in ("plain", "down", "floor")
    )
    return (
        f'[registries."verify.test"]\nupstream = "{origins[upstream].url}"\naccess = "verify"\n'
        f'access_ttl = "{access_ttl}"\n{others}'
    )


def reload(lab: Lab, upstream: str = "first", *, access_ttl: str = "1h") -> None:
    assert isinstance(lab.cache, FileDaemon)
    lab.cache.reload(config(dict(lab.origins), upstream, access_ttl=access_ttl))


def readers(lab: Lab, repo: str, *logins: str, origin: str = "first") -> None:
    guarded = lab.origins[origin]
    assert isinstance(guarded, GuardedOrigin)
    guarded.readers[repo] = set(logins)


# Grants


@KINDS
@pytest.mark.parametrize("access_ttl", ["1h", "0s"])
def test_a_login_that_was_revoked(lab: Lab, kind: str, access_ttl: str) -> None:
    reload(lab)
    repo = lab.repo()
    readers(lab, repo, ALICE)
    target = target_of(kind, repo, lab.image("first", repo), "verify.test")
    lab.pull(target, login(ALICE))
    readers(lab, repo, BOB)
    assert lab.get(target, login(ALICE)).cache == "HIT", "for access_ttl"
    reload(lab, access_ttl=access_ttl)
    for method in ("GET", "HEAD"):
        assert lab.get(target, login(ALICE), method=method).status == 403
    assert lab.get(target, login(BOB)).cache == "HIT"


def test_with_a_ttl_of_zero_each_request_asks(lab: Lab) -> None:
    reload(lab)
    repo = lab.repo()
    readers(lab, repo, ALICE)
    image = lab.image("first", repo)
    target = target_of("blob", repo, image, "verify.test")
    lab.pull(target, login(ALICE))
    reload(lab, access_ttl="0s")
    before = len(lab.asked("first", repo, "HEAD"))
    for _ in range(3):
        assert lab.get(target, login(ALICE)).cache == "HIT"
    assert len(lab.asked("first", repo, "HEAD")) == before + 3


def test_what_is_being_asked_meanwhile_is_asked_again(lab: Lab) -> None:
    """The registry moves while its old upstream is about to say yes."""
    reload(lab)
    repo = lab.repo()
    readers(lab, repo, ALICE)
    readers(lab, repo, BOB, origin="second")
    blob = lab.blob("first", repo)
    target = blob_target(repo, blob.digest, "verify.test")
    lab.pull(target, login(ALICE))
    reload(lab)
    release = threading.Event()
    with ExitStack() as clients:
        fault = lab.origins["first"].fault(f"^HEAD .*{repo}", times=1, hold=release, hold_at=-1)
        clients.callback(fault.remove)
        clients.callback(release.set)
        alice = clients.enter_context(lab.cache.connect())
        before = len(lab.asked("first", repo))
        alice.ask(target, login(ALICE))
        lab.wait_asked("first", repo, before + 1)
        reload(lab, "second")
        release.set()
        assert alice.read_reply().status == 403
    assert lab.get(target, login(ALICE)).status == 403


def test_a_refusal_ends_a_grant(lab: Lab) -> None:
    """Without a reload, too: what the registry refuses a login now is not served to it from here."""
    reload(lab)
    repo = lab.repo()
    readers(lab, repo, ALICE)
    image = lab.image("first", repo)
    target = target_of("digest", repo, image, "verify.test")
    lab.pull(target, login(ALICE))
    readers(lab, repo, BOB)
    assert lab.get(target, login(ALICE)).cache == "HIT", "for access_ttl"
    assert lab.get(target_of("blob", repo, image, "verify.test"), login(ALICE)).status == 403
    assert lab.get(target, login(ALICE)).status == 403


# What was learned of upstreams


def test_a_failure(lab: Lab) -> None:
    reload(lab)
    repo = lab.repo()
    blob = lab.blob("plain", repo, STREAMED)
    target = blob_target(repo, blob.digest, "plain.test")
    fault = lab.origins["plain"].fault(blob.digest, body=random_bytes(STREAMED, 1))
    assert lab.get(target).end != "complete"
    fault.remove()
    rest = {"Range": f"bytes={STREAMED // 2}-"}
    assert lab.get(target, rest).status == 502
    reload(lab)
    reply = lab.get(target, rest)
    assert (reply.status, reply.body) == (206, blob.data[STREAMED // 2 :])


def test_a_rate_limit(lab: Lab) -> None:
    reload(lab)
    repo = lab.repo()
    image = lab.image("plain", repo)
    target, mine = manifest_target(repo, "1.0", "plain.test"), login(f"Bearer {repo}")
    fault = lab.origins["plain"].fault(repo, status=429, headers=[("Retry-After", "300")])
    assert lab.get(target, mine).status == 429
    fault.remove()
    assert lab.get(target, mine).status == 429
    reload(lab)
    assert_ok(lab.get(target, mine), image.manifest)


def test_a_connection_in_use(lab: Lab) -> None:
    """Made by the old settings (certificates, say), it does not serve the next request."""
    reload(lab)
    repo, origin = lab.repo(), lab.origins["floor"]
    image = lab.image("floor", repo)
    release = threading.Event()
    with ExitStack() as clients:
        fault = origin.fault(repo, times=1, hold=release, hold_at=-1)
        clients.callback(fault.remove)
        clients.callback(release.set)
        client = clients.enter_context(lab.cache.connect())
        client.ask(manifest_target(repo, "1.0", "floor.test"))
        lab.wait_asked("floor", repo, 1)
        reload(lab)
        release.set()
        assert_ok(client.read_reply(), image.manifest)
    wait_until(lambda: not origin._connections, "it is closed", seconds=5)


def test_a_dead_origin(lab: Lab) -> None:
    reload(lab)
    repo = lab.repo()
    image = lab.image("down", repo)
    target = manifest_target(repo, "1.0", "down.test")
    lab.origins["down"].down()
    wait_until(lambda: lab.get(target).status == 503, "it is left alone", seconds=5)
    lab.origins["down"].up()
    died = time.monotonic()
    assert lab.get(target).status == 503
    reload(lab)
    assert_ok(lab.get(target), image.manifest)
    assert time.monotonic() - died < 4.5, "before the pause of 5 s was over"


def test_how_many_pulls_are_left(lab: Lab) -> None:
    reload(lab)
    repo = lab.repo()
    lab.image("floor", repo)
    target = manifest_target(repo, "1.0", "floor.test")
    fault = lab.origins["floor"].fault("", headers=[("ratelimit-remaining", "3;w=21600")])
    lab.pull(target)
    fault.remove()
    assert lab.get(target).cache == "STALE"
    reload(lab)
    assert lab.get(target).cache == "REVALIDATED"
