"""The registry in the path, with `ns` and without it: the same objects, asked for at the same origin."""

import json
import re
from urllib.parse import quote

import pytest

from tests.policy.conftest import Starter
from tests.policy.lab import CONTAINERD, Lab, assert_ok
from tests.support.origin import Origin

REGISTRIES = ("reg.test", "reg.test:5000", "docker.io")
ACCEPT = {"Accept": CONTAINERD[0]}


@pytest.fixture(scope="module")
def lab(shared: Starter) -> Lab:
    origins = {name: shared.origin(Origin()) for name in REGISTRIES}
    tables = "".join(f'[registries."{name}"]\nupstream = "{origin.url}"\n' for name, origin in origins.items())
    return shared.lab(tables, origins)


@pytest.mark.parametrize("registry", REGISTRIES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_both_ways_find_the_same_objects(lab: Lab, registry: str, method: str) -> None:
    """stargz-snapshotter asks for manifests with ns, and for blobs without it."""
    repo, ns = lab.repo(), f"?ns={quote(registry, safe='')}"
    image = lab.image(registry, repo)
    both = f"/v2/{registry}/{repo}"
    assert_ok(lab.get(f"{both}/manifests/1.0{ns}", ACCEPT), image.manifest, "MISS")
    assert_ok(lab.get(f"{both}/blobs/{image.config.digest}", ACCEPT), image.config.data, "MISS")
    lab.settle()
    before = len(lab.asked(registry, repo))
    for prefix, query in ((both, ns), (both, ""), (f"/v2/{repo}", ns)):
        for rest, data in ((f"manifests/{image.digest}", image.manifest), (f"blobs/{image.config.digest}", image.config.data)):
            reply = lab.get(f"{prefix}/{rest}{query}", ACCEPT, method=method)
            assert (reply.status, reply.cache, reply.header("Content-Length")) == (200, "HIT", str(len(data)))
            assert reply.header("OCI-Namespace") == (registry if query else None)
            assert reply.body == (data if method == "GET" else b"")
    assert len(lab.asked(registry, repo)) == before


def test_a_piece_without_ns(lab: Lab) -> None:
    repo = lab.repo()
    blob = lab.blob("reg.test", repo)
    reply = lab.get(f"/v2/reg.test/{repo}/blobs/{blob.digest}", {"Range": "bytes=10-19"})
    assert (reply.status, reply.body) == (206, blob.data[10:20])


def test_names_of_one_part_under_docker_hub(lab: Lab) -> None:
    image = lab.image("docker.io", "library/nginx")
    for prefix in ("docker.io/nginx", "index.docker.io/nginx", "docker.io/library/nginx"):
        assert_ok(lab.get(f"/v2/{prefix}/manifests/1.0", ACCEPT), image.manifest)
    assert_ok(lab.get("/v2/docker.io/nginx/manifests/1.0?ns=docker.io", ACCEPT), image.manifest, "HIT")
    # As containerd would ask Docker Hub itself, were it not for cacheyd.
    assert lab.get("/v2/nginx/manifests/1.0?ns=docker.io", ACCEPT).status == 404


@pytest.mark.parametrize("repo", ["reg.test/app", "docker.io/app", "app"])
def test_a_repository_with_the_name_of_a_registry(lab: Lab, repo: str) -> None:
    """It is reached by the registry's name before it, with ns and without; the next page of its tags, too."""
    origin = lab.origins["reg.test"]
    image = lab.image("reg.test", repo, "1.0")
    for tag in ("1.1", "1.2"):
        origin.push(repo, tag, image)
    for query in ("?ns=reg.test", ""):
        assert_ok(lab.get(f"/v2/reg.test/{repo}/manifests/1.0{query}", ACCEPT), image.manifest)
        tags: list[str] = []
        target = f"/v2/reg.test/{repo}/tags/list{query}{'&' if query else '?'}n=1"
        while target and len(tags) < 5:
            reply = lab.get(target)
            assert reply.status == 200, (target, reply.body)
            tags += json.loads(reply.body)["tags"]
            link = re.fullmatch(r"<([^>]+)>.*", reply.header("Link") or "")
            target = link[1] if link else ""
        assert tags == ["1.0", "1.1", "1.2"]
