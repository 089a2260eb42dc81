"""The real docker-registry, and nginx as the CDN that it redirects blob downloads to."""

import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from tests.real.procs import Process, Service, free_port, listening, program
from tests.real.token_service import TokenService

TlsFiles = tuple[Path, Path]
# The access log in Apache's combined format; the JSON log does not tell of requests without a valid token.
_COMBINED = re.compile(r'127\.0\.0\.1 - \S+ \[[^]]+\] "(?P<method>[A-Z]+) (?P<uri>\S+) HTTP/[^"]+" (?P<status>\d+) ')
_BLOB_DATA = re.compile(r"/docker/registry/v2/blobs/sha256/../([0-9a-f]{64})/data")


@dataclass(frozen=True, slots=True)
class Access:
    """A line of an access log."""

    method: str
    uri: str
    status: int

    @property
    def reference(self) -> str:
        """The last part of the path: tag or digest (the CDN's paths end with the digest, too)."""
        if match := _BLOB_DATA.search(self.uri):
            return f"sha256:{match.group(1)}"
        return self.uri.partition("?")[0].rpartition("/")[2]


class DockerRegistry(Service):
    """docker-registry on a loopback port that it keeps over restarts.

    With `tls` (certificate, key) it speaks https, with `token` it wants tokens of that service, with `redirect` (a base
    URL) it answers blob GETs with 307 to the same storage path there.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tls: TlsFiles | None = None,
        token: TokenService | None = None,
        redirect: str | None = None,
        storage: Path | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.port = directory, free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        self.storage = storage or directory / "storage"
        # JSON is YAML, and needs no YAML library.
        self._config = directory / "config.yml"
        self._config.write_text(json.dumps(self._configuration(tls, token, redirect), indent=1))
        self.start()

    def _configuration(self, tls: TlsFiles | None, token: TokenService | None, redirect: str | None) -> dict[str, object]:
        http: dict[str, object] = {"addr": self.host, "secret": secrets.token_hex(8)}
        config: dict[str, object] = {
            "version": 0.1,
            "log": {"level": "info", "formatter": "json", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.storage)},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": http,
        }
        if tls:
            http["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
        if token:
            names = {"realm": token.realm, "service": token.service, "issuer": token.issuer}
            config["auth"] = {"token": {**names, "rootcertbundle": str(token.root_cert_bundle)}}
        if redirect:
            config["middleware"] = {"storage": [{"name": "redirect", "options": {"baseurl": redirect}}]}
        return config

    def start(self) -> None:
        argv = [program("docker-registry"), "serve", str(self._config)]
        self.process = Process(argv, self.directory / "registry.log", env={"OTEL_TRACES_EXPORTER": "none"})
        self.process.wait_ready(lambda: listening(self.port))

    def requests(self, repository: str = "") -> list[Access]:
        """What it answered, in that order, 401s included; of one repository if named."""
        lines = (_COMBINED.match(line) for line in self.log().splitlines())
        found = [Access(line["method"], line["uri"], int(line["status"])) for line in lines if line]
        return [access for access in found if access.uri.startswith(f"/v2/{repository}")]


class Cdn(Service):
    """nginx that serves a registry's storage directory; at most `rate` (nginx's notation: `1m`) for each request."""

    def __init__(self, directory: Path, storage: Path, *, tls: TlsFiles | None = None, rate: str = "0") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.port = directory, free_port()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/"
        self._access_log = directory / "access.log"
        (directory / "nginx.conf").write_text(self._configuration(storage, tls, rate))
        self.start()

    def _configuration(self, storage: Path, tls: TlsFiles | None, rate: str) -> str:
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = " ".join(f"{kind}_temp_path {self.directory}/{kind};" for kind in kinds)
        certificate = f"ssl_certificate {tls[0]}; ssl_certificate_key {tls[1]};" if tls else ""
        return f"""
            daemon off; master_process off; pid {self.directory}/nginx.pid; error_log stderr warn;
            events {{ worker_connections 128; }}
            http {{
              {paths}
              log_format plain '$request_method $request_uri $status $body_bytes_sent $http_range';
              access_log {self._access_log} plain;
              default_type application/octet-stream;
              server {{
                listen 127.0.0.1:{self.port}{" ssl" if tls else ""}; {certificate}
                root {storage}; limit_rate {rate};
              }}
            }}"""

    def start(self) -> None:
        argv = [program("nginx"), "-c", str(self.directory / "nginx.conf"), "-p", str(self.directory)]
        self.process = Process(argv, self.directory / "nginx.log")
        self.process.wait_ready(lambda: listening(self.port))

    def requests(self) -> list[Access]:
        """What was downloaded; an aborted download is there as well once it has ended."""
        lines = self._access_log.read_text().splitlines() if self._access_log.exists() else []
        return [Access(method, uri, int(status)) for method, uri, status, *_ in (line.split(" ") for line in lines)]

    def downloads(self, digest: str) -> list[tuple[int, int, str]]:
        """(status, body bytes sent, Range or `-`) of each request for this blob."""
        lines = self._access_log.read_text().splitlines() if self._access_log.exists() else []
        rows = [line.split(" ") for line in lines if digest.removeprefix("sha256:") in line]
        return [(int(status), int(sent), wanted) for _, _, status, sent, wanted in rows]
