"""Real clients and servers. Whatever is expensive to start runs once for all of these tests."""

import os
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest

from tests.real.cache import Cacheyd
from tests.real.containerd import Containerd
from tests.real.lab import REGISTRY, SHORT_REGISTRY, Lab, registry_table
from tests.real.procs import find, tail
from tests.real.registry import Cdn, DockerRegistry, TlsFiles
from tests.real.token_service import TokenService
from tests.support.certs import TestCA, make_ca

HERE = Path(__file__).parent
REAL_DIR = pytest.StashKey[Path]()
STARTED = pytest.StashKey[float]()


class MakeCache(Protocol):
    """Starts a cache that ends with the test."""

    def __call__(self, config_toml: str, kind: type[Cacheyd] = Cacheyd) -> Cacheyd: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.real)


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[STARTED] = time.time()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure goes the end of each log that was written to meanwhile."""
    report = yield
    if report.failed and (directory := item.config.stash.get(REAL_DIR, None)):
        for log in sorted(directory.rglob("*.log")):
            if log.stat().st_size and log.stat().st_mtime >= item.stash.get(STARTED, 0.0):
                report.sections.append((str(log), tail(log)))
    return report


def need(*programs: str) -> None:
    """Skips if a program is missing; fails with CI=true, where nothing may be left out."""
    missing = [name for name in programs if find(name) is None]
    if "containerd" in programs and os.geteuid() != 0:
        missing.append("root, for containerd")
    if not missing:
        return
    reason = f"not here: {', '.join(missing)}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def real_dir(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all processes have their files; short, because sockets are in it."""
    pytestconfig.stash[REAL_DIR] = directory = tmp_path_factory.mktemp("real")
    return directory


@pytest.fixture(scope="session")
def ca(real_dir: Path) -> TestCA:
    return make_ca(real_dir / "ca")


@pytest.fixture(scope="session")
def tls(ca: TestCA) -> TlsFiles:
    """A server certificate for loopback, and its key."""
    return ca.issue("127.0.0.1", "localhost")


@pytest.fixture(scope="session")
def containerd(real_dir: Path) -> Iterator[Containerd]:
    need("containerd", "ctr")
    with Containerd(real_dir / "c") as daemon:
        yield daemon


@pytest.fixture(scope="session")
def lab(real_dir: Path, ca: TestCA, tls: TlsFiles) -> Iterator[Lab]:
    """The registry that wants a token and redirects to a CDN, both over TLS with a private authority."""
    need("docker-registry", "nginx", "skopeo")
    storage = real_dir / "registry" / "storage"
    with ExitStack() as running:
        tokens = running.enter_context(TokenService(real_dir / "tokens"))
        cdn = running.enter_context(Cdn(real_dir / "cdn", storage, tls=tls))
        registry = running.enter_context(
            DockerRegistry(real_dir / "registry", tls=tls, token=tokens, redirect=cdn.url, storage=storage)
        )
        yield Lab(registry, cdn, tokens, ca.ca_file)


@pytest.fixture(scope="session")
def open_lab(real_dir: Path, ca: TestCA, tls: TlsFiles) -> Iterator[Lab]:
    """A registry that serves everybody, and serves blobs itself."""
    need("docker-registry", "skopeo")
    with DockerRegistry(real_dir / "open-registry", tls=tls) as registry:
        yield Lab(registry, None, None, ca.ca_file)


@pytest.fixture(scope="session")
def cache(real_dir: Path, lab: Lab) -> Iterator[Cacheyd]:
    """cacheyd in front of the lab's registry, under both of its names."""
    config = registry_table(REGISTRY, lab.registry.url, lab.ca_file)
    with Cacheyd(real_dir / "cacheyd", config + registry_table(SHORT_REGISTRY, lab.registry.url, lab.ca_file)) as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log()


@pytest.fixture
def make_cache(real_dir: Path) -> Iterator[MakeCache]:
    """A cache of the test's own. What it logged must hold no traceback, however the test treated it."""
    with ExitStack() as running:
        caches: list[Cacheyd] = []
        numbers = count(len(list(real_dir.glob("cache-*"))))

        def make(config_toml: str, kind: type[Cacheyd] = Cacheyd) -> Cacheyd:
            caches.append(running.enter_context(kind(real_dir / f"cache-{next(numbers)}", config_toml)))
            return caches[-1]

        yield make
    for made in caches:
        assert "Traceback" not in made.log()
