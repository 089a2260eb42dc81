"""The index: rows in a real diskcache, a mirror in memory, and nothing but misses when it is lost."""

import os
import pickle
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diskcache
import pytest

from cacheyd.store import index as index_module
from cacheyd.store.index import Index


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


def opened(directory: Path, *, load: bool = True) -> Index:
    index = Index(directory)
    index.open()
    if load:
        index.load()
    return index


def filled(directory: Path, **rows: dict[str, Any]) -> None:
    index = opened(directory)
    for key, row in rows.items():
        index.put(key, row)
    index.close()


def on_disk(directory: Path) -> dict[str, str]:
    """What another process would see."""
    with sqlite3.connect(directory / "cache.db") as connection:
        return dict(connection.execute("SELECT key, value FROM Cache"))


def test_a_row_is_there_at_once_and_on_disk_after_a_flush(index: Index, directory: Path) -> None:
    index.put("o:a", {"size": 1})
    assert index.get("o:a") == {"size": 1}
    assert on_disk(directory) == {}

    index.flush()
    assert on_disk(directory) == {"o:a": '{"size":1}'}


def test_a_key_that_nobody_set(index: Index) -> None:
    assert index.get("o:none") is None
    index.delete("o:none")
    index.flush()


def test_rows_outlive_the_process(directory: Path) -> None:
    filled(directory, a={"size": 1}, b={"nested": [1, "ü", None, 1.5]})

    for load in (True, False):
        index = opened(directory, load=load)
        assert index.get("a") == {"size": 1}
        assert index.get("b") == {"nested": [1, "ü", None, 1.5]}
        index.close()


def test_the_last_of_several_changes_counts(index: Index, directory: Path) -> None:
    index.put("a", {"n": 1})
    index.delete("a")
    index.put("a", {"n": 2})
    index.put("b", {"n": 3})
    index.delete("b")
    index.flush()

    assert on_disk(directory) == {"a": '{"n":2}'}
    assert (index.get("a"), index.get("b")) == ({"n": 2}, None)


@pytest.mark.parametrize("load", [True, False])
def test_a_deleted_row_is_gone_at_once(directory: Path, load: bool) -> None:
    filled(directory, a={"n": 1})
    index = opened(directory, load=load)

    index.delete("a")
    assert index.get("a") is None
    index.flush()
    assert index.get("a") is None
    index.close()
    assert on_disk(directory) == {}


def test_a_flush_is_one_transaction(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    transactions = []
    transact = diskcache.Cache.transact

    def counted(*args: Any, **kw: Any) -> Any:
        transactions.append(args)
        return transact(*args, **kw)

    monkeypatch.setattr(diskcache.Cache, "transact", counted)
    for i in range(500):
        index.put(f"o:{i}", {"n": i})

    index.flush()
    index.flush()

    assert len(transactions) == 1


def test_reading_never_writes(directory: Path) -> None:
    filled(directory, a={"n": 1})
    index = opened(directory, load=False)
    before = (directory / "cache.db").read_bytes()
    wal = directory / "cache.db-wal"
    written = wal.stat().st_size if wal.exists() else 0

    for _ in range(10):
        index.get("a")
        index.get("none")

    assert (directory / "cache.db").read_bytes() == before
    assert (wal.stat().st_size if wal.exists() else 0) == written
    index.close()


def test_rows_by_prefix_are_those_on_disk_and_those_that_wait(directory: Path) -> None:
    filled(directory, o1={"n": 1}, o2={"n": 2}, t1={"n": 3})
    index = opened(directory, load=False)
    index.put("o3", {"n": 4})
    index.put("o1", {"n": 5})
    index.delete("o2")

    assert sorted(index.rows("o")) == [("o1", {"n": 5}), ("o3", {"n": 4})]
    index.close()


def test_the_mirror_is_bounded_and_what_falls_out_is_read_from_disk(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MIRROR_ROWS", 10)
    index = opened(directory)
    for i in range(100):
        index.put(f"o:{i}", {"n": i})
    index.flush()

    assert [index.get(f"o:{i}") for i in range(100)] == [{"n": i} for i in range(100)]
    assert index.get("o:100") is None
    index.close()
    again = opened(directory)
    assert [again.get(f"o:{i}") for i in range(100)] == [{"n": i} for i in range(100)]
    again.close()


def test_a_row_that_fell_out_before_the_flush_is_not_lost(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MIRROR_ROWS", 2)
    index = opened(directory)
    for i in range(5):
        index.put(f"o:{i}", {"n": i})

    assert [index.get(f"o:{i}") for i in range(5)] == [{"n": i} for i in range(5)]
    index.close()


def test_loading_does_not_bring_old_rows_back(directory: Path) -> None:
    filled(directory, a={"n": 1}, b={"n": 1})
    index = opened(directory, load=False)
    index.put("a", {"n": 2})
    index.delete("b")

    index.load()

    assert (index.get("a"), index.get("b")) == ({"n": 2}, None)
    index.close()


def test_a_deleted_row_does_not_come_back_while_it_is_being_flushed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop reads beside the flush: between taking the batch and writing it, the old row is still on disk."""
    filled(directory, a={"n": 1})
    index = opened(directory, load=False)
    index.delete("a")
    transact = diskcache.Cache.transact

    def look_first(*args: Any, **kw: Any) -> Any:
        index.get("a")
        return transact(*args, **kw)

    monkeypatch.setattr(diskcache.Cache, "transact", look_first)
    index.flush()

    assert index.get("a") is None
    index.close()


def test_changes_beside_flushes_lose_nothing(index: Index, directory: Path) -> None:
    stop = threading.Event()

    def flush_forever() -> None:
        while not stop.is_set():
            index.flush()

    thread = threading.Thread(target=flush_forever)
    thread.start()
    for i in range(1000):
        index.put(f"o:{i}", {"n": i})
        if i % 2:
            index.delete(f"o:{i}")
    stop.set()
    thread.join()
    index.flush()

    assert set(on_disk(directory)) == {f"o:{i}" for i in range(0, 1000, 2)}


# Pickles


def crafted(directory: Path, key: Any, value: Any) -> None:
    """A row as plain diskcache writes it."""
    with diskcache.Cache(str(directory)) as cache:
        cache.set(key, value)


def test_a_pickled_row_is_a_miss_and_never_loaded(directory: Path, tmp_path: Path) -> None:
    crafted(directory, "o:evil", Evil(tmp_path / "trace"))
    crafted(directory, "o:plain", "text")

    for load in (True, False):
        index = opened(directory, load=load)
        assert index.get("o:evil") is None
        assert index.get("o:plain") is None
        assert index.rows("o:") == []
        index.close()
    assert not (tmp_path / "trace").exists()
    with diskcache.Cache(str(directory)) as cache:
        cache.get("o:evil")
    assert (tmp_path / "trace").exists(), "the row was a real one"


def test_a_pickled_row_in_a_file_is_never_loaded(directory: Path, tmp_path: Path) -> None:
    with diskcache.Cache(str(directory), disk_min_file_size=0) as cache:
        cache.set("o:evil", Evil(tmp_path / "trace"))

    index = opened(directory)
    assert index.get("o:evil") is None
    index.close()
    assert not (tmp_path / "trace").exists()


def test_a_pickled_key_is_never_loaded_and_hides_no_other_row(directory: Path, tmp_path: Path) -> None:
    filled(directory, a={"n": 1})
    crafted(directory, (Evil(tmp_path / "trace"),), 1)
    index = opened(directory, load=False)
    index.put("b", {"n": 2})
    index.close()

    index = opened(directory)

    assert not (tmp_path / "trace").exists()
    assert (index.get("a"), index.get("b")) == ({"n": 1}, {"n": 2})
    assert sorted(index.rows("")) == [("a", {"n": 1}), ("b", {"n": 2})]
    index.close()


def test_a_pickle_put_over_a_good_row_is_refused(directory: Path, tmp_path: Path) -> None:
    filled(directory, a={"n": 1})
    with sqlite3.connect(directory / "cache.db") as connection:
        blob = pickle.dumps(Evil(tmp_path / "trace"))
        connection.execute("UPDATE Cache SET value = ?, mode = 4 WHERE key = 'a'", (blob,))

    index = opened(directory)
    assert index.get("a") is None
    index.close()
    assert not (tmp_path / "trace").exists()


# A broken or missing index


@pytest.mark.parametrize("rubbish", [b"", b"not a database" * 1000, b"SQLite format 3\x00" + b"\xff" * 4096])
def test_a_corrupted_index_is_made_anew(directory: Path, rubbish: bytes) -> None:
    filled(directory, a={"n": 1})
    for name in ("cache.db-wal", "cache.db-shm"):
        (directory / name).unlink(missing_ok=True)
    (directory / "cache.db").write_bytes(rubbish)

    index = opened(directory)
    assert index.get("a") is None
    index.put("b", {"n": 2})
    index.close()

    assert on_disk(directory) == {"b": '{"n":2}'}


def test_an_index_that_breaks_while_it_is_open_costs_misses_only(directory: Path) -> None:
    filled(directory, **{f"o{i}": {"n": i} for i in range(1000)})
    index = opened(directory, load=False)
    with (directory / "cache.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 20)

    for i in range(1000):
        assert index.get(f"o{i}") in (None, {"n": i})
    index.put("new", {"n": 1})
    index.flush()
    index.load()
    index.rows("o")
    index.put("newer", {"n": 2})
    index.close()

    assert "newer" in on_disk(directory)


def test_the_batch_that_finds_the_index_broken_goes_into_the_new_one(directory: Path) -> None:
    filled(directory, a={"n": 0})
    index = opened(directory)
    with (directory / "cache.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 20)

    index.put("new", {"n": 1})
    index.flush()
    assert index.get("new") == {"n": 1}
    index.close()
    assert on_disk(directory) == {"new": '{"n":1}'}


def test_a_wiped_index_is_started_anew(index: Index, directory: Path) -> None:
    index.put("a", {"n": 1})
    index.flush()
    shutil.rmtree(directory)

    index.put("b", {"n": 2})
    index.flush()

    assert index.get("b") == {"n": 2}
    assert on_disk(directory) == {"b": '{"n":2}'}


def test_without_a_place_on_disk_rows_live_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    index = opened(tmp_path / "file" / "index")

    index.put("a", {"n": 1})
    index.flush()
    assert index.get("a") == {"n": 1}
    index.delete("a")
    assert index.get("a") is None
    assert index.rows("") == []
    index.close()


def test_an_index_that_was_never_opened_works_in_memory(directory: Path) -> None:
    index = Index(directory)
    index.load()
    index.put("a", {"n": 1})
    index.flush()
    assert index.get("a") == {"n": 1}
    index.close()


def test_a_locked_index_raises_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = opened(directory)

    def locked(*_: Any, **__: Any) -> Any:
        raise diskcache.Timeout

    with monkeypatch.context() as patch:
        patch.setattr(diskcache.Cache, "transact", locked)
        index.put("a", {"n": 1})
        index.flush()
    assert index.get("a") == {"n": 1}
    index.close()


def test_rows_that_could_not_be_written_are_written_later(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a deleted tag is back after the next start, and new objects are hashed all over again."""
    filled(directory, gone={"n": 0})
    index = opened(directory)

    def locked(*_: Any, **__: Any) -> Any:
        raise diskcache.Timeout

    with monkeypatch.context() as patch:
        patch.setattr(diskcache.Cache, "transact", locked)
        index.put("a", {"n": 1})
        index.delete("gone")
        index.flush()
    index.put("b", {"n": 2})
    index.flush()

    assert set(on_disk(directory)) == {"a", "b"}
    index.close()


def test_closing_flushes_and_may_be_repeated(directory: Path) -> None:
    index = opened(directory)
    index.put("a", {"n": 1})
    index.close()
    index.close()
    assert on_disk(directory) == {"a": '{"n":1}'}
