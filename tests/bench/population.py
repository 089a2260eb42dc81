"""A cache directory with many small objects, as years of pulls leave it: indexes, manifests, configs, layers, tags."""

import hashlib
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cacheyd.protocol.media_types import OCI_INDEX, OCI_MANIFEST
from cacheyd.store.blobs import BlobDir
from cacheyd.store.index import Index, Row
from cacheyd.store.rows import Stored, TagVariant, write_stored, write_variants

REGISTRY = "bench.test"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
IMAGES_IN_A_REPOSITORY = 30
SYSTEMS = 20
PLATFORMS = ("386", "amd64", "arm", "arm64", "mips64le", "ppc64le", "riscv64", "s390x")
# As containerd and dockerd ask.
ASKED = (
    frozenset({OCI_INDEX, OCI_MANIFEST, "application/vnd.docker.distribution.manifest.v2+json", "*/*"}),
    frozenset({OCI_INDEX, OCI_MANIFEST, "application/vnd.docker.distribution.manifest.list.v2+json"}),
)
MAX_REPOSITORIES = 64
_PAGE = 2000


@dataclass(slots=True)
class Thing:
    """An object, and the repositories that it came from."""

    data: bytes
    media_type: str = ""
    within: list[str] = field(default_factory=list)
    needs: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of its bytes."""
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Image:
    """One tag, with all that a client pulls for it: index, manifest, then config and layers."""

    repository: str
    tag: str
    things: tuple[Thing, ...]

    @property
    def index(self) -> Thing:
        """What the tag means."""
        return self.things[0]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a client gets an object."""

    digest: str
    size: int
    path: str


def images(seed: int = 1) -> Iterator[Image]:
    """Images without end. A base system is shared by many, a runtime by those of a repository, and the empty layer, which
    builders make of each step that writes nothing, by every other image.
    """
    numbers = random.Random(seed)
    systems = [_layer(numbers) for _ in range(SYSTEMS)]
    empty = Thing(b"\x1f\x8b an empty layer")
    count = 0
    while True:
        repository = f"team-{seed}-{count // 10}/service-{count:05d}"
        runtime = (numbers.choice(systems), _layer(numbers))
        for n in range(IMAGES_IN_A_REPOSITORY):
            own = [_layer(numbers) for _ in range(numbers.randint(3, 6))]
            yield _image(numbers, repository, f"v1.{n}", [*runtime, *own, *([empty] if n % 2 else [])])
        count += 1


def _layer(numbers: random.Random) -> Thing:
    return Thing(b"\x1f\x8b" + numbers.randbytes(numbers.randint(100, 400)))


def _descriptor(thing: Thing, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": thing.digest, "size": len(thing.data)}


def _image(numbers: random.Random, repository: str, tag: str, layers: list[Thing]) -> Image:
    config = Thing(json.dumps({"architecture": "amd64", "os": "linux", "id": numbers.randbytes(32).hex()}).encode())
    content = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor(config, CONFIG_TYPE),
        "layers": [_descriptor(layer, LAYER_TYPE) for layer in layers],
    }
    needs = tuple(thing.digest for thing in (config, *layers))
    manifest = Thing(json.dumps(content).encode(), OCI_MANIFEST, needs=needs)
    listed: list[dict[str, object]] = []
    for system in PLATFORMS:
        digest = manifest.digest if system == "amd64" else f"sha256:{numbers.randbytes(32).hex()}"
        platform = {"architecture": system, "os": "linux"}
        listed.append({"mediaType": OCI_MANIFEST, "digest": digest, "size": 1000, "platform": platform})
    for _ in PLATFORMS:
        digest = f"sha256:{numbers.randbytes(32).hex()}"
        platform = {"architecture": "unknown", "os": "unknown"}
        listed.append({"mediaType": OCI_MANIFEST, "digest": digest, "size": 800, "platform": platform})
    data = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}).encode()
    index = Thing(data, OCI_INDEX, needs=tuple(str(one["digest"]) for one in listed))
    things = (index, manifest, config, *layers)
    for thing in things:
        if (name := f"{REGISTRY}/{repository}") not in thing.within:
            thing.within = [*thing.within, name][-MAX_REPOSITORIES:]
    return Image(repository, tag, things)


def build(directory: Path, objects: int) -> list[Address]:
    """Writes a cache directory with so many objects, as the store leaves it; where each of them is.

    Rows come in no order, as the store writes them.
    """
    blobs = BlobDir(directory)
    directory.mkdir(parents=True)
    blobs.prepare()
    things, tags, ages = _collect(objects)
    rows: list[tuple[str, Row]] = []
    now = time.time()
    for digest, thing in things.items():
        path = Path(blobs.path(digest))
        path.write_bytes(thing.data)
        used, stamp = now - ages[digest], path.stat().st_mtime_ns
        stored = Stored(digest, len(thing.data), thing.media_type, used, tuple(thing.within), used, 1, stamp, thing.needs)
        rows.append((f"o:{digest}", write_stored(stored) | {"needs": list(thing.needs)}))
    for name, index in tags.items():
        variants = [TagVariant(asked, index.digest, OCI_INDEX, len(index.data), now) for asked in ASKED]
        rows.append((f"t:{name}", write_variants(variants)))
    random.Random(2).shuffle(rows)
    _write(directory / "index", rows)
    return [_address(digest, thing) for digest, thing in things.items()]


def _collect(objects: int) -> tuple[dict[str, Thing], dict[str, Thing], dict[str, float]]:
    """Objects, tags, and how long ago (seconds) each object was used."""
    things: dict[str, Thing] = {}
    tags: dict[str, Thing] = {}
    ages: dict[str, float] = {}
    numbers = random.Random(3)
    for image in images():
        if len(things) >= objects:
            break
        age = numbers.uniform(60, 90 * 86400)
        for thing in image.things:
            digest = thing.digest
            things[digest] = thing
            ages[digest] = min(age, ages.get(digest, age))
        tags[f"{REGISTRY}/{image.repository}:{image.tag}"] = image.index
    return things, tags, ages


def _write(directory: Path, rows: Sequence[tuple[str, Row]]) -> None:
    index = Index(directory)
    try:
        if not index.open():
            raise RuntimeError(f"{directory} cannot be written")
        for at in range(0, len(rows), _PAGE):
            if not index.write(rows[at : at + _PAGE]):
                raise RuntimeError(f"{directory} cannot be written")
    finally:
        index.close()


def _address(digest: str, thing: Thing) -> Address:
    registry, _, repository = thing.within[-1].partition("/")
    kind = "manifests" if thing.media_type else "blobs"
    return Address(digest, len(thing.data), f"/v2/{repository}/{kind}/{digest}?ns={registry}")
