"""A 404 is for the login that was told so: registries hide private repositories by it, and a stranger may ask at any time."""

import re
import threading
import time
from contextlib import ExitStack

import pytest

from tests.faults.client import Reply
from tests.faults.scene import manifest_target
from tests.policy.conftest import Starter
from tests.policy.lab import Lab, assert_ok, login
from tests.support.images import DOCKER_MANIFEST, Image
from tests.support.origin import Origin
from tests.support.origin_http import Answer, Request, oci_error

ALICE, BOB, CAROL = "Bearer alice", "Bearer bob", "Bearer carol"
METHODS = pytest.mark.parametrize("method", ["GET", "HEAD"])
STRANGERS = pytest.mark.parametrize("stranger", [None, BOB], ids=["nobody", "bob"])


class HidingOrigin(Origin):
    """Says 404 of a repository to all but its readers."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: dict[str, set[str | None]] = {}

    def _answer(self, request: Request) -> Answer:
        match = re.fullmatch(r"/v2/(.+)/(?:manifests|blobs|tags|referrers)/.+", request.route)
        readers = self.readers.get(match[1]) if match else None
        if readers is None or request.header("Authorization") in readers:
            return super()._answer(request)
        return oci_error(404, "NAME_UNKNOWN", "there is no such repository")


@pytest.fixture(scope="module")
def lab(shared: Starter) -> Lab:
    origin = shared.origin(HidingOrigin())
    config = "".join(
        f'[registries."{name}.test"]\nupstream = "{origin.url}"\ntag_ttl = "{tag_ttl}"\naccess = "{access}"\n'
        for name, tag_ttl, access in (("asking", "0s", "open"), ("fresh", "1s", "open"), ("verify", "0s", "verify"))
    )
    return shared.lab(config, {"o": origin})


def hidden(lab: Lab, registry: str, *readers: str | None) -> tuple[str, Image, str]:
    """A repository of these readers, pulled by the first; its image, and the target of its tag."""
    repo = lab.repo()
    origin = lab.origins["o"]
    assert isinstance(origin, HidingOrigin)
    origin.readers[repo] = set(readers)
    image = lab.image("o", repo)
    target = manifest_target(repo, "1.0", registry)
    assert_ok(lab.pull(target, login(readers[0])), image.manifest)
    return repo, image, target


def reads_now(lab: Lab, repo: str, *readers: str | None) -> None:
    origin = lab.origins["o"]
    assert isinstance(origin, HidingOrigin)
    origin.readers[repo] = set(readers)


def assert_stale(reply: Reply, image: Image) -> None:
    assert_ok(reply, image.manifest, "STALE")


@METHODS
@STRANGERS
@pytest.mark.parametrize("registry", ["asking.test", "verify.test"])
def test_the_owner_has_his_tag_while_the_registry_is_down(lab: Lab, registry: str, stranger: str | None, method: str) -> None:
    repo, image, target = hidden(lab, registry, ALICE)
    for _ in range(2):
        assert lab.get(target, login(stranger), method=method).status == 404
    fault = lab.origins["o"].fault(repo, status=503)
    assert_stale(lab.get(target, login(ALICE)), image)
    # Who was told that there is none is not told otherwise now.
    assert lab.get(target, login(stranger), method=method).status == 503
    assert_stale(lab.get(target, login(ALICE)), image)
    fault.remove()
    assert lab.get(target, login(ALICE)).cache == "REVALIDATED"


@METHODS
def test_a_fresh_tag(lab: Lab, method: str) -> None:
    """It is everybody's (`open`) who was not told otherwise."""
    repo, image, target = hidden(lab, "fresh.test", ALICE)
    time.sleep(1.05)
    assert lab.get(target, login(BOB), method=method).status == 404
    assert_ok(lab.get(target, login(ALICE)), image.manifest, "REVALIDATED")
    before = len(lab.asked("o", repo))
    assert lab.get(target, login(CAROL), method=method).cache == "HIT"
    assert len(lab.asked("o", repo)) == before
    assert lab.get(target, login(BOB), method=method).status == 404


def test_a_404_of_other_types(lab: Lab) -> None:
    """Some registries say 404 of a tag that is not of the types asked for; all who bring no login are one."""
    repo, image, target = hidden(lab, "asking.test", None)
    fault = lab.origins["o"].fault(repo, status=404)
    assert lab.get(target, {"Accept": DOCKER_MANIFEST}).status == 404
    fault.remove()
    fault = lab.origins["o"].fault(repo, status=503)
    assert lab.get(target, {"Accept": DOCKER_MANIFEST}).status == 503
    assert_stale(lab.get(target), image)
    fault.remove()


@METHODS
def test_who_is_let_in_later_has_it_too(lab: Lab, method: str) -> None:
    repo, image, target = hidden(lab, "asking.test", ALICE)
    assert lab.get(target, login(BOB), method=method).status == 404
    reads_now(lab, repo, ALICE, BOB)
    assert lab.get(target, login(BOB), method=method).status == 200
    fault = lab.origins["o"].fault(repo, status=503)
    assert_stale(lab.get(target, login(BOB)), image)
    fault.remove()


@METHODS
def test_a_deleted_tag_is_gone_for_who_asks(lab: Lab, method: str) -> None:
    """As ever, for the common case: everybody is nobody in particular."""
    repo, image, target = hidden(lab, "asking.test", None)
    lab.origins["o"].delete_tag(repo, "1.0")
    assert lab.get(target, method=method).status == 404
    fault = lab.origins["o"].fault(repo, status=503)
    assert lab.get(target).status == 503
    assert lab.get(target, method="HEAD").status == 503
    fault.remove()
    assert_ok(lab.get(manifest_target(repo, image.digest, "asking.test")), image.manifest, "HIT")
    lab.origins["o"].push(repo, "1.0", image)
    assert lab.get(target).status == 200
    fault = lab.origins["o"].fault(repo, status=503)
    assert_stale(lab.get(target), image)
    fault.remove()


def test_an_owner_who_was_shut_out(lab: Lab) -> None:
    repo, image, target = hidden(lab, "asking.test", ALICE, CAROL)
    reads_now(lab, repo, CAROL)
    assert lab.get(target, login(ALICE)).status == 404
    fault = lab.origins["o"].fault(repo, status=503)
    assert lab.get(target, login(ALICE)).status == 503
    assert_stale(lab.get(target, login(CAROL)), image)
    fault.remove()


def test_a_404_of_anything_else_takes_no_tag(lab: Lab) -> None:
    repo, image, target = hidden(lab, "asking.test", ALICE)
    for what in (f"/v2/{repo}/tags/list?ns=asking.test", manifest_target(repo, "sha256:" + "0" * 64, "asking.test")):
        for method in ("GET", "HEAD"):
            assert lab.get(what, login(BOB), method=method).status == 404
    fault = lab.origins["o"].fault(repo, status=503)
    assert_stale(lab.get(target, login(BOB)), image)
    fault.remove()


def test_strangers_who_ask_at_once_with_the_owner(lab: Lab) -> None:
    repo, image, target = hidden(lab, "asking.test", ALICE)
    release = threading.Event()
    with ExitStack() as clients:
        fault = lab.origins["o"].fault(repo, times=1, hold=release, hold_at=-1)
        clients.callback(fault.remove)
        clients.callback(release.set)
        bob, alice = clients.enter_context(lab.cache.connect()), clients.enter_context(lab.cache.connect())
        before = len(lab.asked("o", repo))
        bob.ask(target, login(BOB))
        lab.wait_asked("o", repo, before + 1)
        alice.ask(target, login(ALICE))
        lab.wait_waiting(2)
        release.set()
        assert bob.read_reply().status == 404
        assert_ok(alice.read_reply(), image.manifest)
