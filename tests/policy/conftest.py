"""Daemons that last as long as a module's tests. Each test's part of their logs has to be right."""

import socket
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from tests.faults.daemon import Daemon
from tests.policy.lab import Lab
from tests.real.procs import tail
from tests.support.certs import TestCA, make_ca
from tests.support.origin import Origin


class Starter:
    """Starts daemons and origins that are ended with their scope."""

    def __init__(self, directory: Path, running: ExitStack, numbers: Iterator[int]) -> None:
        self.directory = directory
        self.daemons: list[Daemon] = []
        self._running = running
        self.numbers = numbers

    def origin[T: Origin](self, origin: T) -> T:
        """A running origin."""
        self._running.enter_context(origin)
        # Its connections inherit this; without it, each small body waits 40 ms for the ACK of its head (Nagle).
        assert origin._listener is not None
        origin._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return origin

    def daemon(
        self,
        config: str,
        settings: Mapping[str, str] | None = None,
        *,
        env: Mapping[str, str] | None = None,
        kind: type[Daemon] = Daemon,
    ) -> Daemon:
        """A running daemon with this configuration file."""
        daemon = kind(self.directory / f"daemon{len(self.daemons)}", config, settings, env=env)
        self.daemons.append(daemon)
        return daemon

    def lab(
        self,
        config: str,
        origins: Mapping[str, Origin],
        settings: Mapping[str, str] | None = None,
        *,
        env: Mapping[str, str] | None = None,
    ) -> Lab:
        """A daemon with its origins."""
        return Lab(self.daemon(config, settings, env=env), origins, self.numbers)


STARTERS = pytest.StashKey[list[Starter]]()


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    """Numbers that no other test has."""
    return count(1)


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> TestCA:
    """An authority that the system does not know."""
    return make_ca(tmp_path_factory.mktemp("policy-ca"))


def _starter(node: pytest.Item | pytest.Collector, directory: Path, numbers: Iterator[int]) -> Iterator[Starter]:
    with ExitStack() as running:
        starter = Starter(directory, running, numbers)
        node.stash.setdefault(STARTERS, []).append(starter)
        try:
            yield starter
            for daemon in starter.daemons:
                assert not daemon.running or daemon.stop() == 0
        finally:
            for daemon in starter.daemons:
                daemon.kill()


@pytest.fixture(scope="module")
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, numbers: Iterator[int]
) -> Iterator[Starter]:
    """Daemons and origins for a module."""
    yield from _starter(request.node, tmp_path_factory.mktemp("policy"), numbers)


@pytest.fixture
def own(request: pytest.FixtureRequest, tmp_path: Path, numbers: Iterator[int]) -> Iterator[Starter]:
    """Daemons and origins for one test."""
    yield from _starter(request.node, tmp_path, numbers)


def _daemons(item: pytest.Item) -> list[Daemon]:
    starters = [starter for node in item.listchain() for starter in node.stash.get(STARTERS, [])]
    return [daemon for starter in starters for daemon in starter.daemons]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure goes the end of the logs."""
    report = yield
    if report.failed:
        for daemon in _daemons(item):
            report.sections.append((str(daemon.process.log_file), tail(daemon.process.log_file)))
    return report


@pytest.fixture(autouse=True)
def clean_logs(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the daemons log during a test has to be right."""
    before = {daemon: daemon.log_size() for daemon in _daemons(request.node)}
    yield
    for daemon in _daemons(request.node):
        assert daemon.problems(before.get(daemon, 0)) == []
        daemon.expected.clear()
