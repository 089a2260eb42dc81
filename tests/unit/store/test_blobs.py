"""Files below CACHE_DIR, on a real disk: append, hash, verify, commit, read through mappings that outlive the file."""

import errno
import json
import mmap
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cacheyd.protocol.digest import digest_of
from cacheyd.store.blobs import BlobDir, Partial, hash_file

DATA = bytes(range(256)) * 64
DIGEST = digest_of(DATA)
PAGE = mmap.PAGESIZE


@pytest.fixture
def blobs(tmp_path: Path) -> BlobDir:
    blobs = BlobDir(tmp_path / "cache")
    blobs.prepare()
    return blobs


def append(partial: Partial, data: bytes) -> int:
    partial.write([data])
    partial.hash([data])
    return partial.advance(len(data))


def add(blobs: BlobDir, data: bytes) -> str:
    partial = blobs.open_partial(digest_of(data))
    append(partial, data)
    assert blobs.commit(partial)
    partial.close()
    return partial.digest


def stat_of(blobs: BlobDir, digest: str) -> tuple[int, int]:
    found = blobs.stat(digest)
    assert found is not None
    return found


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


# Layout


def test_the_directory_is_an_oci_image_layout(blobs: BlobDir) -> None:
    add(blobs, DATA)

    assert json.loads((blobs.root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads((blobs.root / "index.json").read_text()) == {"schemaVersion": 2, "manifests": []}
    assert (blobs.root / "blobs" / "sha256" / DIGEST.removeprefix("sha256:")).read_bytes() == DATA
    assert names(blobs.root / "partial") == []


def test_preparing_again_changes_nothing(blobs: BlobDir) -> None:
    (blobs.root / "index.json").write_text('{"schemaVersion": 2, "manifests": [], "annotations": {}}')
    add(blobs, DATA)

    blobs.prepare()

    assert "annotations" in (blobs.root / "index.json").read_text()
    assert blobs.read(DIGEST) == DATA


def test_preparing_in_an_impossible_place_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        BlobDir(tmp_path / "file" / "cache").prepare()


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_both_algorithms(blobs: BlobDir, algorithm: str) -> None:
    digest = digest_of(DATA, algorithm)
    partial = blobs.open_partial(digest)
    append(partial, DATA)

    assert partial.verified()
    assert blobs.commit(partial)
    partial.close()
    assert blobs.read(digest) == DATA
    assert list(blobs.scan()) == [(digest, *stat_of(blobs, digest))]


# Growing


def test_a_partial_grows_hashes_and_is_verified_only_when_it_is_whole(blobs: BlobDir) -> None:
    partial = blobs.open_partial(DIGEST)
    assert (partial.size, partial.verified()) == (0, False)

    assert append(partial, DATA[:1000]) == 1000
    assert not partial.verified()
    assert append(partial, DATA[1000:]) == len(DATA)
    assert partial.verified()
    assert append(partial, b"x") == len(DATA) + 1
    assert not partial.verified()
    partial.close()


def test_what_was_written_can_be_read_at_once(blobs: BlobDir) -> None:
    partial = blobs.open_partial(DIGEST)
    append(partial, DATA)

    assert partial.read(10, 20) == DATA[10:20]
    assert partial.read(len(DATA) - 5, len(DATA) + 100) == DATA[-5:]
    assert partial.read(len(DATA), len(DATA) + 1) == b""
    partial.close()


def test_a_window_is_shared_by_all_its_readers(blobs: BlobDir) -> None:
    partial = blobs.open_partial(DIGEST)
    append(partial, DATA)

    first, again, second = partial.window(0, PAGE), partial.window(0, PAGE), partial.window(1, PAGE)

    assert bytes(first) == DATA[:PAGE]
    assert bytes(second) == DATA[PAGE : 2 * PAGE]
    assert first.obj is again.obj
    assert first.obj is not second.obj
    assert first.readonly
    partial.close()


def test_windows_stay_readable_after_the_file_is_closed_and_gone(blobs: BlobDir) -> None:
    partial = blobs.open_partial(DIGEST)
    append(partial, DATA)
    window = partial.window(0, PAGE)

    blobs.discard(partial)
    partial.close()
    shutil.rmtree(blobs.root)

    assert bytes(window) == DATA[:PAGE]


def test_a_partial_is_continued_where_it_stopped(blobs: BlobDir) -> None:
    partial = blobs.open_partial(DIGEST)
    append(partial, DATA[:5000])
    partial.close()

    partial = BlobDir(blobs.root).open_partial(DIGEST)
    assert partial.size == 5000
    append(partial, DATA[5000:])

    assert partial.verified()
    assert blobs.commit(partial)
    partial.close()
    assert blobs.read(DIGEST) == DATA


def test_a_whole_partial_is_verified_when_it_is_opened_again(blobs: BlobDir) -> None:
    partial = blobs.open_partial(DIGEST)
    append(partial, DATA)
    partial.close()

    again = blobs.open_partial(DIGEST)
    assert again.verified()
    again.close()


def test_a_partial_from_before_the_machine_started_is_begun_anew(blobs: BlobDir) -> None:
    """Nothing syncs it while it grows, so a power cut may have left holes."""
    path = blobs.root / "partial" / DIGEST.replace(":", "-")
    path.write_bytes(DATA[:5000])
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    os.utime(path, (booted - 60, booted - 60))

    partial = blobs.open_partial(DIGEST)
    assert partial.size == 0
    partial.close()


# Two openers


def test_the_second_opener_gets_a_file_of_its_own(blobs: BlobDir) -> None:
    first = blobs.open_partial(DIGEST)
    append(first, DATA[:5000])

    second = blobs.open_partial(DIGEST)
    assert (second.size, second.path == first.path) == (0, False)
    append(first, DATA[5000:])
    append(second, DATA)

    assert first.verified()
    assert second.verified()
    assert blobs.commit(first)
    assert blobs.commit(second)
    assert blobs.read(DIGEST) == DATA
    assert names(blobs.root / "partial") == []
    first.close()
    second.close()


def test_a_second_process_gets_a_file_of_its_own(blobs: BlobDir) -> None:
    mine = blobs.open_partial(DIGEST)
    append(mine, DATA[:5000])

    program = (
        "import sys; from pathlib import Path; from cacheyd.store.blobs import BlobDir;"
        "partial = BlobDir(Path(sys.argv[1])).open_partial(sys.argv[2]); print(partial.size, partial.path)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(blobs.root), DIGEST], capture_output=True, text=True, timeout=20, check=True
    )

    size, _, path = result.stdout.strip().partition(" ")
    assert (size, path == str(mine.path)) == ("0", False)
    assert mine.path.stat().st_size == 5000
    mine.close()


def test_a_closed_partial_can_be_opened_again(blobs: BlobDir) -> None:
    partial = blobs.open_partial(DIGEST)
    path = partial.path
    partial.close()
    partial.close()

    again = blobs.open_partial(DIGEST)
    assert again.path == path
    again.close()


# Commit, discard, remove


def test_committing_over_an_object_that_is_there_already(blobs: BlobDir) -> None:
    add(blobs, DATA)
    mapped = blobs.map(DIGEST)
    add(blobs, DATA)

    assert blobs.read(DIGEST) == DATA
    assert mapped is not None
    assert bytes(mapped.view(0, len(DATA))) == DATA


def test_a_discarded_partial_is_gone(blobs: BlobDir) -> None:
    partial = blobs.open_partial(DIGEST)
    append(partial, DATA)
    blobs.discard(partial)
    partial.close()

    assert names(blobs.root / "partial") == []
    again = blobs.open_partial(DIGEST)
    assert again.size == 0
    again.close()


def test_discarding_leaves_a_newer_file_of_the_same_name_alone(blobs: BlobDir) -> None:
    old = blobs.open_partial(DIGEST)
    old.path.unlink()
    new = blobs.open_partial(DIGEST)
    append(new, DATA)

    blobs.discard(old)

    assert new.path.read_bytes() == DATA
    old.close()
    new.close()


def test_removing_disturbs_no_reader(blobs: BlobDir) -> None:
    add(blobs, DATA)
    mapped = blobs.map(DIGEST)
    assert mapped is not None
    view = mapped.view(100, 200)

    blobs.remove(DIGEST)
    blobs.remove(DIGEST)

    assert bytes(view) == DATA[100:200]
    assert bytes(mapped.view(0, len(DATA))) == DATA
    assert (blobs.size(DIGEST), blobs.read(DIGEST), blobs.map(DIGEST)) == (None, None, None)


# Mappings


def test_a_mapping_is_shared_while_somebody_has_it(blobs: BlobDir) -> None:
    add(blobs, DATA)

    first, second = blobs.map(DIGEST), blobs.map(DIGEST)

    assert first is not None
    assert first is second
    assert first.size == len(DATA)


def test_a_mapping_goes_with_its_last_reader(blobs: BlobDir) -> None:
    add(blobs, DATA)

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count(DIGEST.removeprefix("sha256:"))

    mapped = blobs.map(DIGEST)
    assert mapped is not None
    view = mapped.view(0, 10)
    del mapped
    assert mappings() == 1, "a view keeps the mapping"
    del view
    assert mappings() == 0


def test_views_are_windows_without_a_copy_and_cannot_be_written(blobs: BlobDir) -> None:
    add(blobs, DATA)
    mapped = blobs.map(DIGEST)
    assert mapped is not None

    assert bytes(mapped.view(0, 0)) == b""
    assert bytes(mapped.view(5, 5 + PAGE)) == DATA[5 : 5 + PAGE]
    assert mapped.view(0, 5).obj is mapped.view(5, 10).obj
    with pytest.raises(TypeError):
        mapped.view(0, 5)[0] = 1


def test_an_empty_object_has_a_mapping_too(blobs: BlobDir) -> None:
    digest = add(blobs, b"")

    mapped = blobs.map(digest)
    assert mapped is not None
    assert (mapped.size, bytes(mapped.view(0, 0))) == (0, b"")


# The directory may be wiped at any time


@pytest.mark.parametrize("wiped", ["", "blobs", "partial"])
def test_a_wipe_before_opening(blobs: BlobDir, wiped: str) -> None:
    shutil.rmtree(blobs.root / wiped)
    add(blobs, DATA)
    assert blobs.read(DIGEST) == DATA


@pytest.mark.parametrize("wiped", ["", "partial"])
def test_a_wipe_while_it_grows_leaves_nothing_half(blobs: BlobDir, wiped: str) -> None:
    partial = blobs.open_partial(DIGEST)
    append(partial, DATA[:5000])
    shutil.rmtree(blobs.root / wiped)
    append(partial, DATA[5000:])

    assert partial.verified(), "the clients still get all of it"
    assert bytes(partial.read(0, len(DATA))) == DATA
    assert not partial.is_linked()
    assert not blobs.commit(partial)
    partial.close()
    assert blobs.size(DIGEST) is None


def test_a_wipe_of_the_target_directory_before_the_commit(blobs: BlobDir) -> None:
    partial = blobs.open_partial(DIGEST)
    append(partial, DATA)
    shutil.rmtree(blobs.root / "blobs")

    assert blobs.commit(partial)
    partial.close()
    assert blobs.read(DIGEST) == DATA


def test_a_wipe_and_a_new_file_of_the_same_name_are_told_apart(blobs: BlobDir) -> None:
    old = blobs.open_partial(DIGEST)
    append(old, DATA)
    shutil.rmtree(blobs.root)
    new = blobs.open_partial(DIGEST)
    append(new, DATA[:10])

    assert not blobs.commit(old), "the name belongs to another file now"
    assert new.is_linked()
    assert blobs.size(DIGEST) is None
    old.close()
    new.close()


def test_a_wipe_while_it_is_read(blobs: BlobDir) -> None:
    add(blobs, DATA)
    mapped = blobs.map(DIGEST)
    assert mapped is not None
    shutil.rmtree(blobs.root)

    assert bytes(mapped.view(0, len(DATA))) == DATA
    assert (blobs.size(DIGEST), blobs.read(DIGEST), blobs.map(DIGEST)) == (None, None, None)
    assert list(blobs.scan()) == []
    assert blobs.sweep_partials(0) == (0, {})
    assert blobs.stat(DIGEST) is None
    assert blobs.total() == 0
    assert blobs.free() is None


# Scan and sweep


def test_a_scan_finds_objects_and_nothing_else(blobs: BlobDir) -> None:
    digest = add(blobs, DATA)
    directory = blobs.root / "blobs" / "sha256"
    (directory / "notes.txt").touch()
    (directory / ("A" * 64)).touch()
    (directory / ("a" * 63)).touch()
    (directory / ("b" * 64)).mkdir()
    (directory / ("c" * 64)).symlink_to("/etc/passwd")
    (blobs.root / "blobs" / "sha512" / ("d" * 64)).touch()

    assert list(blobs.scan()) == [(digest, *stat_of(blobs, digest))]


def test_a_sweep_removes_what_no_fetch_will_continue(blobs: BlobDir) -> None:
    old, recent = digest_of(b"old"), digest_of(b"recent")
    for digest in (old, recent):
        partial = blobs.open_partial(digest)
        append(partial, b"x")
        partial.close()
    hour_ago = time.time() - 3600
    os.utime(blobs.root / "partial" / old.replace(":", "-"), (hour_ago, hour_ago))
    (blobs.root / "partial" / f"{DIGEST.replace(':', '-')}.123-456").write_bytes(b"of a process that died")

    removed, idle = blobs.sweep_partials(older_than=1800)

    assert removed == 2
    assert idle == {str(blobs.root / "partial" / recent.replace(":", "-")): 1}
    assert names(blobs.root / "partial") == [recent.replace(":", "-")]


def test_a_sweep_leaves_a_second_openers_file_alone(blobs: BlobDir) -> None:
    first = blobs.open_partial(DIGEST)
    second = blobs.open_partial(DIGEST)

    assert blobs.sweep_partials(older_than=3600) == (0, {})
    assert first.is_linked()
    assert second.is_linked()
    first.close()
    second.close()


def test_a_sweep_leaves_alone_what_is_under_way_however_old(blobs: BlobDir) -> None:
    partial = blobs.open_partial(DIGEST)
    append(partial, DATA[:1000])
    os.utime(partial.path, (0, 0))

    assert blobs.sweep_partials(older_than=0) == (0, {})
    assert partial.is_linked()
    partial.close()
    assert blobs.sweep_partials(older_than=3600) == (1, {})


# To the disk itself


def test_objects_are_synced_where_they_are(blobs: BlobDir, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [add(blobs, DATA), add(blobs, b"other")]
    synced: list[str] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))

    assert blobs.sync([*digests, digest_of(b"wiped")]) == []
    assert synced == [blobs.path(digest) for digest in digests]


def test_what_does_not_get_to_the_disk_is_named(blobs: BlobDir, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [add(blobs, data) for data in (DATA, b"bad", b"other")]

    def fdatasync(fd: int) -> None:
        if os.fstat(fd).st_size == 3:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    assert blobs.sync(digests) == [digest_of(b"bad")]


def test_a_synced_commit_has_bytes_before_the_name_and_the_name_before_it_ends(
    blobs: BlobDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, bool]] = []

    def note(fd: int) -> None:
        calls.append((os.readlink(f"/proc/self/fd/{fd}"), blobs.size(DIGEST) is not None))

    monkeypatch.setattr(os, "fdatasync", note)
    monkeypatch.setattr(os, "fsync", note)
    partial = blobs.open_partial(DIGEST)
    append(partial, DATA)

    assert blobs.commit(partial, sync=True) == stat_of(blobs, DIGEST)[1]
    partial.close()
    assert calls == [(str(partial.path), False), (os.path.dirname(blobs.path(DIGEST)), True)]


# What is there


def test_a_file_is_known_by_its_size_and_time_of_change(blobs: BlobDir) -> None:
    partial = blobs.open_partial(DIGEST)
    append(partial, DATA)
    stamp = blobs.commit(partial)
    partial.close()

    assert blobs.stat(DIGEST) == (len(DATA), stamp)
    os.utime(blobs.path(DIGEST), ns=(0, 12345))
    assert blobs.stat(DIGEST) == (len(DATA), 12345)


def test_whether_somebody_reads_an_object(blobs: BlobDir) -> None:
    add(blobs, DATA)
    assert not blobs.is_mapped(DIGEST)
    mapped = blobs.map(DIGEST)
    assert blobs.is_mapped(DIGEST)
    del mapped
    assert not blobs.is_mapped(DIGEST)


def test_files_can_be_hashed_again(blobs: BlobDir) -> None:
    add(blobs, DATA)

    assert hash_file(blobs.path(DIGEST), "sha256") == DIGEST
    assert hash_file(blobs.path(digest_of(b"other")), "sha256") is None


def test_free_space_is_known(blobs: BlobDir) -> None:
    free = blobs.free()
    assert free is not None
    assert 0 < free <= blobs.total() == shutil.disk_usage(blobs.root).total
