"""containerd pulls through cacheyd from a docker-registry with TLS, login and CDN redirects."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.real.cache import Cacheyd
from tests.real.containerd import CRI_NAMESPACE, Containerd, Pull
from tests.real.lab import REGISTRY, Lab, contents, image_for, new_image
from tests.real.procs import wait_until
from tests.support.images import Index

LOCAL = "linux/amd64"


def assert_complete(containerd: Containerd, pull: Pull, reference: str, digests: set[str]) -> None:
    assert pull.ok, pull.output
    assert containerd.check(pull.namespace) == {reference: True}
    assert containerd.digests(pull.namespace) == digests


def assert_fetched_once(lab: Lab, repository: str, content: Index, digests: set[str]) -> None:
    """By the access logs of the registry and of the CDN."""
    assert lab.downloads(repository) == dict.fromkeys(digests, 1)
    assert lab.cdn
    for _, image in content.images:
        for blob in image.blobs:
            expected = [(200, len(blob.data), "-")] if blob.digest in digests else []
            assert lab.cdn.downloads(blob.digest) == expected


@pytest.mark.parametrize("options", [(), ("--all-platforms",)], ids=["local", "all-platforms"])
@pytest.mark.parametrize("named_by", ["tag", "digest"])
def test_pull_and_pull_again_without_registry(
    lab: Lab, cache: Cacheyd, containerd: Containerd, tmp_path: Path, named_by: str, options: tuple[str, ...]
) -> None:
    repository = f"lab/{named_by}-{len(options)}"
    image = lab.publish(tmp_path, repository)
    reference = f"{REGISTRY}/{repository}" + (":1.0" if named_by == "tag" else f"@{image.digest}")
    digests = contents(image) if options else contents(image, LOCAL)
    hosts = lab.hosts(tmp_path / "hosts", cache.url)

    cold = containerd.pull(reference, hosts, None, *options)
    assert_complete(containerd, cold, reference, digests)
    assert_fetched_once(lab, repository, image, digests)

    assert lab.tokens
    upstream, logins = len(lab.registry.requests()), len(lab.tokens.requests())
    lab.registry.stop()
    try:
        warm = containerd.pull(reference, hosts, None, *options)
    finally:
        lab.registry.start()
    assert_complete(containerd, warm, reference, digests)
    assert len(lab.registry.requests()) == upstream
    assert len(lab.tokens.requests()) == logins
    assert_fetched_once(lab, repository, image, digests)
    wait_until(lambda: digests <= cache.stored(), "all of it is kept")


def test_second_containerd_has_no_need_of_registry(
    lab: Lab, cache: Cacheyd, containerd: Containerd, real_dir: Path, tmp_path: Path
) -> None:
    image = lab.publish(tmp_path, "lab/second-root")
    reference = f"{REGISTRY}/lab/second-root:1.0"
    hosts = lab.hosts(tmp_path / "hosts", cache.url)
    assert containerd.pull(reference, hosts).ok
    lab.registry.stop()
    try:
        with Containerd(real_dir / "c2") as other:
            assert_complete(other, other.pull(reference, hosts), reference, contents(image, LOCAL))
    finally:
        lab.registry.start()


def test_cri_pull(lab: Lab, cache: Cacheyd, containerd: Containerd, tmp_path: Path) -> None:
    image = lab.publish(tmp_path, "lab/cri")
    reference = f"{REGISTRY}/lab/cri:1.0"
    local, digests = image_for(image, LOCAL), contents(image, LOCAL)
    lab.hosts(containerd.cri_hosts, cache.url)

    assert containerd.cri_pull(reference) == local.config.digest
    assert containerd.digests(CRI_NAMESPACE) == digests
    assert all(containerd.check(CRI_NAMESPACE).values())
    assert_fetched_once(lab, "lab/cri", image, digests)

    containerd.cri_remove(reference)
    upstream = len(lab.registry.requests())
    assert containerd.cri_pull(reference) == local.config.digest
    assert containerd.digests(CRI_NAMESPACE) == digests
    assert len(lab.registry.requests()) == upstream
    containerd.cri_remove(reference)


def test_nodes_that_pull_at_once_share_one_download(lab: Lab, cache: Cacheyd, containerd: Containerd, tmp_path: Path) -> None:
    image = lab.publish(tmp_path, "lab/together", content=new_image(layers=4, layer_size=3_000_000))
    reference = f"{REGISTRY}/lab/together:1.0"
    hosts = lab.hosts(tmp_path / "hosts", cache.url)
    namespaces = [containerd.namespace() for _ in range(4)]
    with ThreadPoolExecutor(len(namespaces)) as nodes:
        pulls = list(nodes.map(lambda namespace: containerd.pull(reference, hosts, namespace), namespaces))
    for pull in pulls:
        assert_complete(containerd, pull, reference, contents(image, LOCAL))
    assert_fetched_once(lab, "lab/together", image, contents(image, LOCAL))


def test_moved_tag_is_noticed(lab: Lab, cache: Cacheyd, containerd: Containerd, tmp_path: Path) -> None:
    """`latest` is asked for upstream each time, with a HEAD, and nothing is downloaded again while it stays."""
    reference = f"{REGISTRY}/lab/moving:latest"
    hosts = lab.hosts(tmp_path / "hosts", cache.url)
    for _ in range(2):
        image = lab.publish(tmp_path, "lab/moving", "latest")
        for _ in range(2):
            pull = containerd.pull(reference, hosts)
            assert_complete(containerd, pull, reference, contents(image, LOCAL))
        downloads = lab.downloads("lab/moving")
        assert {digest: downloads[digest] for digest in contents(image, LOCAL)} == dict.fromkeys(contents(image, LOCAL), 1)


def test_last_known_tag_while_registry_is_down(lab: Lab, cache: Cacheyd, containerd: Containerd, tmp_path: Path) -> None:
    """`latest` is never fresh, but better than nothing."""
    image = lab.publish(tmp_path, "lab/stale", "latest")
    reference = f"{REGISTRY}/lab/stale:latest"
    hosts = lab.hosts(tmp_path / "hosts", cache.url)
    assert containerd.pull(reference, hosts).ok
    before = cache.metric("cacheyd_requests_total", 'result="stale"')
    lab.registry.stop()
    try:
        assert_complete(containerd, containerd.pull(reference, hosts), reference, contents(image, LOCAL))
    finally:
        lab.registry.start()
    assert cache.metric("cacheyd_requests_total", 'result="stale"') == before + 1


def test_unknown_tag_is_the_registrys_answer(lab: Lab, cache: Cacheyd, containerd: Containerd, tmp_path: Path) -> None:
    lab.publish(tmp_path, "lab/known")
    pull = containerd.pull(f"{REGISTRY}/lab/known:nope", lab.hosts(tmp_path / "hosts", cache.url))
    assert not pull.ok
    assert "not found" in pull.output


def test_cache_down_is_no_harm(lab: Lab, containerd: Containerd, tmp_path: Path) -> None:
    """Nobody listens at the mirror's address: containerd goes to the registry."""
    image = lab.publish(tmp_path, "lab/fallback")
    reference = f"{REGISTRY}/lab/fallback:1.0"
    pull = containerd.pull(reference, lab.hosts(tmp_path / "hosts", "http://127.0.0.1:9"))
    assert_complete(containerd, pull, reference, contents(image, LOCAL))


def test_cache_stopped_then_back(lab: Lab, containerd: Containerd, cache: Cacheyd, tmp_path: Path) -> None:
    """A stopped cache is passed by; once it is back, what it had before is still there."""
    image = lab.publish(tmp_path, "lab/restart")
    reference, digests = f"{REGISTRY}/lab/restart:1.0", contents(image, LOCAL)
    hosts = lab.hosts(tmp_path / "hosts", cache.url)
    assert_complete(containerd, containerd.pull(reference, hosts), reference, digests)
    assert cache.stop() == 0
    try:
        assert_complete(containerd, containerd.pull(reference, hosts), reference, digests)
    finally:
        cache.start()
    before = lab.downloads("lab/restart")
    assert_complete(containerd, containerd.pull(reference, hosts), reference, digests)
    assert lab.downloads("lab/restart") == before


@pytest.mark.parametrize("through", ["mirror", "server"])
def test_override_path(lab: Lab, cache: Cacheyd, containerd: Containerd, tmp_path: Path, through: str) -> None:
    """The registry is named in the path, and by ns as well."""
    repository = f"lab/override-{through}"
    image = lab.publish(tmp_path, repository)
    reference = f"{REGISTRY}/{repository}:1.0"
    url = f"{cache.url}/v2/{REGISTRY}"
    lines = ['capabilities = ["pull", "resolve"]', "override_path = true"]
    # As the server, with nobody to fall back to; or as a mirror, before a registry that is not there.
    server, host = (url, "[host]") if through == "server" else ("https://127.0.0.1:9", f"[host.{json.dumps(url)}]")
    text = [f"server = {json.dumps(server)}", *((*lines, host) if through == "server" else (host, *lines))]
    hosts = tmp_path / "hosts"
    (hosts / f"{REGISTRY.replace(':', '_')}_").mkdir(parents=True)
    (hosts / f"{REGISTRY.replace(':', '_')}_" / "hosts.toml").write_text("\n".join(text) + "\n")

    pull = containerd.pull(reference, hosts)

    assert_complete(containerd, pull, reference, contents(image, LOCAL))
    assert_fetched_once(lab, repository, image, contents(image, LOCAL))
    assert_complete(containerd, containerd.pull(reference, hosts), reference, contents(image, LOCAL))
    # The plain mirror finds the same objects.
    plain = containerd.pull(reference, lab.hosts(tmp_path / "plain", cache.url))
    assert_complete(containerd, plain, reference, contents(image, LOCAL))
    assert_fetched_once(lab, repository, image, contents(image, LOCAL))
