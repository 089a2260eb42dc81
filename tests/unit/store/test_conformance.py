"""What everybody may expect of a store, of the real one and of the one in memory that stands in for it in other tests."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import OCI_INDEX, OCI_MANIFEST
from cacheyd.protocol.reference import Kind
from cacheyd.settings.load import load
from cacheyd.store.health import BROKEN_PAUSE
from cacheyd.store.mapped import Mapped
from cacheyd.store.objects import SMALL
from cacheyd.store.records import MAX_REPOSITORIES, MAX_VARIANTS, Stored, TagVariant
from cacheyd.store.store import Store
from tests.support.memory_store import MemoryStore
from tests.support.stores import Clock

type AnyStore = Store | MemoryStore

WITHIN = "docker.io/library/nginx"
LARGE = bytes(range(256)) * 1024
TAG = ("docker.io", "library/nginx", "1")
FLAGS = {"max_size": "1MB", "min_free": "0", "pin": "docker.io/library/nginx:1"}


@pytest.fixture(params=["disk", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[AnyStore]:
    settings = load(environ={}, flags=FLAGS)
    if request.param == "disk":
        real = Store(tmp_path / "cache", settings, clock=clock, monotonic=clock)
        await real.start(background=False)
        yield real
        await real.stop()
    else:
        fake = MemoryStore(settings, clock=clock, monotonic=clock)
        await fake.start()
        yield fake
        await fake.stop()


async def add(store: AnyStore, data: bytes, within: str = WITHIN) -> Stored:
    """What a fetch of a blob does."""
    assert await store.bounds.make(len(data))
    partial = await store.partials.open(digest_of(data), "docker.io")
    await store.partials.append(partial, [data])
    assert partial.verified()
    stored = await store.commit(partial, within=within)
    store.partials.release(partial)
    assert stored is not None
    return stored


def blob(n: int) -> bytes:
    return bytes([n]) * 200_000


def manifest(*layers: bytes) -> bytes:
    return json.dumps({"schemaVersion": 2, "layers": [{"digest": digest_of(layer)} for layer in layers]}).encode()


async def put(store: AnyStore, data: bytes, media_type: str = OCI_MANIFEST) -> Stored | None:
    return await store.put(digest_of(data), data, media_type, within=WITHIN)


def content(store: AnyStore, digest: str) -> bytes | None:
    stored = store.objects.find(digest)
    body = store.objects.body(stored) if stored else None
    return bytes(body.view(0, body.size)) if isinstance(body, Mapped) else body


def variant(n: int, asked: str = OCI_INDEX) -> TagVariant:
    return TagVariant(frozenset({asked}), digest_of(b"%d" % n), OCI_INDEX, n, 1.5)


# Objects


@pytest.mark.parametrize("data", [b"", b"small", b"x" * SMALL, b"x" * (SMALL + 1), LARGE])
async def test_what_was_committed_is_found_with_its_bytes(store: AnyStore, clock: Clock, data: bytes) -> None:
    assert store.objects.find(digest_of(data)) is None

    stored = await add(store, data)

    assert store.objects.find(digest_of(data)) is stored
    assert content(store, stored.digest) == data
    assert (stored.size, stored.media_type, stored.kind) == (len(data), "", Kind.BLOB)
    assert (stored.created, stored.used, stored.within, stored.hits) == (clock.now, clock.now, (WITHIN,), 0)


async def test_what_is_not_committed_is_not_found(store: AnyStore) -> None:
    partial = await store.partials.open(digest_of(LARGE), "docker.io")
    assert await store.partials.append(partial, [LARGE[:1000], memoryview(LARGE)[1000:]]) == len(LARGE)

    assert store.objects.find(digest_of(LARGE)) is None
    assert await store.objects.recover(digest_of(LARGE)) is None
    store.partials.release(partial)
    assert store.objects.find(digest_of(LARGE)) is None


async def test_wrong_bytes_are_never_found(store: AnyStore) -> None:
    partial = await store.partials.open(digest_of(LARGE), "docker.io")
    await store.partials.append(partial, [LARGE, b"!"])
    assert not partial.verified()
    await store.partials.discard(partial)

    assert await store.put(digest_of(b"right"), b"wrong", OCI_MANIFEST, within=WITHIN) is None
    assert store.objects.find(digest_of(LARGE)) is None
    assert store.objects.find(digest_of(b"right")) is None
    assert (store.size, store.partials.size) == (0, 0)


async def test_a_manifest_is_put_whole(store: AnyStore) -> None:
    stored = await put(store, manifest(LARGE), OCI_INDEX)

    assert stored is not None
    assert (stored.media_type, stored.kind) == (OCI_INDEX, Kind.MANIFEST)
    assert content(store, stored.digest) == manifest(LARGE)


async def test_a_blob_that_is_put_as_a_manifest_is_one(store: AnyStore) -> None:
    await add(store, manifest(LARGE))
    stored = await put(store, manifest(LARGE))

    assert stored is not None
    assert stored.media_type == OCI_MANIFEST
    assert stored.needs == (digest_of(LARGE),)
    assert (await add(store, manifest(LARGE))).media_type == OCI_MANIFEST, "and stays one"
    assert content(store, stored.digest) == manifest(LARGE)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_algorithms(store: AnyStore, algorithm: str) -> None:
    digest = digest_of(LARGE, algorithm)
    assert await store.put(digest, LARGE, OCI_MANIFEST, within=WITHIN)
    assert content(store, digest) == LARGE


async def test_uses_are_counted(store: AnyStore, clock: Clock) -> None:
    stored = await add(store, LARGE)
    clock.now += 5
    store.objects.touch(stored.digest)
    store.objects.touch(stored.digest, hits=3)
    store.objects.touch(digest_of(b"nothing"))

    assert (stored.hits, stored.used, stored.created) == (4, clock.now, clock.now - 5)


async def test_an_object_knows_the_repositories_that_it_was_served_in(store: AnyStore) -> None:
    stored = await add(store, LARGE)
    store.objects.add_repository(stored, "ghcr.io/acme/app")
    store.objects.add_repository(stored, WITHIN)
    await add(store, LARGE, "quay.io/a")
    assert stored.within == (WITHIN, "ghcr.io/acme/app", "quay.io/a")

    for n in range(MAX_REPOSITORIES):
        store.objects.add_repository(stored, f"quay.io/{n}")
    # The last ones, but nobody pushes other registries out.
    newest = (f"quay.io/{n}" for n in range(2, MAX_REPOSITORIES))
    assert stored.within == (WITHIN, "ghcr.io/acme/app", *newest)


async def test_objects_and_bytes_are_counted(store: AnyStore) -> None:
    await add(store, LARGE)
    await add(store, LARGE)
    await put(store, manifest(LARGE))

    assert store.counts == {Kind.BLOB: 1, Kind.MANIFEST: 1}
    assert store.size == len(LARGE) + len(manifest(LARGE))
    snapshot = store.catalog.snapshot()
    assert {stored.digest for stored in snapshot.objects} == {digest_of(LARGE), digest_of(manifest(LARGE))}


async def test_what_is_removed_is_gone_and_disturbs_no_reader(store: AnyStore) -> None:
    stored = await add(store, LARGE)
    await add(store, b"small")
    body = store.objects.body(stored)
    assert isinstance(body, Mapped)

    assert await store.objects.remove([stored.digest, digest_of(b"nothing")], "purge") == (1, len(LARGE))

    assert store.objects.find(stored.digest) is None
    assert store.objects.body(stored) is None
    assert bytes(body.view(0, body.size)) == LARGE
    assert (store.size, store.counts[Kind.BLOB]) == (5, 1)
    await add(store, LARGE)
    assert content(store, stored.digest) == LARGE


# Partial files


async def test_a_fetch_goes_on_where_the_last_one_stopped(store: AnyStore) -> None:
    first = await store.partials.open(digest_of(LARGE), "docker.io")
    await store.partials.append(first, [LARGE[:100_000]])
    store.partials.release(first)
    assert store.partials.size == 100_000

    partial = await store.partials.open(digest_of(LARGE), "docker.io")
    assert partial.size == store.partials.size == 100_000
    await store.partials.append(partial, [LARGE[100_000:]])
    assert partial.verified()
    assert partial.read(99_999, 100_001) == LARGE[99_999:100_001]
    assert await store.commit(partial, within=WITHIN)
    store.partials.release(partial)
    assert content(store, digest_of(LARGE)) == LARGE
    assert store.partials.size == 0


async def test_what_came_from_one_registry_is_not_continued_with_anothers(store: AnyStore) -> None:
    first = await store.partials.open(digest_of(LARGE), "evil.example")
    await store.partials.append(first, [b"wrong"])
    store.partials.release(first)

    partial = await store.partials.open(digest_of(LARGE), "docker.io")
    assert partial.size == 0
    store.partials.release(partial)


async def test_two_at_once_do_not_share_a_partial_file(store: AnyStore) -> None:
    one = await store.partials.open(digest_of(LARGE), "docker.io")
    two = await store.partials.open(digest_of(LARGE), "docker.io")
    await store.partials.append(one, [LARGE])
    await store.partials.append(two, [LARGE])

    assert one.verified()
    assert two.verified()
    for partial in (one, two):
        assert await store.commit(partial, within=WITHIN)
        store.partials.release(partial)
    assert (content(store, digest_of(LARGE)), store.size) == (LARGE, len(LARGE))


async def test_what_is_not_to_be_kept_is_not_continued(store: AnyStore) -> None:
    first = await store.partials.open(digest_of(LARGE), "docker.io")
    await store.partials.append(first, [LARGE[:1000]])
    store.partials.release(first, keep=False)

    partial = await store.partials.open(digest_of(LARGE), "docker.io")
    assert partial.size == store.partials.size == 0
    store.partials.release(partial)


async def test_what_was_discarded_is_not_continued(store: AnyStore) -> None:
    first = await store.partials.open(digest_of(LARGE), "docker.io")
    await store.partials.append(first, [b"wrong"])
    await store.partials.discard(first)
    store.partials.release(first)

    partial = await store.partials.open(digest_of(LARGE), "docker.io")
    assert partial.size == store.partials.size == 0
    store.partials.release(partial)


async def test_readers_may_hold_on_to_a_partial_after_its_release(store: AnyStore) -> None:
    partial = await store.partials.open(digest_of(LARGE), "docker.io")
    await store.partials.append(partial, [LARGE])
    await store.commit(partial, within=WITHIN)
    store.partials.release(partial, close=False)

    assert partial.read(0, 10) == LARGE[:10]
    window = partial.window(0, len(LARGE))
    await store.objects.remove([digest_of(LARGE)], "purge")
    partial.close()
    assert bytes(window) == LARGE


# Room


async def test_the_least_recently_used_make_room_down_to_the_low_watermark(store: AnyStore, clock: Clock) -> None:
    for n in range(5):
        await add(store, blob(n))
        clock.now += 1
    store.objects.touch(digest_of(blob(0)))
    assert store.size == 1_000_000, "full is not too full"

    await add(store, blob(5))

    assert [n for n in range(6) if store.objects.find(digest_of(blob(n)))] == [0, 3, 4, 5]
    assert (store.size, store.counts[Kind.BLOB]) == (800_000, 4)


async def test_images_make_room_as_a_whole(store: AnyStore) -> None:
    await put(store, manifest(blob(0), blob(1)))
    for n in range(4):
        await add(store, blob(n))

    assert await store.bounds.make(400_000)

    assert [n for n in range(4) if store.objects.find(digest_of(blob(n)))] == [2, 3]
    assert store.counts[Kind.MANIFEST] == 0


async def test_what_is_pinned_makes_no_room(store: AnyStore) -> None:
    stored = await put(store, manifest(blob(0)))
    assert stored is not None
    store.tags.set(*TAG, TagVariant(frozenset({OCI_MANIFEST}), stored.digest, OCI_MANIFEST, stored.size, 1.5))
    for n in range(4):
        await add(store, blob(n))

    assert await store.bounds.make(700_000)
    assert [n for n in range(4) if store.objects.find(digest_of(blob(n)))] == [0]
    assert not await store.bounds.make(900_000)
    assert content(store, stored.digest) == manifest(blob(0))


async def test_what_is_on_its_way_in_makes_no_room_and_needs_some(store: AnyStore) -> None:
    await put(store, manifest(blob(0), blob(1)))
    await add(store, blob(0))
    store.partials.reservations.expect(digest_of(blob(1)))
    coming = await store.partials.open(digest_of(blob(1)), "docker.io")
    await store.partials.append(coming, [bytes(700_000)])

    assert not await store.bounds.make(200_000)
    assert store.objects.find(digest_of(blob(0))) is not None
    assert await store.bounds.make(50_000)
    store.partials.release(coming, keep=False)


async def test_what_is_not_verified_displaces_a_tenth(store: AnyStore) -> None:
    for n in range(20):
        await add(store, bytes([n]) * 50_000)

    assert not store.bounds.can_take(100_001)
    assert store.bounds.can_take(100_000)
    assert not await store.bounds.make(100_001, unverified=True)
    assert store.size == 1_000_000
    assert await store.bounds.make(100_000, unverified=True)
    assert store.size == 900_000
    assert await store.bounds.make(100_001)


async def test_what_no_fetch_continues_makes_room_first(store: AnyStore) -> None:
    await add(store, blob(0))
    partial = await store.partials.open(digest_of(LARGE), "docker.io")
    await store.partials.append(partial, [LARGE[:200_000]])
    store.partials.release(partial)

    assert await store.bounds.make(650_000)
    assert store.partials.size == 0
    assert store.objects.find(digest_of(blob(0))) is not None


async def test_what_is_larger_than_the_whole_store_has_no_room(store: AnyStore) -> None:
    await add(store, blob(0))

    assert not await store.bounds.make(1_000_001)
    assert store.objects.find(digest_of(blob(0))) is not None
    assert await store.bounds.make(1_000_000)
    assert store.size == 0


async def test_eviction_disturbs_no_reader(store: AnyStore) -> None:
    stored = await add(store, blob(0))
    body = store.objects.body(stored)
    assert isinstance(body, Mapped)
    assert await store.bounds.make(1_000_000)

    assert store.objects.find(stored.digest) is None
    assert bytes(body.view(0, body.size)) == blob(0)


# Writing


async def test_after_a_refusal_nothing_is_written_for_a_while(store: AnyStore, clock: Clock) -> None:
    await add(store, LARGE)
    assert store.health.writable
    store.health.report_write_error(OSError(28, "No space left on device"))

    assert (store.health.writable, store.health.write_errors) == (False, 1)
    assert content(store, digest_of(LARGE)) == LARGE
    clock.now += BROKEN_PAUSE
    assert store.health.writable


# Tags


async def test_a_tag_has_one_variant_per_accept_the_newest_first(store: AnyStore) -> None:
    assert list(store.tags.variants(*TAG)) == []
    for one in (variant(1), variant(2, OCI_MANIFEST), variant(3)):
        store.tags.set(*TAG, one)

    assert list(store.tags.variants(*TAG)) == [variant(3), variant(2, OCI_MANIFEST)]
    assert list(store.tags.variants("ghcr.io", *TAG[1:])) == []
    store.tags.delete(*TAG)
    store.tags.delete(*TAG)
    assert list(store.tags.variants(*TAG)) == []


async def test_the_variants_of_a_tag_are_bounded(store: AnyStore) -> None:
    for n in range(3 * MAX_VARIANTS):
        store.tags.set(*TAG, variant(n, f"a/{n}"))

    assert [one.size for one in store.tags.variants(*TAG)] == list(range(3 * MAX_VARIANTS - 1, 2 * MAX_VARIANTS - 1, -1))
