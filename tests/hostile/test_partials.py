"""Imports and fetches beside sweeps of `partial/` that never end: what says success has all its objects."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cacheyd.admin import client
from cacheyd.admin.orders import Order
from cacheyd.protocol.descriptors import Descriptor
from cacheyd.protocol.images import parse_image
from cacheyd.store.blobs import BlobDir
from cacheyd.terminal.layout.words import Image
from cacheyd.terminal.layout.writing import write_layout
from cacheyd.terminal.transfer import import_images
from tests.faults.daemon import Daemon
from tests.faults.scene import blob_target, manifest_target, registry_table
from tests.policy.conftest import Starter
from tests.support.images import Image as Content
from tests.support.images import make_image

NS = "imported.test"
SECONDS = 3.0


@contextmanager
def sweeping(directory: Path, threads: int = 2) -> Iterator[None]:
    """Another process that removes whatever nobody has, as fast as it can."""
    ended = threading.Event()

    def sweep() -> None:
        blobs = BlobDir(directory)
        while not ended.is_set():
            blobs.sweep_partials(-1)

    running = [threading.Thread(target=sweep) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in running:
            thread.join()


def tar_of(content: Content, name: str) -> bytes:
    objects = {blob.digest: blob.data for blob in content.blobs} | {content.digest: content.manifest}
    root = Descriptor(content.digest, len(content.manifest), content.media_type)
    out = io.BytesIO()
    write_layout(out, [Image(parse_image(name), root)], lambda digest: io.BytesIO(objects[digest]), None)
    return out.getvalue()


def take(daemon: Daemon, tar: Path) -> None:
    """`cacheyd import`, as a process of its own would do it."""

    def call(order: Order) -> Iterator[dict[str, Any]]:
        for reply in client.request(daemon.cache_dir, order.command, order.args()):
            if value := reply.get("progress"):
                yield value

    import_images(call, daemon.cache_dir, str(tar))


def assert_all_there(daemon: Daemon, content: Content) -> None:
    targets = {blob_target("app", blob.digest, NS): blob.data for blob in content.blobs}
    targets[manifest_target("app", content.digest, NS)] = content.manifest
    for target, data in targets.items():
        reply = daemon.get(target)
        assert (reply.status, reply.cache, reply.body) == (200, "HIT", data), target


def test_imports_beside_sweeps(own: Starter, tmp_path: Path) -> None:
    """The sweeps are another process': it is not only the daemon's own that must leave an import alone."""
    daemon = own.daemon(registry_table(NS, "http://127.0.0.1:1"))
    done: list[Content] = []
    with sweeping(daemon.cache_dir):
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            content = make_image(layers=6, layer_size=2000, seed=1000 + len(done))
            tar = tmp_path / "image.tar"
            tar.write_bytes(tar_of(content, f"{NS}/app:{len(done)}"))
            take(daemon, tar)
            done.append(content)
    assert len(done) > 3
    for content in done:
        assert_all_there(daemon, content)
    assert list((daemon.cache_dir / "partial").iterdir()) == []
