"""A disk that refuses writes: what is there is served, and nothing more is kept."""

import logging
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import OCI_MANIFEST
from cacheyd.store.health import BROKEN_PAUSE
from cacheyd.store.records import TagVariant
from cacheyd.store.store import Store
from tests.support.stores import (
    LARGE,
    MANIFEST,
    WITHIN,
    Clock,
    add,
    content,
)

# A disk that refuses


@pytest.fixture
def _files_of_64_kib() -> Iterator[None]:
    """A real refusal of the operating system (EFBIG), for root, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_files_of_64_kib")
async def test_a_refused_write_is_an_os_error_and_counts_nothing(store: Store) -> None:
    partial = await store.partials.open(digest_of(LARGE))
    await store.partials.append(partial, [LARGE[:1000]])

    with pytest.raises(OSError):
        await store.partials.append(partial, [LARGE[1000:]])

    assert partial.size == 1000
    assert store.objects.find(digest_of(LARGE)) is None
    partial.close()


@pytest.mark.usefixtures("_files_of_64_kib")
async def test_a_manifest_that_does_not_fit_begins_the_pause(store: Store) -> None:
    assert await store.put(digest_of(LARGE), LARGE, OCI_MANIFEST, within=WITHIN) is None
    assert not store.health.writable
    assert store.health.write_errors == 1
    assert store.objects.find(digest_of(LARGE)) is None


async def test_after_a_refusal_requests_bypass_the_store_for_a_while(
    store: Store, clock: Clock, monotonic: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    assert store.health.writable
    with caplog.at_level(logging.ERROR, "cacheyd"):
        store.health.report_write_error(OSError(28, "No space left on device"))
        store.health.report_write_error(OSError(28, "No space left on device"))

    assert not store.health.writable
    assert store.health.write_errors == 2
    assert len(caplog.records) == 1, "one line per pause"
    assert "ENOSPC" in caplog.text
    monotonic.now += BROKEN_PAUSE - 0.01
    clock.now -= 3600
    assert not store.health.writable
    monotonic.now += 0.01
    assert store.health.writable, "whatever the clock on the wall does"


async def test_what_is_stored_is_served_while_the_disk_refuses(store: Store) -> None:
    await add(store, LARGE)
    store.health.report_write_error(OSError(30, "Read-only file system"))
    assert content(store, digest_of(LARGE)) == LARGE


async def test_a_store_starts_where_nothing_can_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING, "cacheyd"):
        await store.start(background=False)

    assert not store.health.writable
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"], "one for the directory, one for the index"
    with pytest.raises(OSError):
        await store.partials.open(digest_of(LARGE))
    assert await store.put(digest_of(MANIFEST), MANIFEST, OCI_MANIFEST, within=WITHIN) is None
    assert store.objects.find(digest_of(LARGE)) is None
    store.tags.set("docker.io", "a", "1", TagVariant(frozenset(), digest_of(MANIFEST), OCI_MANIFEST, 1, 0.0))
    assert len(store.tags.variants("docker.io", "a", "1")) == 1
    await store.stop()


async def test_a_file_where_a_directory_should_be(store: Store) -> None:
    shutil.rmtree(store.root / "partial")
    (store.root / "partial").touch()

    assert await store.put(digest_of(MANIFEST), MANIFEST, OCI_MANIFEST, within=WITHIN) is None
    assert not store.health.writable
