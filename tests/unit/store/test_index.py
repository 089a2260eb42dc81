"""The index: rows in a real diskcache, written in batches, and nothing but a rebuild when they are lost."""

import os
import pickle
import resource
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import diskcache
import pytest

from cacheyd.store import index as index_module
from cacheyd.store.index import SCHEMA, Index, Row

SCHEMA_ROW = ("m:schema", {"schema": SCHEMA})


class Evil:
    """Unpickling it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def index(directory: Path) -> Iterator[Index]:
    index = opened(directory)
    yield index
    index.close()


@pytest.fixture
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "WRITE_WAIT", 0.05)


def opened(directory: Path) -> Index:
    index = Index(directory)
    assert index.open()
    return index


def filled(directory: Path, rows: dict[str, Row]) -> None:
    index = opened(directory)
    assert index.write(list(rows.items()))
    index.close()


def all_rows(index: Index, size: int = 500) -> dict[str, Row]:
    return {key: row for page in index.pages(size) for key, row in page if key != SCHEMA_ROW[0]}


def on_disk(directory: Path) -> dict[str, str]:
    """What another process would see."""
    with closing(sqlite3.connect(directory / "cache.db")) as connection:
        rows = dict(connection.execute("SELECT key, value FROM Cache"))
    rows.pop(SCHEMA_ROW[0])
    return rows


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Somebody else has the database for himself."""
    with closing(sqlite3.connect(directory / "cache.db", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def damage_pages(directory: Path) -> None:
    with (directory / "cache.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 20)


# Rows


def test_rows_outlive_the_process(directory: Path) -> None:
    rows: dict[str, Row] = {"o:a": {"size": 1}, "t:b": {"nested": [1, "ü", None, 1.5]}}
    filled(directory, rows)

    index = opened(directory)
    assert all_rows(index) == rows
    assert [index.get(key) for key in rows] == list(rows.values())
    index.close()


def test_a_key_that_nobody_wrote(index: Index) -> None:
    assert index.get("o:none") is None
    assert index.write([("o:none", None)])
    assert all_rows(index) == {}


def test_rows_are_set_and_deleted(index: Index, directory: Path) -> None:
    assert index.write([("a", {"n": 1}), ("b", {"n": 2})])
    assert index.write([("a", None), ("b", {"n": 3})])

    assert (index.get("a"), index.get("b")) == (None, {"n": 3})
    assert on_disk(directory) == {"b": '{"n":3}'}


def test_a_write_is_one_transaction(index: Index, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it or nothing is there after a crash."""
    seen = []
    cache_set = diskcache.Cache.set

    def look(cache: diskcache.Cache, key: str, row: Row) -> Any:
        seen.append(on_disk(directory))
        return cache_set(cache, key, row)

    monkeypatch.setattr(diskcache.Cache, "set", look)
    assert index.write([(f"o:{n}", {"n": n}) for n in range(50)])

    assert seen == [{}] * 50
    assert len(on_disk(directory)) == 50


def test_a_write_that_the_disk_refuses_leaves_nothing_half(index: Index, directory: Path) -> None:
    rows: list[tuple[str, Row | None]] = [(f"o:{n}", {"text": "x" * 1000}) for n in range(1000)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        assert not index.write(rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert index.usable
    assert on_disk(directory) == {}
    assert index.write(rows)
    assert len(on_disk(directory)) == 1000


@pytest.mark.parametrize("size", [1, 7, 100])
def test_rows_are_read_by_the_page(directory: Path, size: int) -> None:
    rows = {f"o:{n}": {"n": n} for n in range(50)}
    filled(directory, rows)

    index = opened(directory)
    assert {len(page) for page in index.pages(size)} <= set(range(size + 1))
    assert all_rows(index, size) == rows
    index.close()


def test_rows_may_be_written_between_two_pages(directory: Path) -> None:
    filled(directory, {f"o:{n}": {"n": n} for n in range(50)})
    index = opened(directory)
    pages = index.pages(10)
    first = next(pages)
    assert index.write([("o:49", None), ("o:new", {"n": 50})])

    found = dict(pair for page in [first, *pages] for pair in page)
    assert found == dict([SCHEMA_ROW, *((f"o:{n}", {"n": n}) for n in range(49)), ("o:new", {"n": 50})])
    index.close()


def test_reading_never_writes(directory: Path) -> None:
    filled(directory, {"a": {"n": 1}})
    index = opened(directory)
    before = {name: (directory / name).read_bytes() for name in ("cache.db", "cache.db-wal")}

    for _ in range(10):
        index.get("a")
        index.get("none")
    list(index.pages(10))

    assert {name: (directory / name).read_bytes() for name in before} == before
    index.close()


def test_a_name_that_means_something_in_a_uri(tmp_path: Path) -> None:
    directory = tmp_path / "50% of?mode=memory#1" / "index"
    filled(directory, {"a": {"n": 1}})
    index = opened(directory)
    assert all_rows(index) == {"a": {"n": 1}}
    index.close()


@pytest.mark.parametrize(("sync", "expected"), [(True, 2), (False, 1)])
def test_how_durable_rows_are(directory: Path, sync: bool, expected: int) -> None:
    """FULL syncs with each transaction, NORMAL at checkpoints (sqlite.org/pragma.html#pragma_synchronous)."""
    index = Index(directory, sync=sync)
    assert index.open()
    assert index._cache._sql("PRAGMA synchronous").fetchall() == [(expected,)]
    index.close()


def test_that_survives_the_next_process_with_another_setting(directory: Path) -> None:
    filled(directory, {"a": {"n": 1}})
    index = Index(directory, sync=True)
    assert index.open()
    assert index._cache._sql("PRAGMA synchronous").fetchall() == [(2,)]
    assert index.get("a") == {"n": 1}
    index.close()


def test_closing_may_be_repeated(directory: Path) -> None:
    index = opened(directory)
    index.write([("a", {"n": 1})])
    index.close()
    index.close()
    assert not index.usable
    assert on_disk(directory) == {"a": '{"n":1}'}


def test_an_index_that_was_never_opened_holds_nothing(directory: Path) -> None:
    index = Index(directory)
    assert not index.usable
    assert not index.write([("a", {"n": 1})])
    assert index.get("a") is None
    assert list(index.pages(10)) == []
    index.compact()
    index.close()
    assert not directory.exists()


def test_compacting_gives_space_back(index: Index) -> None:
    rows: list[tuple[str, Row]] = [(f"o:{n}", {"text": "x" * 1000}) for n in range(500)]
    assert index.write(rows)
    assert index.write([(key, None) for key, _ in rows[1:]])
    before = index.size()
    assert before > 500_000

    index.compact()

    assert index.size() < before / 3
    assert all_rows(index) == dict(rows[:1])
    assert index.write([("later", {"n": 1})])


# The schema's number


def set_schema(directory: Path, row: Row | None) -> None:
    index = opened(directory)
    index.write([(SCHEMA_ROW[0], row)])
    index.close()


@pytest.mark.parametrize(
    "row",
    [None, {"schema": SCHEMA - 1}, {"schema": SCHEMA + 1}, {"schema": "x"}, {}],
    ids=["none", "older", "newer", "x", "{}"],
)
def test_an_index_of_another_version_is_made_anew(directory: Path, row: Row | None, caplog: pytest.LogCaptureFixture) -> None:
    filled(directory, {"a": {"n": 1}})
    set_schema(directory, row)

    index = opened(directory)

    assert all_rows(index) == {}
    assert "of another version" in caplog.text
    assert index.write([("b", {"n": 2})])
    index.close()
    index = opened(directory)
    assert all_rows(index) == {"b": {"n": 2}}
    index.close()


def test_a_schema_number_that_is_a_pickle_is_not_loaded(directory: Path, tmp_path: Path) -> None:
    filled(directory, {"a": {"n": 1}})
    crafted(directory, SCHEMA_ROW[0], Evil(tmp_path / "trace"))

    index = opened(directory)
    assert all_rows(index) == {}
    index.close()
    assert not (tmp_path / "trace").exists()


# Pickles


def crafted(directory: Path, key: Any, value: Any, **settings: int) -> None:
    """A row as plain diskcache writes it."""
    with diskcache.Cache(str(directory), **settings) as cache:
        cache.set(key, value)


def test_a_pickled_row_is_never_loaded(directory: Path, tmp_path: Path) -> None:
    filled(directory, {"a": {"n": 1}})
    crafted(directory, "o:evil", Evil(tmp_path / "trace"))
    crafted(directory, "o:plain", "text")
    crafted(directory, "o:list", "[1]")

    index = opened(directory)
    assert [index.get(f"o:{name}") for name in ("evil", "plain", "list")] == [None] * 3
    assert all_rows(index) == {"a": {"n": 1}}
    index.close()
    assert not (tmp_path / "trace").exists()
    with diskcache.Cache(str(directory)) as cache:
        cache.get("o:evil")
    assert (tmp_path / "trace").exists(), "the row was a real one"


def test_a_pickled_row_in_a_file_is_never_loaded(directory: Path, tmp_path: Path) -> None:
    filled(directory, {"a": {"n": 1}})
    crafted(directory, "o:evil", Evil(tmp_path / "trace"), disk_min_file_size=0)

    index = opened(directory)
    assert index.get("o:evil") is None
    assert all_rows(index) == {"a": {"n": 1}}
    index.close()
    assert not (tmp_path / "trace").exists()


def test_a_row_in_a_file_is_not_read(directory: Path) -> None:
    """The file could be any that this process may read."""
    filled(directory, {"a": {"n": 1}})
    crafted(directory, "o:file", '{"n":2}', disk_min_file_size=0)

    index = opened(directory)
    assert index.get("o:file") is None
    assert all_rows(index) == {"a": {"n": 1}}
    index.close()


def test_a_pickled_key_is_never_loaded_and_hides_no_other_row(directory: Path, tmp_path: Path) -> None:
    filled(directory, {"a": {"n": 1}})
    crafted(directory, (Evil(tmp_path / "trace"),), 1)
    filled(directory, {"b": {"n": 2}})

    index = opened(directory)
    assert all_rows(index) == {"a": {"n": 1}, "b": {"n": 2}}
    index.close()
    assert not (tmp_path / "trace").exists()


def test_a_pickle_put_over_a_good_row_is_refused(directory: Path, tmp_path: Path) -> None:
    filled(directory, {"a": {"n": 1}})
    with closing(sqlite3.connect(directory / "cache.db")) as connection, connection:
        blob = pickle.dumps(Evil(tmp_path / "trace"))
        connection.execute("UPDATE Cache SET value = ?, mode = 4 WHERE key = 'a'", (blob,))

    index = opened(directory)
    assert index.get("a") is None
    assert all_rows(index) == {}
    index.close()
    assert not (tmp_path / "trace").exists()


# A damaged, locked or missing index


@pytest.mark.parametrize(
    "rubbish", [b"", b"not a database" * 1000, b"SQLite format 3\x00" + b"\xff" * 4096], ids=["empty", "rubbish", "header"]
)
def test_a_damaged_index_is_made_anew(directory: Path, rubbish: bytes) -> None:
    filled(directory, {"a": {"n": 1}})
    for name in ("cache.db-wal", "cache.db-shm"):
        (directory / name).unlink(missing_ok=True)
    (directory / "cache.db").write_bytes(rubbish)

    index = opened(directory)
    assert all_rows(index) == {}
    assert index.write([("b", {"n": 2})])
    index.close()

    assert on_disk(directory) == {"b": '{"n":2}'}


def test_a_page_that_is_malformed_is_seen_and_the_index_made_anew(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(directory, {f"o{n}": {"n": n} for n in range(1000)})
    index = opened(directory)
    with (directory / "cache.db").open("r+b") as file:
        file.seek(20 * 4096)
        file.write(b"\xff" * 4096)

    found = all_rows(index, 10)
    assert len(found) < 1000
    assert all(row == {"n": int(key[1:])} for key, row in found.items())
    assert not index.usable
    assert "damaged" in caplog.text

    assert index.open()
    assert all_rows(index) == {}
    assert index.write([("new", {"n": 1})])
    index.close()
    assert on_disk(directory) == {"new": '{"n":1}'}


def test_an_index_that_breaks_while_it_is_open_is_made_anew(directory: Path) -> None:
    filled(directory, {f"o{n}": {"n": n} for n in range(1000)})
    index = opened(directory)
    damage_pages(directory)

    assert all(index.get(f"o{n}") in (None, {"n": n}) for n in range(0, 1000, 50))
    assert not index.write([("new", {"n": 1})])
    assert not index.usable
    assert index.open()
    assert index.write([("new", {"n": 1})])
    index.close()

    assert on_disk(directory) == {"new": '{"n":1}'}


@pytest.mark.usefixtures("_short_waits")
def test_a_locked_index_is_left_alone_and_later_usable(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(directory, {"a": {"n": 1}})
    index = Index(directory)
    with locked(directory):
        assert not index.open()
        assert not index.open()
        assert not index.usable
        assert not index.write([("b", {"n": 2})])
    assert len(caplog.records) == 1, "it is said once"

    assert index.open()
    assert all_rows(index) == {"a": {"n": 1}}
    index.close()


@pytest.mark.usefixtures("_short_waits")
def test_an_index_that_is_locked_while_it_is_open_loses_nothing(directory: Path) -> None:
    filled(directory, {"a": {"n": 1}})
    index = opened(directory)
    with locked(directory):
        assert not index.write([("b", {"n": 2})])
        start = time.monotonic()
        index.get("a")
        assert time.monotonic() - start < 1, "the event loop does not wait for locks"

    assert index.usable
    assert index.write([("c", {"n": 3})])
    assert all_rows(index) == {"a": {"n": 1}, "c": {"n": 3}}
    index.close()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.touch()
    index = Index(place / "index")
    assert not index.open()
    assert not index.write([("a", {"n": 1})])
    assert list(index.pages(10)) == []
    place.unlink()

    assert index.open()
    assert index.write([("a", {"n": 1})])
    index.close()


def test_an_index_that_is_wiped_while_it_is_open_can_be_opened_anew(index: Index, directory: Path) -> None:
    index.write([("a", {"n": 1})])
    shutil.rmtree(directory)
    assert not index.is_there()
    index.write([("b", {"n": 2})])
    list(index.pages(10))
    index.compact()

    assert index.open()
    assert index.is_there()
    assert all_rows(index) == {}
    assert index.write([("c", {"n": 3})])
    assert on_disk(directory) == {"c": '{"n":3}'}
