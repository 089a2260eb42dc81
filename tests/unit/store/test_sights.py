"""What `min_age` remembers: its bounds, its rows, and that both outlive the process."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheyd.protocol.media_types import OCI_INDEX
from cacheyd.store.records import TagVariant
from cacheyd.store.sights import HELD, MAX_HELD, MAX_HELD_BYTES, MAX_SEEN, MAX_SEEN_BYTES, SEEN, Hold, Sight, Sights, Table
from tests.support.stores import ASKED, Clock, StoppableStore

DIGEST = "sha256:" + "1" * 64
OTHER = "sha256:" + "2" * 64


def variant(digest: str, asked: frozenset[str] = ASKED, at: float = 5.0) -> TagVariant:
    return TagVariant(asked, digest, OCI_INDEX, 7, at)


def small(limit: int, size: int = 1 << 20) -> Table[int]:
    return Table(limit, size, lambda key, value: len(key))


# Bounds


def test_the_oldest_go_where_there_are_too_many() -> None:
    table = small(3)
    for number in range(5):
        table.set(f"a/{number}", number)
    assert list(table) == ["a/2", "a/3", "a/4"]
    assert table.changed == {f"a/{number}" for number in range(5)}
    table.set("a/2", 9)
    table.set("a/5", 5)
    assert list(table) == ["a/4", "a/2", "a/5"]
    assert (table.get("a/2"), table.get("a/3")) == (9, None)


def test_bytes_are_bounded_too() -> None:
    table = small(1000, 100)
    for number in range(50):
        table.set("a/" + "x" * 20 + str(number), number)
        assert table.size <= 100
    assert len(table) == 4
    table.set("a/" + "x" * 200, 1)
    assert (len(table), table.size) == (0, 0)


def test_strangers_push_out_each_other_only() -> None:
    table = small(100)
    table.configure({"mine.test"})
    for number in range(40):
        table.set(f"mine.test/{number}", number)
    for number in range(1000):
        table.set(f"evil{number}.test/x", number)
        table.set(f"evil.test/{number}", number)
    assert len(table) == 100
    assert all(table.get(f"mine.test/{number}") == number for number in range(40))
    for number in range(40, 1000):
        table.set(f"mine.test/{number}", number)
    # Nor does one of them have all of it.
    assert 40 <= sum(key.startswith("evil") for key in table) <= 60


def test_a_stranger_pushes_out_no_other_one() -> None:
    table = small(100)
    for number in range(30):
        table.set(f"docker.io/{number}", number)
    for number in range(500):
        table.set(f"evil.test/{number}", number)
        table.set(f"evil{number}.evil.test/x", number)
        table.set(f"a.evil.test:{5000 + number}/x", number)
    assert all(table.get(f"docker.io/{number}") == number for number in range(30))
    for number in range(500):
        table.set(f"10.0.0.1:{5000 + number}/x", number)
        table.set(f"[fd00::1]:{5000 + number}/x", number)
    # Each of four has about a quarter of it, by bytes.
    assert sum(key.startswith("docker.io") for key in table) >= 25
    assert (len(table), table.size) == (100, sum(map(len, table)))


def test_a_stranger_s_digests_push_out_no_first_sight() -> None:
    sights = Sights()
    sights.seen.set(f"docker.io/library/nginx@{DIGEST}", Sight(1.0))
    sights.hold("docker.io/library/nginx:1", Hold(variant(DIGEST), None, 9.0))
    for number in range(30_000):
        sights.seen.set(f"evil.test/{'a' * 200}@sha256:{number:064x}", Sight(2.0))
    for number in range(2 * MAX_HELD):
        sights.hold(f"evil.test/img:{number}", Hold(variant(DIGEST), None, 9.0))
    assert sights.sight(f"docker.io/library/nginx@{DIGEST}") == Sight(1.0)
    assert sights.holds("docker.io/library/nginx:1")
    assert sights.seen.size <= MAX_SEEN_BYTES
    assert len(sights.held) <= MAX_HELD


def test_other_settings_sort_them_anew() -> None:
    table = small(10)
    for number in range(5):
        table.set(f"a.test/{number}", number)
        table.set(f"b.test/{number}", number)
    table.changed.clear()
    table.configure({"b.test"})
    assert len(table) == 10
    assert table.changed == set()
    for number in range(5, 20):
        table.set(f"a.test/{number}", number)
    assert [key for key in table if key.startswith("b.test")] == [f"b.test/{number}" for number in range(5)]


@given(st.lists(st.tuples(st.sampled_from(("a", "b", "c", "d.c", "[::1]:5")), st.integers(0, 9), st.booleans()), max_size=60))
def test_a_table_counts_right(steps: list[tuple[str, int, bool]]) -> None:
    table = small(12, 60)
    table.configure({"a"})
    for registry, number, away in steps:
        key = f"{registry}/{'x' * number}"
        if away:
            table.discard(key)
        else:
            table.set(key, number)
        keys = list(table)
        assert len(keys) == len(set(keys)) == len(table) <= 12
        assert table.size == sum(map(len, keys)) <= 60


def test_what_the_tables_take_is_within_their_bounds() -> None:
    sights = Sights()
    for number in range(MAX_SEEN // 10):
        sights.seen.set(f"r.test/{'x' * 200}{number}@{DIGEST}", Sight(1.0))
    assert sights.seen.size <= MAX_SEEN_BYTES
    assert len(sights.seen) <= MAX_SEEN
    for number in range(2 * MAX_HELD):
        sights.hold(f"r.test/img:{number}", Hold(variant(DIGEST), variant(OTHER), 9.0))
    assert len(sights.held) <= MAX_HELD
    assert sights.held.size <= MAX_HELD_BYTES


# Holds


def test_one_hold_for_each_set_of_types() -> None:
    sights, other = Sights(), frozenset({"a/b"})
    sights.hold("r/a:1", Hold(variant(DIGEST), None, 1.0))
    sights.hold("r/a:1", Hold(variant(DIGEST, other), None, 2.0))
    sights.hold("r/a:1", Hold(variant(OTHER), None, 3.0))
    assert [(hold.candidate.digest, hold.until) for hold in sights.holds("r/a:1")] == [(OTHER, 3.0), (DIGEST, 2.0)]
    sights.let_go("r/a:1", other)
    assert [hold.until for hold in sights.holds("r/a:1")] == [3.0]
    sights.let_go("r/a:1")
    assert sights.holds("r/a:1") == ()
    for number in range(20):
        sights.hold("r/a:1", Hold(variant(DIGEST, frozenset({f"a/{number}"})), None, 1.0))
    assert len(sights.holds("r/a:1")) == 8


# Rows


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (f"r/a@{DIGEST}", Sight(12.5)),
        (f"r/a@{DIGEST}", Sight(12.5, 0.0)),
        (f"r/a@{DIGEST}", Sight(12.5, 7.0, True)),
        ("r/a:1", (Hold(variant(DIGEST), variant(OTHER), 9.5), Hold(variant(DIGEST, frozenset()), None, 9.0))),
    ],
)
def test_a_row_means_what_was_written(key: str, value: Any) -> None:
    before, after = Sights(), Sights()
    seen = isinstance(value, Sight)
    row_key = (SEEN if seen else HELD) + key
    (before.seen if seen else before.held).set(key, value)
    assert before.take_changed(10) == [row_key]
    row = before.row(row_key)
    assert row is not None
    after.load(row_key, row)
    assert (after.sight(key) if seen else after.holds(key)) == value
    assert after.take_changed(10) == []


@pytest.mark.parametrize(
    "row",
    [
        {}, {"at": "x"}, {"at": None}, {"at": []}, {"candidates": 5}, {"candidates": [{}], "served": [[]], "until": [1]},
        {"candidates": [], "served": [], "until": []}, {"candidates": [], "served": [[]], "until": []},
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", [SEEN, HELD])
def test_a_row_that_is_none_is_passed_over(prefix: str, row: dict[str, Any]) -> None:
    sights = Sights()
    sights.load(prefix + "r/a", row)
    assert (len(sights.seen), len(sights.held)) == (0, 0)


def test_rows_are_written_in_parts() -> None:
    sights = Sights()
    for number in range(7):
        sights.seen.set(f"r/{number}@{DIGEST}", Sight(1.0))
        sights.hold(f"r/{number}:1", Hold(variant(DIGEST), None, 1.0))
    taken = [sights.take_changed(5) for _ in range(4)]
    assert [len(part) for part in taken] == [5, 5, 4, 0]
    sights.put_back(taken[0] + taken[2])
    assert len(sights.take_changed(100)) == 9
    sights.all_changed()
    assert len(sights.take_changed(100)) == 14


# On disk


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StoppableStore]:
    store = StoppableStore(tmp_path, clock=Clock())
    await store.start()
    yield store
    await store.stop()


async def test_both_outlive_the_process(store: StoppableStore, tmp_path: Path) -> None:
    hold = Hold(variant(DIGEST), variant(OTHER), 9.5)
    store.sights.seen.set(f"r.test/a@{DIGEST}", Sight(3.0, 2.0, True))
    store.sights.seen.set(f"r.test/gone@{DIGEST}", Sight(3.0))
    store.sights.hold("r.test/a:1", hold)
    store.sights.hold("r.test/a:2", hold)
    await store.upkeep.journal.save()
    store.sights.let_go("r.test/a:2")
    store.sights.seen.discard(f"r.test/gone@{DIGEST}")
    await store.stop()
    again = StoppableStore(tmp_path, clock=Clock())
    # Before all rows were read they are looked up one by one.
    await again.start()
    try:
        for _ in range(2):
            assert again.sights.sight(f"r.test/a@{DIGEST}") == Sight(3.0, 2.0, True)
            assert again.sights.sight(f"r.test/gone@{DIGEST}") is None
            assert again.sights.holds("r.test/a:1") == (hold,)
            assert again.sights.holds("r.test/a:2") == ()
            async with asyncio.timeout(5):
                while not again.loaded:
                    await asyncio.sleep(0.01)
        assert (len(again.sights.seen), len(again.sights.held)) == (1, 1)
    finally:
        await again.stop()


async def test_a_tag_that_is_removed_is_held_no_more(store: StoppableStore) -> None:
    store.tags.set("r.test", "a", "1", variant(OTHER))
    store.sights.hold("r.test/a:1", Hold(variant(DIGEST), variant(OTHER), 9.5))
    store.tags.delete("r.test", "a", "1")
    assert store.sights.holds("r.test/a:1") == ()
