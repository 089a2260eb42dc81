"""Clients that send no ns: the registry's name is the first part of the path."""

import json
import socket
import ssl
from collections import Counter
from pathlib import Path

import pytest

from tests.real.cache import Cacheyd
from tests.real.conftest import MakeCache
from tests.real.containerd import Containerd
from tests.real.lab import SHORT_REGISTRY, Lab, contents, registry_table
from tests.real.skopeo import skopeo_copy
from tests.support.images import Index


def assert_copied(layout: Path, content: Index) -> None:
    """The layout has the whole index, byte by byte."""
    files = {f"sha256:{path.name}" for path in (layout / "blobs" / "sha256").iterdir()}
    assert files == contents(content)
    roots = json.loads((layout / "index.json").read_text())["manifests"]
    assert [root["digest"] for root in roots] == [content.digest]


def test_tls_is_refused_at_once(cache: Cacheyd) -> None:
    """skopeo, podman and docker try https first where a registry may be insecure, and wait ten seconds for an answer."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", cache.port), timeout=3) as plain,
        pytest.raises((ssl.SSLError, OSError)) as error,
    ):
        context.wrap_socket(plain)
    assert not isinstance(error.value, TimeoutError)


def test_copy_and_copy_again(open_lab: Lab, make_cache: MakeCache, tmp_path: Path) -> None:
    cache = make_cache(registry_table(SHORT_REGISTRY, open_lab.registry.url, open_lab.ca_file))
    image = open_lab.publish(tmp_path, "lab/copy")
    source = f"127.0.0.1:{cache.port}/{SHORT_REGISTRY}/lab/copy:1.0"

    skopeo_copy(source, tmp_path / "cold")
    assert_copied(tmp_path / "cold", image)
    downloads = open_lab.downloads("lab/copy")
    by_digest = Counter({image.digest if name == "1.0" else name: times for name, times in downloads.items()})
    assert by_digest == dict.fromkeys(contents(image), 1)

    open_lab.registry.stop()
    try:
        skopeo_copy(source, tmp_path / "warm")
    finally:
        open_lab.registry.start()
    assert_copied(tmp_path / "warm", image)
    assert open_lab.downloads("lab/copy") == downloads
    cache.keeps(contents(image))


def test_copy_of_what_containerd_has_pulled(lab: Lab, cache: Cacheyd, containerd: Containerd, tmp_path: Path) -> None:
    """ns and path lead to the same objects; hits need no login, nor the registry."""
    image = lab.publish(tmp_path, "lab/shared")
    hosts = lab.hosts(tmp_path / "hosts", cache.url, registry=SHORT_REGISTRY)
    pull = containerd.pull(f"{SHORT_REGISTRY}/lab/shared:1.0", hosts, None, "--all-platforms")
    assert pull.ok, pull.output
    lab.registry.stop()
    try:
        skopeo_copy(f"127.0.0.1:{cache.port}/{SHORT_REGISTRY}/lab/shared:1.0", tmp_path / "copy")
    finally:
        lab.registry.start()
    assert_copied(tmp_path / "copy", image)


def test_mirror_in_registries_conf(open_lab: Lab, make_cache: MakeCache, tmp_path: Path) -> None:
    """As podman and CRI-O are set up; without the cache they go to the registry itself."""
    cache = make_cache(registry_table(SHORT_REGISTRY, open_lab.registry.url, open_lab.ca_file))
    image = open_lab.publish(tmp_path, "lab/mirrored")
    conf = tmp_path / "registries.conf"
    conf.write_text(f"""
        [[registry]]
        prefix = "{SHORT_REGISTRY}"
        location = "{open_lab.registry.host}"
        insecure = true
        [[registry.mirror]]
        location = "127.0.0.1:{cache.port}/{SHORT_REGISTRY}"
        insecure = true
    """)
    skopeo_copy(f"{SHORT_REGISTRY}/lab/mirrored:1.0", tmp_path / "cold", registries_conf=conf)
    assert_copied(tmp_path / "cold", image)
    cache.keeps(contents(image))
    cache.stop()
    skopeo_copy(f"{SHORT_REGISTRY}/lab/mirrored:1.0", tmp_path / "direct", registries_conf=conf)
    assert_copied(tmp_path / "direct", image)
