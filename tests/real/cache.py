"""cacheyd as people run it: the command, mitmdump with the addon, and mitmweb with the addon."""

import hashlib
import http.client
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.real.procs import Process, Service, free_port, wait_until
from tests.support.files import sizes

REPOSITORY = Path(__file__).resolve().parents[2]
ADDON = REPOSITORY / "addons" / "registry_cache.py"


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole HTTP answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Cacheyd(Service):
    """`python -m cacheyd serve` on a loopback port, with its files in `directory/cache`; both stay over restarts.

    `config_toml` is the text of its configuration file. SIGTERM ends it with exit code 0.
    """

    def __init__(self, directory: Path, config_toml: str, *, env: Mapping[str, str] | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.cache_dir, self.port = directory, directory / "cache", free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config_file = config_file = directory / "cacheyd.toml"
        config_file.write_text(config_toml)
        # mitmproxy keeps its certificate authority in HOME.
        self.env = {"CACHEYD_CONFIG": str(config_file), "HOME": str(directory), **(env or {})}
        self.start()

    def argv(self) -> list[str]:
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--cache-dir", str(self.cache_dir)]
        return [sys.executable, "-m", "cacheyd", "serve", *where]

    def start(self) -> None:
        self.process = Process(self.argv(), self.directory / "cacheyd.log", env=self.env)
        self.process.wait_ready(self.ready)

    def ready(self) -> bool:
        """Whether GET /readyz is answered 200."""
        try:
            return self.request("GET", "/readyz").status == 200
        except (OSError, http.client.HTTPException):
            return False

    def request(self, method: str, target: str, headers: Mapping[str, str] | None = None) -> Reply:
        """One request on a connection of its own. Raises http.client.IncompleteRead for a body that is cut short."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, target, headers=dict(headers or {}))
            response = connection.getresponse()
            body = response.read()
            return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, body)
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """Each sample of /metrics: `name` or `name{labels}` to its value."""
        lines = self.request("GET", "/metrics").body.decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def metric(self, name: str, *labels: str) -> float:
        """The sum of a metric's samples whose labels contain each of `labels`, such as `result="hit"`."""
        rows = [(key.partition("{"), value) for key, value in self.metrics().items()]
        return sum(value for (base, _, rest), value in rows if base == name and all(label in rest for label in labels))

    def partial(self, digest: str) -> int:
        """Bytes of this blob that are on disk, but not yet complete."""
        found = sizes(self.cache_dir / "partial").items()
        return next((size for path, size in found if path.name.startswith(digest.replace(":", "-"))), 0)

    def stored(self) -> set[str]:
        """The digests of what it keeps; asserts that each file is what its name says."""
        found = set()
        for path in (self.cache_dir / "blobs" / "sha256").glob("*"):
            try:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
            except FileNotFoundError:
                continue  # Evicted just now.
            assert path.name == digest, f"{path} holds {digest}"
            found.add(f"sha256:{digest}")
        return found

    def keeps(self, digests: set[str]) -> None:
        """Waits until it keeps exactly these: what a client has got already may be on its way to its final name."""
        wait_until(lambda: self.stored() == digests, f"these are kept, not {self.stored()}: {digests}", seconds=5)


class Mitmdump(Cacheyd):
    """`mitmdump -s addons/registry_cache.py` in reverse mode; the cache's directory comes from CACHE_DIR."""

    program = "mitmdump"

    def argv(self) -> list[str]:
        self.env["CACHE_DIR"] = str(self.cache_dir)
        where = ["--mode", "reverse:http://127.0.0.1:9", "--listen-host", "127.0.0.1", "-p", str(self.port)]
        return [str(Path(sys.executable).parent / self.program), "-s", str(ADDON), *where, *self.more()]

    def more(self) -> list[str]:
        return []


class Mitmweb(Mitmdump):
    """The same in mitmweb, where every request can be watched in a browser."""

    program = "mitmweb"

    def more(self) -> list[str]:
        self.web_port, self.web_password = free_port(), secrets.token_urlsafe(12)
        web = ["--web-host", "127.0.0.1", "--web-port", str(self.web_port)]
        return ["--no-web-open-browser", *web, "--set", f"web_password={self.web_password}"]


WAYS: Mapping[str, type[Cacheyd]] = {"serve": Cacheyd, "mitmdump": Mitmdump, "mitmweb": Mitmweb}
