"""The origin and the three systems that are compared, each a process on a loopback port."""

import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.bench.content import MANIFEST_TYPE, REPOSITORY, Item
from tests.real.cache import Cacheyd
from tests.real.procs import Process, Service, find, free_port, listening

REGISTRY = "bench.test"


class Missing(Exception):
    """A program that is not installed."""


def installed(program: str) -> str:
    """Its path; raises Missing."""
    if path := find(program):
        return path
    raise Missing(f"{program} is not installed")


class System(Protocol):
    """One of those that are compared."""

    name: str

    @property
    def pid(self) -> int: ...

    def url(self, item: Item) -> str:
        """Where a client gets it."""

    def stored(self, item: Item) -> bool:
        """Whether it is complete on disk."""

    def forget(self, item: Item) -> None:
        """Removes its file, so that the disk is not busy with it later; nobody asks for it again."""


class Nginx(Service):
    """Static files, one worker, copying from the page cache: `sendfile` is slower than that on loopback."""

    name = "nginx"

    def __init__(self, directory: Path, root: Path, *, origin: bool = False) -> None:
        directory.mkdir(parents=True)
        self._directory, self._root, self.port = directory, root, free_port()
        self.access_log = directory / "access.log"
        self._program = installed("nginx")
        (directory / "nginx.conf").write_text(self._configuration(origin=origin))
        self.start()

    def _configuration(self, *, origin: bool) -> str:
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = " ".join(f"{kind}_temp_path {self._directory}/{kind};" for kind in kinds)
        log, digests = "access_log off;", ""
        if origin:
            log = f"log_format plain '$request_method $uri $status $body_bytes_sent'; access_log {self.access_log} plain;"
            digests = "add_header Docker-Content-Digest $digest; add_header Docker-Distribution-API-Version registry/2.0;"
        return f"""
            daemon off; master_process off; pid {self._directory}/nginx.pid; error_log stderr warn;
            events {{ worker_connections 512; }}
            http {{
              {temporary} {log}
              sendfile off; keepalive_requests 100000000; default_type application/octet-stream;
              map $uri $digest {{ "~(sha256:[0-9a-f]+)$" $1; }}
              server {{
                listen 127.0.0.1:{self.port} backlog=512; root {self._root}; {digests}
                location = /v2/ {{ return 200 '{{}}'; }}
                location /v2/{REPOSITORY}/manifests/ {{ default_type {MANIFEST_TYPE}; }}
              }}
            }}"""

    def start(self) -> None:
        argv = [self._program, "-c", str(self._directory / "nginx.conf"), "-p", str(self._directory)]
        self.process = Process(argv, self._directory / "nginx.log")
        self.process.wait_ready(lambda: listening(self.port))

    def url(self, item: Item) -> str:
        return f"http://127.0.0.1:{self.port}{item.path}"

    def stored(self, item: Item) -> bool:
        return (self._root / item.path[1:]).is_file()

    def forget(self, item: Item) -> None:
        """Its files are the origin's, too."""


class Origin(Nginx):
    """nginx as the upstream registry of both caches; its access log tells how many bodies they fetched."""

    def __init__(self, directory: Path, root: Path) -> None:
        super().__init__(directory, root, origin=True)

    def bodies(self, item: Item) -> int:
        """How many times the object was fetched, in whole or in part; a running fetch is not counted yet."""
        lines = (line.split(" ") for line in self.access_log.read_text().splitlines())
        return sum(method == "GET" and uri == item.path and status in {"200", "206"} for method, uri, status, _ in lines)


class RegistryProxy(Service):
    """docker-registry as a proxy cache, as its documentation has it, without its logs."""

    name = "docker-registry"

    def __init__(self, directory: Path, origin: Origin) -> None:
        directory.mkdir(parents=True)
        self._directory, self.port, self._storage = directory, free_port(), directory / "storage"
        self._program = installed("docker-registry")
        config = {
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self._storage)}, "cache": {"blobdescriptor": "inmemory"}},
            "http": {"addr": f"127.0.0.1:{self.port}", "secret": secrets.token_hex(8)},
            "proxy": {"remoteurl": f"http://127.0.0.1:{origin.port}"},
        }
        # JSON is YAML.
        (directory / "config.yml").write_text(json.dumps(config))
        self.start()

    def start(self) -> None:
        argv = [self._program, "serve", str(self._directory / "config.yml")]
        self.process = Process(argv, self._directory / "registry.log", env={"OTEL_TRACES_EXPORTER": "none"})
        self.process.wait_ready(lambda: listening(self.port))

    def url(self, item: Item) -> str:
        return f"http://127.0.0.1:{self.port}{item.path}"

    def _directory_of(self, item: Item) -> Path:
        encoded = item.digest.removeprefix("sha256:")
        return self._storage / "docker" / "registry" / "v2" / "blobs" / "sha256" / encoded[:2] / encoded

    def stored(self, item: Item) -> bool:
        return (self._directory_of(item) / "data").is_file()

    def forget(self, item: Item) -> None:
        shutil.rmtree(self._directory_of(item), ignore_errors=True)


class CacheydSystem:
    """`cacheyd serve` as it is by default, its access log in a file."""

    name = "cacheyd"

    def __init__(self, directory: Path, origin: Origin) -> None:
        upstream = f'[registries."{REGISTRY}"]\nupstream = "http://127.0.0.1:{origin.port}"\n'
        self._daemon = Cacheyd(directory, upstream)

    @property
    def pid(self) -> int:
        return self._daemon.pid

    def stop(self) -> int:
        return self._daemon.stop()

    def url(self, item: Item) -> str:
        return f"{self._daemon.url}{item.path}?ns={REGISTRY}"

    def _file(self, item: Item) -> Path:
        return self._daemon.cache_dir / "blobs" / item.digest.replace(":", "/")

    def stored(self, item: Item) -> bool:
        return self._file(item).is_file()

    def forget(self, item: Item) -> None:
        self._file(item).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Lineup:
    """Who takes part; a peer that is not installed is not there."""

    cacheyd: System
    registry: System | None
    nginx: System

    def all(self) -> list[System]:
        return [system for system in (self.cacheyd, self.registry, self.nginx) if system is not None]

    def caches(self) -> list[System]:
        """Those that can have a miss."""
        return [system for system in (self.cacheyd, self.registry) if system is not None]
