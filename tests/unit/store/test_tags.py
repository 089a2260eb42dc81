"""What is known of tags, and how much of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from cacheyd.protocol.media_types import DOCKER_MANIFEST
from cacheyd.store.store import Store, free_space
from tests.support.stores import (
    reopened,
    variant,
)

# Tags


async def test_a_tag_is_known_until_it_is_deleted(store: Store) -> None:
    assert store.tags.variants("docker.io", "library/nginx", "1") == ()
    store.tags.set("docker.io", "library/nginx", "1", variant(1))

    assert store.tags.variants("docker.io", "library/nginx", "1") == (variant(1),)
    assert store.tags.variants("ghcr.io", "library/nginx", "1") == ()
    assert store.tags.variants("docker.io", "library/nginx", "2") == ()
    store.tags.delete("docker.io", "library/nginx", "1")
    assert store.tags.variants("docker.io", "library/nginx", "1") == ()


async def test_a_tag_has_one_variant_per_accept_the_newest_first(store: Store) -> None:
    other = frozenset({DOCKER_MANIFEST})
    store.tags.set("docker.io", "a", "1", variant(1))
    store.tags.set("docker.io", "a", "1", variant(2, other))
    store.tags.set("docker.io", "a", "1", variant(3))

    assert store.tags.variants("docker.io", "a", "1") == (variant(3), variant(2, other))


async def test_the_variants_of_a_tag_are_bounded(store: Store) -> None:
    for i in range(30):
        store.tags.set("docker.io", "a", "1", variant(i, frozenset({f"a/{i}"})))

    found = store.tags.variants("docker.io", "a", "1")
    assert 4 <= len(found) <= 16
    assert [v.size for v in found] == list(range(29, 29 - len(found), -1)), "the newest ones"


async def test_tags_outlive_the_process(store: Store) -> None:
    store.tags.set("docker.io", "a", "1", variant(1))
    store.tags.set("docker.io", "a", "2", variant(2))
    store.tags.delete("docker.io", "a", "2")

    again = await reopened(store)
    assert again.tags.variants("docker.io", "a", "1") == (variant(1),)
    assert again.tags.variants("docker.io", "a", "2") == ()
    await again.stop()


def test_free_space_for_people(tmp_path: Path) -> None:
    assert free_space(tmp_path).endswith("iB")
    assert free_space(tmp_path / "none") == "unknown"


# Tags of strangers


async def test_tags_have_a_bound_in_number(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheyd.store.tags.MAX_TAGS", 10)
    for number in range(25):
        store.tags.set("reg.test", "a/b", f"v{number}", variant(1))
    assert list(store.catalog.tags) == [f"reg.test/a/b:v{number}" for number in range(15, 25)]


async def test_tags_have_a_bound_in_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and Accept headers are whatever a client likes: 100,000 tags with 8 long ones each were gigabytes."""
    monkeypatch.setattr("cacheyd.store.tags.MAX_TAG_BYTES", 100_000)
    for number in range(200):
        asked = frozenset(f"application/{number}-{n}-{'x' * 90}" for n in range(32))
        store.tags.set("evil.test", "a/b", "x" * 100 + str(number % 100), replace(variant(1), asked=asked))
        assert store.catalog.tags.size <= 100_000
    assert 10 < len(store.catalog.tags) < 30
    for name in list(store.catalog.tags):
        store.tags.remove(name)
    assert store.catalog.tags.size == 0
