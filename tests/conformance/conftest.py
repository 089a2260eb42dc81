"""cacheyd as a read-only registry, in front of a real docker-registry and of one that can do all that the spec says."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import cast

import pytest

from tests.conformance.push import Pusher
from tests.conformance.site import ADDRESSES, Address, Site, Temperature, config
from tests.real.cache import Cacheyd

# With a failure go the logs, as in tests/real; and a missing program is treated in the same way.
from tests.real.conftest import need, pytest_runtest_makereport, pytest_runtest_setup, real_dir
from tests.real.registry import DockerRegistry
from tests.support.images import Index, make_image, make_index, random_bytes
from tests.support.origin import Origin

__all__ = ["pytest_runtest_makereport", "pytest_runtest_setup", "real_dir"]

HERE = Path(__file__).parent
_SEEDS = count(500_000, 2)


@dataclass(frozen=True, slots=True)
class Real:
    """A docker-registry and how to fill it."""

    registry: DockerRegistry
    pusher: Pusher

    def publish(self, repository: str, tag: str = "1.0") -> Index:
        """A new multi-arch image."""
        content = new_image()
        self.pusher.image(repository, tag, content)
        return content


def new_image() -> Index:
    """A multi-arch image that no other test has."""
    seed = next(_SEEDS)
    return make_index(make_image(layers=2, seed=seed), make_image(layers=2, seed=seed + 1, architecture="arm64"))


def new_bytes(size: int) -> bytes:
    """A blob that no other test has."""
    return random_bytes(size, next(_SEEDS))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def real(real_dir: Path) -> Iterator[Real]:
    need("docker-registry")
    with DockerRegistry(real_dir / "conformance-registry") as registry:
        yield Real(registry, Pusher(registry.url))


@pytest.fixture(scope="session")
def real_cache(real_dir: Path, real: Real) -> Iterator[Cacheyd]:
    with Cacheyd(real_dir / "conformance-real", config(real.registry.url)) as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log()


@pytest.fixture(scope="session")
def origin() -> Iterator[Origin]:
    """Requests and faults of former tests are still in it: see `upstream`."""
    with Origin() as running:
        yield running


@pytest.fixture(scope="session")
def origin_cache(real_dir: Path, origin: Origin) -> Iterator[Cacheyd]:
    more = 'deny = ["denied.test"]\n[defaults]\nretry_after_max = "0s"'
    with Cacheyd(real_dir / "conformance-origin", config(origin.url, more)) as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log()


@pytest.fixture(scope="module")
def bare_cache(real_dir: Path) -> Iterator[Cacheyd]:
    """With nothing configured."""
    with Cacheyd(real_dir / "conformance-bare", "") as running:
        yield running


@pytest.fixture
def upstream(origin: Origin) -> Origin:
    """The registry of our own, with no request counted yet."""
    origin.clear()
    return origin


@pytest.fixture(params=ADDRESSES, ids=lambda address: address.name)
def address(request: pytest.FixtureRequest) -> Address:
    return cast(Address, request.param)


@pytest.fixture
def site(real_cache: Cacheyd, address: Address) -> Site:
    """The cache in front of docker-registry."""
    return Site(real_cache, address)


@pytest.fixture
def full_site(origin_cache: Cacheyd, address: Address) -> Site:
    """The cache in front of the registry of our own."""
    return Site(origin_cache, address)


@pytest.fixture(params=["cold", "warm"])
def temperature(request: pytest.FixtureRequest) -> Temperature:
    """Whether the cache has what is asked for."""
    return cast(Temperature, request.param)


@pytest.fixture
def repository() -> str:
    """A repository of the test's own."""
    return f"conformance/r{next(_SEEDS)}"
