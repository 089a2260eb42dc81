"""What cannot be kept, and disks that refuse."""

import asyncio
import resource
import shutil
from collections.abc import Iterator

import pytest

from cacheyd.cache.bodies import BodyBroken
from cacheyd.cache.flight import NotKept
from tests.support.fetching import (
    ACCEPT,
    BLOB,
    BY_DIGEST,
    Reply,
    Scene,
    Script,
    blob_ref,
    landed,
    read,
    until,
    whole,
)


async def test_a_blob_that_does_not_fit_is_not_kept(fetching: Scene) -> None:
    huge = Reply(200, (("Content-Length", str(10**17)),), [b"x"])
    fetcher = fetching.fetcher(Script(huge))
    with pytest.raises(NotKept):
        await fetcher.flight(blob_ref(BLOB), ACCEPT).opened()
    assert huge.closed
    assert len(fetcher.flights) == 0


async def test_while_the_disk_refuses_upstream_is_not_asked_for_it(fetching: Scene) -> None:
    fetching.store.health.report_write_error(OSError(28, "No space left on device"))
    with pytest.raises(NotKept):
        await fetching.fetcher(Script()).flight(blob_ref(BLOB), ACCEPT).opened()


async def test_a_partial_that_cannot_be_opened(fetching: Scene) -> None:
    shutil.rmtree(fetching.store.root / "partial")
    (fetching.store.root / "partial").touch()
    with pytest.raises(NotKept):
        await fetching.fetcher(Script()).flight(blob_ref(BLOB), ACCEPT).opened()
    assert not fetching.store.health.writable


@pytest.fixture
def _small_files_only() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_small_files_only")
async def test_a_disk_that_refuses_in_the_middle_breaks_the_clients_off(fetching: Scene) -> None:
    fetcher = fetching.fetcher(Script(whole(BLOB, BLOB[:100_000], BLOB[100_000:])))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)

    with pytest.raises(BodyBroken):
        await read(flight)

    assert isinstance(flight.error, NotKept)
    assert not fetching.store.health.writable
    assert fetcher.failures.resume_refused(BY_DIGEST.registry, flight.digest, 1000), "what the client has was not verified"
    assert fetcher.failures.resume_refused(BY_DIGEST.registry, flight.digest, 0) is None
    assert fetching.on_disk(BLOB) is None


@pytest.mark.parametrize("wiped", ["", "partial"])
async def test_a_wipe_in_the_middle_is_not_seen_by_the_clients(fetching: Scene, wiped: str) -> None:
    more = asyncio.Event()
    fetcher = fetching.fetcher(Script(whole(BLOB, BLOB[:100_000], more, BLOB[100_000:])))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)
    await until(flight, 100_000)
    shutil.rmtree(fetching.store.root / wiped)
    more.set()

    assert await read(flight) == BLOB
    await landed(fetcher)
    assert fetching.on_disk(BLOB) is None
    assert fetching.store.health.writable
