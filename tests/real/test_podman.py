"""podman pulls through cacheyd: the mirror of a registries.conf(5), with the registry's name in the path."""

import json
import os
import subprocess
from base64 import b64encode
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from tests.real.cache import Cacheyd
from tests.real.conftest import MakeCache, need
from tests.real.lab import SHORT_REGISTRY, Lab, contents, image_for, registry_table
from tests.real.procs import program
from tests.support.certs import TestCA
from tests.support.images import Index, make_image
from tests.support.origin import Origin

LOCAL = "linux/amd64"
_NUMBERS = count()


@dataclass(frozen=True, slots=True)
class Podman:
    """podman with a storage of its own, which the next one does not share: each is a cold node."""

    directory: Path
    registries_conf: Path

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        where = [f"--{name}={self.directory / name}" for name in ("root", "runroot", "tmpdir")]
        env = {**os.environ, "CONTAINERS_REGISTRIES_CONF": str(self.registries_conf), "HOME": str(self.directory)}
        argv = [program("podman"), "--storage-driver=vfs", *where, *args]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=env)

    def pull(self, reference: str, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run("pull", "--quiet", *options, reference)

    def inspect(self, reference: str) -> dict[str, object]:
        done = self.run("image", "inspect", reference)
        assert done.returncode == 0, done.stderr
        (found,) = json.loads(done.stdout)
        return dict(found)


def write_registries_conf(path: Path, registry: str, *, mirror: str, mirror_insecure: bool = True, more: str = "") -> Path:
    """The mirror first, then the registry itself, whose certificate nobody here knows."""
    path.write_text(f"""
        unqualified-search-registries = []
        [[registry]]
        prefix = "{SHORT_REGISTRY}"
        location = "{registry}"
        insecure = true
        [[registry.mirror]]
        location = "{mirror}"
        insecure = {str(mirror_insecure).lower()}
        {more}
    """)
    return path


@pytest.fixture
def podman(real_dir: Path, tmp_path: Path) -> Podman:
    """A node that has nothing yet; `fresh` makes another one."""
    # vfs without root would need user namespaces, which sandboxes often do not have.
    need("podman", "skopeo", *(["root, for podman"] if os.geteuid() != 0 else []))
    return fresh(Podman(real_dir, tmp_path / "registries.conf"))


def fresh(podman: Podman) -> Podman:
    # podman takes no more than 50 characters for a runroot.
    return Podman(podman.directory.with_name(f"pod{next(_NUMBERS)}"), podman.registries_conf)


@pytest.fixture
def open_cache(open_lab: Lab, make_cache: MakeCache) -> Cacheyd:
    return make_cache(registry_table(SHORT_REGISTRY, open_lab.registry.url, open_lab.ca_file))


def mirror(cache: Cacheyd) -> str:
    return f"127.0.0.1:{cache.port}/{SHORT_REGISTRY}"


def assert_pulled(podman: Podman, reference: str, content: Index) -> None:
    found = podman.inspect(reference)
    assert found["Id"] == image_for(content, LOCAL).config.digest.removeprefix("sha256:")
    # podman has verified and unpacked every layer.
    config = json.loads(image_for(content, LOCAL).config.data)
    assert found["RootFS"] == {"Type": "layers", "Layers": config["rootfs"]["diff_ids"]}


def test_pull_and_pull_again_without_registry(open_lab: Lab, open_cache: Cacheyd, podman: Podman, tmp_path: Path) -> None:
    content = open_lab.publish(tmp_path, "lab/podman")
    reference = f"{SHORT_REGISTRY}/lab/podman:1.0"
    write_registries_conf(podman.registries_conf, open_lab.registry.host, mirror=mirror(open_cache))

    cold = podman.pull(reference)
    assert cold.returncode == 0, cold.stderr
    assert_pulled(podman, reference, content)
    wanted = contents(content, LOCAL)
    downloads = open_lab.downloads("lab/podman")
    assert {content.digest if name == "1.0" else name for name in downloads} == wanted
    assert set(downloads.values()) == {1}
    open_cache.keeps(wanted)

    upstream = open_cache.metric("cacheyd_upstream_requests_total")
    open_lab.registry.stop()
    try:
        node = fresh(podman)
        warm = node.pull(reference)
    finally:
        open_lab.registry.start()
    assert warm.returncode == 0, warm.stderr
    assert_pulled(node, reference, content)
    assert open_cache.metric("cacheyd_upstream_requests_total") == upstream
    assert open_cache.metric("cacheyd_requests_total", 'result="hit"') >= len(wanted)


def test_cache_down_is_no_harm(open_lab: Lab, open_cache: Cacheyd, podman: Podman, tmp_path: Path) -> None:
    content = open_lab.publish(tmp_path, "lab/podman-direct")
    reference = f"{SHORT_REGISTRY}/lab/podman-direct:1.0"
    write_registries_conf(podman.registries_conf, open_lab.registry.host, mirror=mirror(open_cache))
    open_cache.stop()
    done = podman.pull(reference)
    assert done.returncode == 0, done.stderr
    assert_pulled(podman, reference, content)


def test_image_that_nobody_has(open_lab: Lab, open_cache: Cacheyd, podman: Podman) -> None:
    write_registries_conf(podman.registries_conf, open_lab.registry.host, mirror=mirror(open_cache))
    done = podman.pull(f"{SHORT_REGISTRY}/lab/nobody:1.0")
    assert done.returncode != 0
    assert "manifest unknown" in done.stderr


def test_port_in_a_path_is_refused_by_the_client(open_lab: Lab, open_cache: Cacheyd, podman: Podman) -> None:
    """A name in a reference has no colon. cacheyd's name for such a registry is one without, with its upstream."""
    location = f"127.0.0.1:{open_cache.port}/{SHORT_REGISTRY}:5000"
    write_registries_conf(podman.registries_conf, open_lab.registry.host, mirror=location)
    done = podman.pull(f"{SHORT_REGISTRY}/lab/x:1.0")
    assert done.returncode != 0
    assert "invalid reference format" in done.stderr
    assert open_cache.metric("cacheyd_upstream_requests_total") == 0


def write_logins(path: Path, logins: dict[str, str]) -> Path:
    """containers-auth.json(5): `user:password` by registry, or by the beginning of a repository's name."""
    auths = {name: {"auth": b64encode(creds.encode()).decode()} for name, creds in logins.items()}
    path.write_text(json.dumps({"auths": auths}))
    return path


def test_token_that_everybody_gets(lab: Lab, make_cache: MakeCache, podman: Podman, tmp_path: Path) -> None:
    """podman looks for the challenge at /v2/ alone (containers/image issue 2754), so the cache gets the token.

    As with Docker Hub and ghcr.io, which want one from everybody.
    """
    cache = make_cache(registry_table(SHORT_REGISTRY, lab.registry.url, lab.ca_file))
    content = lab.publish(tmp_path, "lab/podman-token")
    reference = f"{SHORT_REGISTRY}/lab/podman-token:1.0"
    write_registries_conf(podman.registries_conf, lab.registry.host, mirror=mirror(cache))
    assert lab.tokens
    before = len(lab.tokens.requests())
    logins = write_logins(tmp_path / "auth.json", {mirror(cache): lab.tokens.creds})
    done = podman.pull(reference, f"--authfile={logins}")
    assert done.returncode == 0, done.stderr
    assert_pulled(podman, reference, content)
    cache.keeps(contents(content, LOCAL))
    asked = lab.tokens.requests()[before:]
    assert {request.user for request in asked} == {""}
    assert {scope for request in asked for scope in request.scopes} == {"repository:lab/podman-token:pull"}


@pytest.mark.parametrize("stored", [False, True], ids=["passthrough", "credentials"])
def test_private_image(make_cache: MakeCache, podman: Podman, ca: TestCA, tmp_path: Path, stored: bool) -> None:
    """podman's login reaches the registry only without the cache; a login that the cache has serves all of its clients."""
    image = make_image(seed=77)
    with Origin(tls=ca.server_context("127.0.0.1")) as origin:
        origin.push("lab/private", "1.0", image)
        origin.require_token()
        origin.require_basic("reader", "secret")
        login = 'auth = "credentials"\nusername = "reader"\npassword = "secret"\n' if stored else ""
        cache = make_cache(registry_table(SHORT_REGISTRY, origin.url, ca.ca_file) + login)
        location = f"{origin.host}:{origin.port}"
        write_registries_conf(podman.registries_conf, location, mirror=mirror(cache))
        logins = write_logins(tmp_path / "auth.json", {location: "reader:secret", mirror(cache): "reader:secret"})
        done = podman.pull(f"{SHORT_REGISTRY}/lab/private:1.0", f"--authfile={logins}")
    assert done.returncode == 0, done.stderr
    cache.keeps({image.digest, *(blob.digest for blob in image.blobs)} if stored else set())
