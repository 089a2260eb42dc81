"""One daemon and its origins for most tests, which keep out of each other's way by repository; own ones for the rest."""

import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest

from tests.faults.daemon import Daemon
from tests.faults.scene import (
    MAX_TESTS,
    PER_TEST,
    LoopbackOrigin,
    Scene,
    World,
    closed_port,
    deaf_listener,
    registry_table,
    rude_listener,
)
from tests.real.procs import tail
from tests.support.certs import make_ca
from tests.support.origin import Origin

LOGS = pytest.StashKey[list[Path]]()


class MakeDaemon(Protocol):
    """Starts a daemon of the test's own. At the end of the test it has to stop with exit code 0 and a clean log."""

    def __call__(
        self,
        registries: str,
        settings: Mapping[str, str] | None = None,
        *,
        env: Mapping[str, str] | None = None,
        name: str = "daemon",
    ) -> Daemon: ...


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure goes the end of the log."""
    report = yield
    if report.failed:
        for log in item.stash.get(LOGS, []):
            report.sections.append((str(log), tail(log)))
    return report


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The shared daemon and its registries. Started and stopped once; its log must be clean to the end."""
    ca = make_ca(tmp_path_factory.mktemp("ca"))
    with ExitStack() as running:
        origins = {name: running.enter_context(Origin()) for name in ("signed", "cdn", "login", "basic")}
        everywhere = {name: running.enter_context(LoopbackOrigin()) for name in PER_TEST}
        origins |= everywhere
        origins["tls"] = running.enter_context(Origin(tls=ca.server_context("127.0.0.1")))
        origins["signed"].redirect_blobs_to(origins["cdn"])
        origins["cdn"].serve_cdn(origins["signed"])
        origins["login"].require_token()
        origins["basic"].require_basic("alice", "wonderland")
        upstreams = {f"{name}.test": origin.url for name, origin in origins.items()}
        upstreams |= {
            f"{name}{number}.test": origin.url_for(number)
            for name, origin in everywhere.items()
            for number in range(MAX_TESTS)
        }
        upstreams["refused.test"] = f"http://127.0.0.1:{closed_port()}"
        upstreams["deaf.test"] = f"http://127.0.0.1:{running.enter_context(deaf_listener()).getsockname()[1]}"
        # An origin waits for the end of the head, which a TLS handshake does not have; cacheyd answers 400.
        upstreams["stuck-tls.test"] = f"https://127.0.0.1:{origins['reg'].port}"
        upstreams["untrusted.test"] = origins["tls"].url
        tables = [registry_table(name, url) for name, url in upstreams.items() if name != "tls.test"]
        tables.append(registry_table("tls.test", origins["tls"].url, ca_file=ca.ca_file))
        tables.append(registry_table("not-tls.test", f"https://127.0.0.1:{running.enter_context(rude_listener())}"))
        cache = Daemon(tmp_path_factory.mktemp("shared"), "".join(tables))
        with cache:
            yield World(cache, origins)
            assert cache.stop() == 0
            assert cache.problems() == []


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    """Numbers that no other test has."""
    return count(1)


@pytest.fixture
def scene(request: pytest.FixtureRequest, world: World, numbers: Iterator[int]) -> Iterator[Scene]:
    """The shared daemon for one test, with a repository of its own. What the daemon logs meanwhile has to be right."""
    cache = world.cache
    request.node.stash[LOGS] = [cache.process.log_file]
    before = cache.log_size()
    scene = Scene(world, numbers)
    try:
        yield scene
    finally:
        scene.clean()
    assert cache.running
    assert cache.problems(before) == []
    cache.expected.clear()


@pytest.fixture
def origin() -> Iterator[Origin]:
    """A registry for a daemon of the test's own."""
    with Origin() as running:
        yield running


@pytest.fixture
def make_daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeDaemon]:
    """Daemons of the test's own."""
    logs = request.node.stash[LOGS] = []
    daemons: list[Daemon] = []

    def make(
        registries: str,
        settings: Mapping[str, str] | None = None,
        *,
        env: Mapping[str, str] | None = None,
        name: str = "daemon",
    ) -> Daemon:
        daemon = Daemon(tmp_path / name, registries, settings, env=env)
        daemons.append(daemon)
        logs.append(daemon.process.log_file)
        return daemon

    try:
        yield make
        for daemon in daemons:
            if daemon.running:
                assert daemon.stop() == 0
            assert daemon.problems() == []
    finally:
        for daemon in daemons:
            daemon.kill()


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """An event to hold an answer with; set at the end, so that no origin waits for ever."""
    event = threading.Event()
    yield event
    event.set()
