"""What is no image, in a real docker-registry: warmed, listed, carried to another cache, and read by other tools."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.push import Pusher
from tests.real.cache import Cacheyd
from tests.real.conftest import MakeCache, need
from tests.real.containerd import Containerd
from tests.real.lab import SHORT_REGISTRY, registry_table
from tests.real.procs import free_port
from tests.real.registry import DockerRegistry
from tests.real.skopeo import run_skopeo
from tests.support.artifacts import Artifact, artifact, buildkit_cache, listing, tag_of
from tests.support.commands import names, run_command
from tests.support.images import make_image, make_index


@pytest.fixture(scope="module")
def registry(real_dir: Path) -> Iterator[DockerRegistry]:
    """Over plain http, to be pushed to."""
    need("docker-registry")
    with DockerRegistry(real_dir / "artifacts-registry") as running:
        yield running


@pytest.fixture
def push(registry: DockerRegistry) -> Pusher:
    return Pusher(registry.url)


@pytest.fixture
def cache(registry: DockerRegistry, make_cache: MakeCache) -> Cacheyd:
    return make_cache(registry_table(SHORT_REGISTRY, registry.url))


@pytest.fixture
def offline(make_cache: MakeCache) -> Cacheyd:
    """A cache whose registry is not there."""
    return make_cache(registry_table(SHORT_REGISTRY, f"http://127.0.0.1:{free_port()}"))


def same(cache: Cacheyd, repo: str, reference: str, content: Artifact) -> bool:
    """Whether the cache serves it, byte for byte."""
    query = f"?ns={SHORT_REGISTRY}"
    manifest = cache.request("GET", f"/v2/{repo}/manifests/{reference}{query}", {"Accept": content.media_type})
    blobs = [cache.request("GET", f"/v2/{repo}/blobs/{blob.digest}{query}") for blob in content.blobs]
    return [manifest.body, *(reply.body for reply in blobs)] == [content.manifest, *(blob.data for blob in content.blobs)]


@pytest.mark.parametrize("layer_type", ["application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.acme.x", None])
def test_a_cache_of_buildkit(push: Pusher, cache: Cacheyd, offline: Cacheyd, tmp_path: Path, layer_type: str | None) -> None:
    kind = str(layer_type).rpartition(".")[2].replace("+", "-").lower()
    repo, content = f"lab/{kind}", buildkit_cache(701, layer_type=layer_type)
    push.artifact(repo, "cache", content)
    name, tar = f"{SHORT_REGISTRY}/{repo}:cache", tmp_path / "cache.tar"

    done = run_command(cache, "warm", name)
    (row,) = json.loads(run_command(cache, "ls", "--json", name).stdout)
    run_command(cache, "export", name, "-o", tar)
    run_command(offline, "import", tar)

    assert names(done)[-1] == "1 of 1 image is in the cache"
    assert (row["complete"], row["missing"], row["platforms"]) == (True, [], [])
    assert cache.stored() == offline.stored() == content.digests
    assert same(offline, repo, "cache", content)


def test_artifacts_and_signatures(push: Pusher, cache: Cacheyd, offline: Cacheyd, tmp_path: Path) -> None:
    """Of a registry without an API for referrers, as docker-registry 2.8 is."""
    repo, index = "lab/signed", make_index(make_image(seed=710))
    push.image(repo, "1.0", index)
    sbom = push.artifact(repo, "", artifact(711, index.manifest))
    listed = push.artifact(repo, tag_of(index.digest), listing(sbom))
    signature = push.artifact(repo, tag_of(index.digest, ".sig"), artifact(712))
    name, tar = f"{SHORT_REGISTRY}/{repo}:1.0", tmp_path / "signed.tar"

    run_command(cache, "warm", "--referrers", "--all-platforms", name)
    run_command(cache, "export", "--referrers", "--all-platforms", name, "-o", tar)
    run_command(offline, "import", tar)

    assert cache.stored() == offline.stored() >= sbom.digests | signature.digests | {listed.digest, index.digest}
    assert same(offline, repo, tag_of(index.digest, ".sig"), signature)
    assert same(offline, repo, sbom.digest, sbom)


def test_skopeo_and_containerd_read_an_artifact(push: Pusher, cache: Cacheyd, containerd: Containerd, tmp_path: Path) -> None:
    need("skopeo")
    content = push.artifact("lab/chart", "1.0", artifact(720))
    name, tar = f"{SHORT_REGISTRY}/lab/chart:1.0", tmp_path / "chart.tar"
    run_command(cache, "warm", name)
    run_command(cache, "export", name, "-o", tar)

    run_skopeo("copy", "--preserve-digests", f"oci-archive:{tar}:1.0", f"oci:{tmp_path / 'copy'}:1.0")
    namespace = containerd.namespace()
    done = containerd.ctr("-n", namespace, "images", "import", "--no-unpack", "--all-platforms", str(tar))

    assert {f"sha256:{path.name}" for path in (tmp_path / "copy/blobs/sha256").iterdir()} == content.digests
    assert done.returncode == 0, done.stderr
    assert containerd.digests(namespace) >= content.digests
