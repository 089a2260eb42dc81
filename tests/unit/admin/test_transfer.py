"""Images out of a cache and into another one: the server's part with real stores, driven by the terminal's part."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cacheyd.admin import transfer
from cacheyd.admin.image_orders import Export, ImportCheck, ImportObject, ImportRoom, ImportTag
from cacheyd.admin.orders import Order
from cacheyd.admin.session import ACCEPT
from cacheyd.admin.transfer import ASKED, Importer
from cacheyd.cache.cache import Cache
from cacheyd.cache.fetch import Fetcher
from cacheyd.cache.request import Request
from cacheyd.protocol.descriptors import Descriptor
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.images import parse_image
from cacheyd.protocol.platforms import parse_platform
from cacheyd.protocol.reference import Kind
from cacheyd.settings.load import load
from cacheyd.store.records import TagVariant
from cacheyd.store.store import Store
from cacheyd.terminal.images import image_names
from cacheyd.terminal.layout.words import Image as Carried
from cacheyd.terminal.layout.words import IncompleteError, LayoutError
from cacheyd.terminal.layout.writing import write_layout
from cacheyd.terminal.transfer import _open_blob, export, import_images
from cacheyd.upstream.port import UpstreamBroken, UpstreamRequest, UpstreamResponse
from tests.support.images import Image, Index, make_image, make_index

NAME = "ghcr.io/acme/app:1.0"
AMD64 = [parse_platform("linux/amd64")]


class Down:
    """A registry that cannot be reached."""

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        raise UpstreamBroken("no network")


class Node:
    """A cache of which the terminal's part, in a thread, asks the server's part."""

    def __init__(self, store: Store) -> None:
        self.store = store
        importer = Importer(store)
        self.handlers: dict[type[Order], Callable[[Any], AsyncIterator[dict[str, Any]]]] = {
            Export: partial(transfer.export, store),
            ImportRoom: importer.room,
            ImportObject: importer.take,
            ImportCheck: importer.check,
            ImportTag: importer.tag,
        }
        self._loop = asyncio.get_running_loop()

    async def run(self, kind: type[Order], args: dict[str, Any]) -> list[dict[str, Any]]:
        """What is told of an order that comes over the socket."""
        return [reply async for reply in self.handlers[kind](kind.parse(args))]

    def call(self, order: Order) -> Iterator[dict[str, Any]]:
        yield from asyncio.run_coroutine_threadsafe(self.run(type(order), order.args()), self._loop).result(10)

    async def export(self, target: Path, *names: str, platforms: Any = None) -> int:
        return await asyncio.to_thread(export, self.call, self.store.root, image_names(names), platforms, str(target))

    async def take(self, source: Path, name: str = "") -> list[str]:
        images = await asyncio.to_thread(import_images, self.call, self.store.root, str(source), name)
        return [str(image.name) for image in images]

    async def add(self, name: str, content: Image | Index) -> None:
        """As if it had been pulled."""
        image = parse_image(name)
        await self._add_objects(image.name, content)
        variant = TagVariant(ASKED, content.digest, content.media_type, len(content.manifest), self.store.clock())
        self.store.tags.set(image.registry, image.repository, image.tag, variant)

    async def _add_objects(self, within: str, content: Image | Index) -> None:
        if isinstance(content, Index):
            for _, image in content.images:
                await self._add_objects(within, image)
        else:
            for blob in content.blobs:
                await self.store.put(blob.digest, blob.data, "", within=within)
        await self.store.put(content.digest, content.manifest, content.media_type, within=within)

    async def pull(self, name: str, content: Image) -> None:
        """What a client gets with its registry down."""
        settings = load(environ={}, flags={})
        cache = Cache(self.store, Fetcher(self.store, Down(), settings), settings)
        image = parse_image(name)
        parts = [(Kind.MANIFEST, image.reference, content.manifest)]
        parts += [(Kind.BLOB, blob.digest, blob.data) for blob in content.blobs]
        for kind, reference, data in parts:
            ref = image.part(kind, reference, image.registry)
            answer = await cache.answer(Request("GET", ref, (("Accept", ACCEPT),), (ACCEPT,)))
            assert (answer.status, bytes(answer.body)) == (200, data)


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[Node]]:
    stores = [Store(tmp_path / name) for name in ("one", "other")]
    for store in stores:
        await store.start()
    yield [Node(store) for store in stores]
    for store in stores:
        await store.stop()


def leftovers(node: Node) -> list[Path]:
    return list((node.store.root / "partial").iterdir())


async def test_an_image_goes_from_one_cache_to_another(nodes: list[Node], tmp_path: Path) -> None:
    one, other = nodes
    image = make_image(layers=2)
    await one.add(NAME, image)

    size = await one.export(tmp_path / "x.tar", NAME)
    assert await other.take(tmp_path / "x.tar") == [NAME]

    assert size == len(image.manifest) + sum(len(blob.data) for blob in image.blobs)
    await other.pull(NAME, image)
    stored = other.store.objects.find(image.digest)
    assert stored is not None
    assert (stored.media_type, stored.within) == (image.media_type, ("ghcr.io/acme/app",))
    assert leftovers(other) == []
    assert [path.name for path in tmp_path.glob("*x.tar*")] == ["x.tar"]


async def test_an_index_goes_with_one_of_its_platforms(nodes: list[Node], tmp_path: Path) -> None:
    one, other = nodes
    index = make_index(make_image(seed=1), make_image(seed=2, architecture="arm64"))
    await one.add(NAME, index)

    await one.export(tmp_path / "x.tar", NAME, platforms=AMD64)
    await other.take(tmp_path / "x.tar")

    (_, amd64), (_, arm64) = index.images
    assert other.store.objects.find(index.digest) is not None
    assert other.store.objects.find(arm64.digest) is None
    await other.pull(f"ghcr.io/acme/app@{amd64.digest}", amd64)


async def test_what_is_evicted_during_an_export_is_still_in_it(nodes: list[Node], tmp_path: Path) -> None:
    one, other = nodes
    image = make_image(layers=3)
    await one.add(NAME, image)
    blobs = {blob.digest for blob in image.blobs}

    class Pipe(io.BytesIO):
        def write(self, data: Any) -> int:
            for digest in blobs:
                one.store.blobs.remove(digest)
            return super().write(data)

    out = Pipe()
    (root,) = await one.run(Export, {"images": [NAME]})
    assert root["images"][0]["digest"] == image.digest
    found = Carried(parse_image(NAME), Descriptor(image.digest, len(image.manifest), image.media_type))
    write_layout(out, [found], lambda digest: _open_blob(one.store.root, digest), None)
    (tmp_path / "x.tar").write_bytes(out.getvalue())

    await other.take(tmp_path / "x.tar")
    await other.pull(NAME, image)


async def test_an_export_marks_what_is_in_it_as_used(
    nodes: list[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = nodes
    image = make_image()
    await one.add(NAME, image)
    now = one.store.clock() + 1000
    monkeypatch.setattr(one.store.objects, "_clock", lambda: now)

    await one.export(tmp_path / "x.tar", NAME)

    assert {stored.used for digest in one.store.catalog.objects if (stored := one.store.objects.find(digest))} == {now}


async def test_an_image_that_is_not_here_is_named(nodes: list[Node], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ghcr\.io/acme/app:1\.0; cacheyd warm"):
        await nodes[0].export(tmp_path / "x.tar", NAME)


async def test_an_incomplete_image_leaves_no_file(nodes: list[Node], tmp_path: Path) -> None:
    one, _ = nodes
    image = make_image()
    await one.add(NAME, image)
    one.store.blobs.remove(image.layers[0].digest)

    with pytest.raises(IncompleteError, match=image.layers[0].digest):
        await one.export(tmp_path / "x.tar", NAME)

    assert list(tmp_path.glob("*x.tar*")) == []


async def test_a_digest_of_another_repository_is_not_exported_under_this_name(nodes: list[Node], tmp_path: Path) -> None:
    one, _ = nodes
    image = make_image()
    await one.add(NAME, image)

    with pytest.raises(ValueError, match="not in the cache"):
        await one.export(tmp_path / "x.tar", f"ghcr.io/other/app@{image.digest}")
    await one.export(tmp_path / "x.tar", f"ghcr.io/acme/app@{image.digest}")


async def test_what_is_here_already_may_be_imported_again(nodes: list[Node], tmp_path: Path) -> None:
    one, _ = nodes
    image = make_image()
    await one.add(NAME, image)
    await one.export(tmp_path / "x.tar", NAME)
    before = one.store.catalog.bytes

    assert await one.take(tmp_path / "x.tar", "docker.io/acme/app:2") == ["docker.io/acme/app:2"]

    assert one.store.catalog.bytes == before
    await one.pull("docker.io/acme/app:2", image)
    await one.pull(NAME, image)


async def test_what_the_cache_has_no_room_for_is_a_failure(nodes: list[Node], tmp_path: Path) -> None:
    one, other = nodes
    image = make_image(layers=2)
    await one.add(NAME, image)
    await one.export(tmp_path / "x.tar", NAME)
    tag = other.handlers[ImportTag]

    async def evict_meanwhile(order: ImportTag) -> AsyncIterator[dict[str, Any]]:
        await other.store.objects.remove([image.layers[0].digest], "size")
        async for reply in tag(order):
            yield reply

    other.handlers[ImportTag] = evict_meanwhile

    with pytest.raises(LayoutError, match="1 of 4 objects were removed again"):
        await other.take(tmp_path / "x.tar")


async def test_a_broken_tar_leaves_nothing(nodes: list[Node], tmp_path: Path) -> None:
    one, other = nodes
    image = make_image(layers=2)
    await one.add(NAME, image)
    await one.export(tmp_path / "x.tar", NAME)
    data = bytearray((tmp_path / "x.tar").read_bytes())
    position = data.find(image.layers[1].data)
    data[position + 700] ^= 1
    (tmp_path / "x.tar").write_bytes(data)

    with pytest.raises(LayoutError, match="does not hold"):
        await other.take(tmp_path / "x.tar")

    assert other.store.catalog.bytes == 0
    assert leftovers(other) == []


@pytest.mark.parametrize("file", ["../../etc/passwd", "sha256-" + "a" * 64, "import.1-2-xyz", "/import.1-0-00000000"])
async def test_only_files_of_imports_are_adopted(nodes: list[Node], file: str) -> None:
    args = {"file": file, "digest": digest_of(b""), "media_type": "", "within": ["ghcr.io/acme/app"]}
    with pytest.raises(ValueError, match="not a file of an import"):
        await nodes[0].run(ImportObject, args)


async def test_a_file_that_has_another_digest_is_not_adopted(nodes: list[Node]) -> None:
    one, _ = nodes
    (one.store.root / "partial" / "import.1-0-00000000").write_bytes(b"wrong")
    args = {"file": "import.1-0-00000000", "digest": digest_of(b"right"), "media_type": "", "within": ["ghcr.io/acme/app"]}

    with pytest.raises(ValueError, match="could not be kept"):
        await one.run(ImportObject, args)

    assert one.store.objects.find(digest_of(b"right")) is None


async def test_a_tag_needs_its_manifest(nodes: list[Node]) -> None:
    with pytest.raises(ValueError, match="no manifest that is here"):
        await nodes[0].run(ImportTag, {"image": NAME, "digest": digest_of(b"x")})
