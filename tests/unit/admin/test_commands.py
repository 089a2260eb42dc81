"""What the commands do to a real store."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cacheyd.admin.command import Command
from cacheyd.admin.commands import Commands
from cacheyd.admin.control import CommandError, Reply
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import OCI_MANIFEST
from cacheyd.settings.settings import Settings
from cacheyd.settings.values import Size
from cacheyd.store.records import Stored, TagVariant
from cacheyd.store.store import Store
from tests.support.stores import ASKED, Clock, StoppableStore, add, object_file, replace_file

APP, WEB = "reg.test/app", "reg.test/web"
BASE = b"a layer of two images"
_SHORT = "sha256:" + "a" * 12


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    store = StoppableStore(tmp_path / "cache", Settings(pin=(f"{WEB}:*",), max_size=Size(1 << 20)), clock=clock)
    await store.start(background=False)
    yield store
    await store.stop()


@pytest.fixture
def commands(store: Store) -> Commands:
    return Commands(store)


async def pull(store: Store, name: str, tag: str, *blobs: bytes) -> Stored:
    """An image of these blobs."""
    layers = [{"digest": (await add(store, blob, within=name)).digest} for blob in blobs]
    data = json.dumps({"schemaVersion": 2, "config": layers[0], "layers": layers[1:]}).encode()
    stored = await add(store, data, OCI_MANIFEST, name)
    registry, _, repository = name.partition("/")
    store.tags.set(registry, repository, tag, TagVariant(ASKED, stored.digest, OCI_MANIFEST, stored.size, store.clock()))
    return stored


async def replies(commands: Commands, command: str, **args: object) -> list[Reply]:
    return [reply async for reply in commands.run(command, args)]


async def result(commands: Commands, command: str, **args: object) -> Any:
    """The last reply's."""
    return (await replies(commands, command, **args))[-1]["result"]


async def listed(commands: Commands, **args: object) -> list[Any]:
    found = await replies(commands, "ls", **args)
    rows = [row for reply in found for row in reply.get("rows", ())]
    assert found[-1] == {"result": {"count": len(rows)}}
    return rows


async def test_images_are_listed(commands: Commands, store: Store) -> None:
    await pull(store, APP, "1.0", b"config 1", BASE)
    await pull(store, WEB, "2.0", b"config 2", BASE)
    rows = await listed(commands)
    assert [(row["name"], row["complete"], row["pinned"]) for row in rows] == [
        (f"{APP}:1.0", True, False),
        (f"{WEB}:2.0", True, True),
    ]
    assert [row["name"] for row in await listed(commands, patterns=["reg.test/app"])] == [f"{APP}:1.0"]
    assert len(await listed(commands, blobs=True)) == 5
    json.dumps(await replies(commands, "ls"))


async def test_rows_come_in_pieces(commands: Commands, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheyd.admin.command.ROWS", 2)
    await pull(store, APP, "1.0", b"config 1", BASE)
    assert [len(reply.get("rows", ())) for reply in await replies(commands, "ls", blobs=True)] == [2, 1, 0]


async def test_space(commands: Commands, store: Store) -> None:
    await pull(store, APP, "1.0", b"config 1", BASE)
    usage = await result(commands, "du")
    assert (usage["objects"], usage["bytes"]) == (3, store.size)


async def test_an_image_is_removed_with_what_only_it_needs(commands: Commands, store: Store) -> None:
    image = await pull(store, APP, "1.0", b"config 1", BASE)
    await pull(store, WEB, "2.0", b"config 2", BASE)
    expected = {"images": [f"{APP}:1.0"], "tags": 1, "objects": 2, "bytes": image.size + 8, "kept": 1, "not_found": []}
    expected["stays"] = []
    assert await result(commands, "rm", targets=["reg.test/app:1.0"], dry_run=True) == {**expected, "dry_run": True}
    assert store.objects.find(image.digest) is not None
    assert await result(commands, "rm", targets=["reg.test/app:1.0"]) == {**expected, "dry_run": False}
    assert store.objects.find(image.digest) is None
    assert not object_file(store, b"config 1").exists()
    assert object_file(store, BASE).exists()
    assert not store.tags.variants("reg.test", "app", "1.0")
    assert [row["name"] for row in await listed(commands)] == [f"{WEB}:2.0"]


async def test_what_an_image_needs_that_came_meanwhile_stays(
    commands: Commands, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pull(store, APP, "1.0", b"config 1", BASE)
    remove = store.tags.remove

    def removed_while_another_comes(name: str) -> bool:
        other = Stored(digest_of(b"other"), 1, OCI_MANIFEST, 1.0, (WEB,), needs=(digest_of(BASE),))
        store.catalog.add(other)
        return remove(name)

    monkeypatch.setattr(store.tags, "remove", removed_while_another_comes)
    found = await result(commands, "rm", targets=["reg.test/app"])
    assert (found["objects"], found["kept"]) == (2, 1)
    assert object_file(store, BASE).exists()


async def test_everything_is_removed(commands: Commands, store: Store) -> None:
    await pull(store, APP, "1.0", b"config 1", BASE)
    await add(store, b"loose")
    assert (await result(commands, "rm", all=True))["objects"] == 4
    assert (store.size, store.catalog.tags) == (0, {})


async def test_nothing_is_found(commands: Commands) -> None:
    found = await result(commands, "rm", targets=["alpine"])
    assert (found["objects"], found["not_found"]) == (0, ["alpine"])


async def test_blobs_without_a_manifest_go_when_nobody_used_them_for_an_hour(
    commands: Commands, store: Store, clock: Clock
) -> None:
    await pull(store, APP, "1.0", b"config 1", BASE)
    await add(store, b"loose")
    clock.now += 3601
    await add(store, b"new")
    assert "unreferenced" not in await result(commands, "gc")
    found = await result(commands, "gc", unreferenced=True)
    assert (found["unreferenced"], found["freed"], found["objects"]) == (1, 5, 4)
    assert not object_file(store, b"loose").exists()
    assert object_file(store, b"new").exists()


async def test_what_does_not_have_its_digest_is_dropped(commands: Commands, store: Store) -> None:
    await pull(store, APP, "1.0", b"config 1", BASE)
    path = object_file(store, BASE)
    status = path.stat()
    replace_file(store, BASE, b"A" * len(BASE))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = await replies(commands, "verify")
    assert found[-1]["result"]["dropped"] == [digest_of(BASE)]
    assert found[-2]["progress"]["done"] == found[-2]["progress"]["total"] == 3
    assert not path.exists()


async def test_totals(commands: Commands, store: Store, clock: Clock) -> None:
    await pull(store, APP, "1.0", b"config 1", BASE)
    found = await result(commands, "stats")
    assert found["server"] is None
    assert (found["store"]["objects"], found["store"]["manifests"], found["store"]["tags"]) == (3, 1, 1)
    assert (found["store"]["bytes"], found["store"]["max_size"]) == (store.size, 1 << 20)
    assert (found["store"]["oldest_use"], found["store"]["partial_files"]) == (clock.now, 0)
    assert (await result(Commands(store, running=lambda: {"hits": 1}), "stats"))["server"] == {"hits": 1}


async def test_totals_of_an_empty_cache(commands: Commands) -> None:
    assert (await result(commands, "stats"))["store"]["oldest_use"] is None


async def test_further_commands(store: Store) -> None:
    async def warm(args: dict[str, Any]) -> AsyncIterator[Reply]:
        yield {"result": args}

    assert await result(Commands(store, [Command("warm", dict, warm)]), "warm", image="alpine") == {"image": "alpine"}


@pytest.mark.parametrize(
    ("command", "args"),
    [("make", {}), ("ls", {"patterns": "x"}), ("ls", {"patterns": [1]}), ("rm", {"targets": ["A B"]})],
)
async def test_wrong_commands(commands: Commands, command: str, args: dict[str, Any]) -> None:
    with pytest.raises(CommandError):
        await replies(commands, command, **args)


@pytest.mark.parametrize(("command", "args"), [("ls", {"blobs": True, "patterns": [_SHORT]}), ("rm", {"targets": [_SHORT]})])
async def test_the_beginning_of_several_digests(commands: Commands, store: Store, command: str, args: dict[str, Any]) -> None:
    for last in "12":
        store.catalog.add(Stored(f"sha256:{'a' * 63}{last}", 1, "", 1.0))
    with pytest.raises(CommandError, match="beginning of 2 digests"):
        await replies(commands, command, **args)
