"""dockerd pulls images of docker.io through cacheyd as its registry mirror: no ns, and no registry in the path."""

import http.client
import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.real.cache import REPOSITORY, Cacheyd
from tests.real.conftest import need
from tests.real.lab import Lab, contents, image_for, registry_table
from tests.real.procs import Process, Service, program
from tests.support.images import Index

LOCAL = "linux/amd64"
DAEMON_JSON = REPOSITORY / "configs" / "docker" / "daemon.json"
SHIPPED_PORT = 30123


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Dockerd(Service):
    """dockerd with the mirror of configs/docker/daemon.json, its own containerd, and no network of its own.

    `hub` is a proxy for what goes to the real Docker Hub, so that nothing leaves this machine.
    """

    def __init__(self, directory: Path, mirror: Cacheyd, hub: str) -> None:
        directory.mkdir(parents=True)
        self.directory, self._hub, self._socket = directory, hub, directory / "d.sock"
        text = DAEMON_JSON.read_text("utf-8")
        assert f":{SHIPPED_PORT}" in text
        (directory / "daemon.json").write_text(text.replace(f":{SHIPPED_PORT}", f":{mirror.port}"))
        self.start()

    def start(self) -> None:
        paths = {"config-file": "daemon.json", "data-root": "root", "exec-root": "exec", "pidfile": "pid"}
        where = [f"--{flag}={self.directory / name}" for flag, name in paths.items()]
        network = ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
        argv = [program("dockerd"), *where, *network, f"--host=unix://{self._socket}", "--storage-driver=vfs"]
        env = {"HTTP_PROXY": self._hub, "HTTPS_PROXY": self._hub, "NO_PROXY": "127.0.0.1", "HOME": str(self.directory)}
        self.process = Process(argv, self.directory / "dockerd.log", env=env)
        self.process.wait_ready(self._ready)

    def _ready(self) -> bool:
        try:
            return self.call("GET", "/_ping")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def call(self, method: str, target: str) -> tuple[int, bytes]:
        """One call of the Engine API."""
        connection = _UnixConnection(self._socket)
        try:
            connection.request(method, target)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def pull(self, name: str, tag: str) -> str:
        """`docker pull name:tag`; its error, empty if there was none."""
        status, body = self.call("POST", f"/images/create?fromImage={quote(name, safe='')}&tag={tag}")
        lines: list[dict[str, Any]] = [json.loads(line) for line in body.splitlines()]
        errors = [str(line.get("error") or line.get("message")) for line in lines if "error" in line or status != 200]
        return errors[-1] if errors else ""

    def remove(self, name: str) -> None:
        """The image and its layers, so that the next pull is a cold one."""
        status, body = self.call("DELETE", f"/images/{name}?force=1")
        assert status == 200, body

    def image(self, name: str) -> dict[str, Any]:
        status, body = self.call("GET", f"/images/{name}/json")
        assert status == 200, body
        found: dict[str, Any] = json.loads(body)
        return found


@dataclass
class Hub:
    """A proxy that refuses, and remembers whom it was asked for."""

    url: str = ""
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    found = Hub()

    class Refuse(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            found.asked.append(self.rfile.readline().decode("latin-1").split(" ")[1])
            while self.rfile.readline().strip():
                pass
            self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refuse) as server:
        server.daemon_threads = True
        found.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield found
        server.shutdown()


@pytest.fixture(scope="module")
def docker_cache(real_dir: Path, open_lab: Lab) -> Iterator[Cacheyd]:
    """docker.io is the test registry here, and what is meant by those who say nothing."""
    table = registry_table("docker.io", open_lab.registry.url, open_lab.ca_file)
    with Cacheyd(real_dir / "docker-cache", f'default_registry = "docker.io"\n{table}') as running:
        yield running
        assert "Traceback" not in running.log()


@pytest.fixture(scope="module")
def dockerd(real_dir: Path, docker_cache: Cacheyd, hub: Hub) -> Iterator[Dockerd]:
    need("dockerd", "containerd")
    with Dockerd(real_dir / "docker", docker_cache, hub.url) as daemon:
        yield daemon


@pytest.fixture(autouse=True)
def nothing_asked_yet(hub: Hub) -> None:
    hub.asked.clear()


def assert_pulled(dockerd: Dockerd, name: str, content: Index) -> None:
    image = image_for(content, LOCAL)
    found = dockerd.image(name)
    assert found["Id"] == image.config.digest
    assert found["RootFS"]["Layers"] == json.loads(image.config.data)["rootfs"]["diff_ids"]


def test_pull_and_pull_again_without_registry(
    dockerd: Dockerd, docker_cache: Cacheyd, open_lab: Lab, hub: Hub, tmp_path: Path
) -> None:
    content = open_lab.publish(tmp_path, "lab/docker")
    assert dockerd.pull("docker.io/lab/docker", "1.0") == ""
    assert_pulled(dockerd, "lab/docker:1.0", content)
    wanted = contents(content, LOCAL)
    assert open_lab.downloads("lab/docker") == dict.fromkeys(wanted, 1)
    docker_cache.keeps(wanted)

    dockerd.remove("lab/docker:1.0")
    before = docker_cache.metric("cacheyd_upstream_requests_total")
    hits = docker_cache.metric("cacheyd_requests_total", 'result="hit"')
    open_lab.registry.stop()
    try:
        assert dockerd.pull("docker.io/lab/docker", "1.0") == ""
    finally:
        open_lab.registry.start()
    assert_pulled(dockerd, "lab/docker:1.0", content)
    assert docker_cache.metric("cacheyd_upstream_requests_total") == before
    # The tag, the config and the layers; dockerd may have the two manifests still.
    blobs = len(image_for(content, LOCAL).blobs)
    assert 1 + blobs <= docker_cache.metric("cacheyd_requests_total", 'result="hit"') - hits <= 3 + blobs
    assert hub.asked == []


def test_official_image(dockerd: Dockerd, open_lab: Lab, hub: Hub, tmp_path: Path) -> None:
    """A name without a slash is in `library/`."""
    content = open_lab.publish(tmp_path, "library/official")
    assert dockerd.pull("official", "1.0") == ""
    assert_pulled(dockerd, "official:1.0", content)
    assert hub.asked == []


def test_pull_by_digest(dockerd: Dockerd, open_lab: Lab, hub: Hub, tmp_path: Path) -> None:
    content = open_lab.publish(tmp_path, "lab/docker-digest")
    assert dockerd.pull("lab/docker-digest", content.digest) == ""
    assert_pulled(dockerd, f"lab/docker-digest@{content.digest}", content)
    assert hub.asked == []


def test_other_registries_are_not_mirrored(dockerd: Dockerd, docker_cache: Cacheyd, open_lab: Lab, tmp_path: Path) -> None:
    content = open_lab.publish(tmp_path, "lab/docker-other")
    before = docker_cache.metric("cacheyd_upstream_requests_total")
    name = f"{open_lab.registry.host}/lab/docker-other"
    assert dockerd.pull(name, "1.0") == ""
    assert_pulled(dockerd, f"{name}:1.0", content)
    assert docker_cache.metric("cacheyd_upstream_requests_total") == before


def test_registry_in_the_name(dockerd: Dockerd, docker_cache: Cacheyd, open_lab: Lab, tmp_path: Path) -> None:
    """How the others come through the cache."""
    content = open_lab.publish(tmp_path, "lab/docker-prefix")
    name = f"127.0.0.1:{docker_cache.port}/docker.io/lab/docker-prefix"
    assert dockerd.pull(name, "1.0") == ""
    assert_pulled(dockerd, f"{name}:1.0", content)
    assert contents(content, LOCAL) <= docker_cache.stored()


def test_cache_down_is_no_harm(dockerd: Dockerd, docker_cache: Cacheyd, hub: Hub) -> None:
    """dockerd goes to Docker Hub (which is not there in this test)."""
    docker_cache.stop()
    try:
        error = dockerd.pull("lab/docker", "2.0")
    finally:
        docker_cache.start()
    assert "registry-1.docker.io" in error
    assert "registry-1.docker.io:443" in hub.asked


def test_without_a_default_registry(dockerd: Dockerd, docker_cache: Cacheyd, hub: Hub) -> None:
    """cacheyd says what is missing, and dockerd passes it by."""
    config = docker_cache.directory / "cacheyd.toml"
    text = config.read_text("utf-8")
    config.write_text(text.replace('default_registry = "docker.io"', ""), "utf-8")
    docker_cache.restart()
    try:
        error = dockerd.pull("lab/docker", "3.0")
    finally:
        config.write_text(text, "utf-8")
        docker_cache.restart()
    assert "registry-1.docker.io" in error
    assert "registry-1.docker.io:443" in hub.asked
    assert '"status": 400' in docker_cache.log()
