"""The same pull in each of the ways in which cacheyd can be run."""

from pathlib import Path

import pytest

from tests.real.cache import WAYS, Mitmweb
from tests.real.conftest import MakeCache
from tests.real.containerd import Containerd
from tests.real.lab import REGISTRY, Lab, contents, registry_table
from tests.real.procs import listening


@pytest.mark.parametrize("way", WAYS)
def test_pull(lab: Lab, make_cache: MakeCache, containerd: Containerd, tmp_path: Path, way: str) -> None:
    cache = make_cache(registry_table(REGISTRY, lab.registry.url, lab.ca_file), WAYS[way])
    repository = f"lab/way-{way}"
    image = lab.publish(tmp_path, repository)
    hosts = lab.hosts(tmp_path / "hosts", cache.url)
    for _ in range(2):
        pull = containerd.pull(f"{REGISTRY}/{repository}:1.0", hosts)
        assert pull.ok, pull.output
        assert all(containerd.check(pull.namespace).values())
        assert lab.downloads(repository) == dict.fromkeys(contents(image, "linux/amd64"), 1)
    cache.keeps(contents(image, "linux/amd64"))
    assert cache.metric("cacheyd_requests_total", 'result="hit"') > 0
    if isinstance(cache, Mitmweb):
        assert listening(cache.web_port)
    assert cache.stop() == 0
