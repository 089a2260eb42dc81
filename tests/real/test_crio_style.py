"""As CRI-O pulls: containers/image with the registries.conf of configs/cri-o. skopeo is the same code, and is in Debian."""

import json
import re
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.real.cache import REPOSITORY, Cacheyd
from tests.real.conftest import MakeCache, need
from tests.real.lab import SHORT_REGISTRY, Lab, contents, new_image, registry_table
from tests.real.skopeo import skopeo_copy
from tests.support.images import Index

CONFIGS = REPOSITORY / "configs"
SHIPPED_PORT = 30123


@pytest.fixture
def cache(open_lab: Lab, make_cache: MakeCache) -> Cacheyd:
    need("skopeo")
    return make_cache(registry_table(SHORT_REGISTRY, open_lab.registry.url, open_lab.ca_file))


def shipped(name: str, lab: Lab, cache: Cacheyd, path: Path) -> Path:
    """A shipped configuration, with the test's registry in the place of quay.io, and the test's port."""
    text = (CONFIGS / name / "registries.conf").read_text("utf-8")
    changes = {
        f":{SHIPPED_PORT}/quay.io": f":{cache.port}/{SHORT_REGISTRY}",
        'prefix = "quay.io"': f'prefix = "{SHORT_REGISTRY}"',
        # Its certificate is of an authority that nobody here knows.
        'location = "quay.io"': f'location = "{lab.registry.host}"\ninsecure = true',
    }
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text, "utf-8")
    return path


def assert_copied(layout: Path, content: Index) -> None:
    files = {f"sha256:{path.name}" for path in (layout / "blobs" / "sha256").iterdir()}
    assert files == contents(content)
    (root,) = json.loads((layout / "index.json").read_text())["manifests"]
    assert root["digest"] == content.digest


def by_digest(lab: Lab, repository: str, content: Index) -> Counter[str]:
    """Downloads, with the tag counted as what it names."""
    counted: Counter[str] = Counter()
    for name, times in lab.downloads(repository).items():
        counted[content.digest if name == "1.0" else name] += times
    return counted


@pytest.mark.parametrize("name", ["cri-o", "podman"])
@pytest.mark.parametrize("named_by", ["tag", "digest"])
def test_shipped_configuration(open_lab: Lab, cache: Cacheyd, tmp_path: Path, name: str, named_by: str) -> None:
    conf = shipped(name, open_lab, cache, tmp_path / "registries.conf")
    repository = f"lab/{name}-{named_by}"
    content = open_lab.publish(tmp_path, repository)
    reference = f"{SHORT_REGISTRY}/{repository}" + (":1.0" if named_by == "tag" else f"@{content.digest}")

    skopeo_copy(reference, tmp_path / "cold", registries_conf=conf)
    assert_copied(tmp_path / "cold", content)
    assert by_digest(open_lab, repository, content) == dict.fromkeys(contents(content), 1)
    cache.keeps(contents(content))

    open_lab.registry.stop()
    try:
        skopeo_copy(reference, tmp_path / "warm", registries_conf=conf)
    finally:
        open_lab.registry.start()
    assert_copied(tmp_path / "warm", content)

    cache.stop()
    skopeo_copy(reference, tmp_path / "direct", registries_conf=conf)
    assert_copied(tmp_path / "direct", content)


def test_digest_only_mirror(open_lab: Lab, cache: Cacheyd, tmp_path: Path) -> None:
    """As with OpenShift's ImageDigestMirrorSet: what a tag names comes from the registry, all of it."""
    text = shipped("cri-o", open_lab, cache, tmp_path / "registries.conf").read_text()
    conf = tmp_path / "digest-only.conf"
    conf.write_text(text.replace('pull-from-mirror = "all"', 'pull-from-mirror = "digest-only"'))
    content = open_lab.publish(tmp_path, "lab/digest-only")
    skopeo_copy(f"{SHORT_REGISTRY}/lab/digest-only:1.0", tmp_path / "tag", registries_conf=conf)
    assert_copied(tmp_path / "tag", content)
    assert cache.stored() == set()
    skopeo_copy(f"{SHORT_REGISTRY}/lab/digest-only@{content.digest}", tmp_path / "digest", registries_conf=conf)
    assert_copied(tmp_path / "digest", content)
    cache.keeps(contents(content))


def test_cacheyd_in_the_place_of_the_registry(open_lab: Lab, cache: Cacheyd, tmp_path: Path) -> None:
    """For nodes that reach no registry themselves, as the comment in configs/cri-o says."""
    conf = tmp_path / "registries.conf"
    where = f"127.0.0.1:{cache.port}/{SHORT_REGISTRY}"
    conf.write_text(f'[[registry]]\nprefix = "{SHORT_REGISTRY}"\nlocation = "{where}"\ninsecure = true\n')
    content = open_lab.publish(tmp_path, "lab/instead")
    skopeo_copy(f"{SHORT_REGISTRY}/lab/instead:1.0", tmp_path / "copy", registries_conf=conf)
    assert_copied(tmp_path / "copy", content)
    cache.keeps(contents(content))


def test_nodes_that_pull_at_once_share_one_download(open_lab: Lab, cache: Cacheyd, tmp_path: Path) -> None:
    conf = shipped("cri-o", open_lab, cache, tmp_path / "registries.conf")
    content = open_lab.publish(tmp_path, "lab/together-crio", content=new_image(layers=3, layer_size=2_000_000))
    layouts = [tmp_path / f"node-{number}" for number in range(4)]
    with ThreadPoolExecutor(len(layouts)) as nodes:
        reference = f"{SHORT_REGISTRY}/lab/together-crio:1.0"
        list(nodes.map(lambda layout: skopeo_copy(reference, layout, registries_conf=conf), layouts))
    for layout in layouts:
        assert_copied(layout, content)
    counted = by_digest(open_lab, "lab/together-crio", content)
    blobs = {blob.digest for _, image in content.images for blob in image.blobs}
    assert {digest: counted[digest] for digest in blobs} == dict.fromkeys(blobs, 1)


def test_unknown_image_is_asked_for_at_both(open_lab: Lab, cache: Cacheyd, tmp_path: Path) -> None:
    conf = shipped("cri-o", open_lab, cache, tmp_path / "registries.conf")
    with pytest.raises(AssertionError, match=re.escape("manifest unknown")):
        skopeo_copy(f"{SHORT_REGISTRY}/lab/nobody:1.0", tmp_path / "copy", registries_conf=conf)
    assert cache.stored() == set()


def test_the_two_configurations_have_the_same_mirrors() -> None:
    found = [tomllib.loads((CONFIGS / name / "registries.conf").read_text("utf-8")) for name in ("cri-o", "podman")]
    tables = [{table["prefix"]: table["mirror"][0]["location"] for table in conf["registry"]} for conf in found]
    assert tables[0] == tables[1]
