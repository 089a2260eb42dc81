"""What is served: manifests and blobs as files below `/v2/`, so that nginx can be the origin and the peer."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.support.images import OCI_MANIFEST, make_image, random_bytes

REPOSITORY = "bench/app"
SMALL_BLOB = 4096


@dataclass(frozen=True, slots=True)
class Item:
    """One object; `kind` is the word in its path, `size` is in bytes."""

    kind: str
    digest: str
    size: int

    @property
    def path(self) -> str:
        """Where every system has it."""
        return f"/v2/{REPOSITORY}/{self.kind}/{self.digest}"


@dataclass(frozen=True, slots=True)
class Content:
    """Everything that is on the origin. `cold` and `herd` have a blob for each repetition: nobody has seen it before."""

    root: Path
    manifests: tuple[Item, ...]
    small: Item
    big: Item
    check: Item
    cold: tuple[Item, ...]
    herd: tuple[Item, ...]


def make_content(root: Path, *, size: int, manifests: int, cold: int, herd: int) -> Content:
    """Writes it all below `root`. Blobs are `size` bytes, and so are the bytes of memory that this takes."""
    tree = _Tree(root)
    body = random_bytes(size - 8, 1)
    numbers = iter(range(1, 1 << 20))

    def fresh(count: int) -> tuple[Item, ...]:
        return tuple(tree.add_blob((next(numbers).to_bytes(8, "big"), body)) for _ in range(count))

    images = (make_image(layers=6, layer_size=16, seed=n) for n in range(manifests))
    content = Content(
        root=root,
        manifests=tuple(tree.add_manifest(image.manifest) for image in images),
        small=tree.add_blob((random_bytes(SMALL_BLOB, 2),)),
        check=tree.add_blob((random_bytes(size // 20, 3),)),
        big=fresh(1)[0],
        cold=fresh(cold),
        herd=fresh(herd),
    )
    os.sync()  # Not while something is measured.
    return content


class _Tree:
    def __init__(self, root: Path) -> None:
        self._root = root
        for kind in ("manifests", "blobs"):
            (root / "v2" / REPOSITORY / kind).mkdir(parents=True)

    def add_manifest(self, data: bytes) -> Item:
        return self._add("manifests", (data,))

    def add_blob(self, pieces: Iterable[bytes]) -> Item:
        return self._add("blobs", pieces)

    def _add(self, kind: str, pieces: Iterable[bytes]) -> Item:
        running, size = hashlib.sha256(), 0
        new = self._root / "new"
        with new.open("wb") as file:
            for data in pieces:
                running.update(data)
                size += file.write(data)
        item = Item(kind, f"sha256:{running.hexdigest()}", size)
        new.rename(self._root / item.path[1:])
        return item


MANIFEST_TYPE = OCI_MANIFEST
