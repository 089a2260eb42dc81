"""Makes OCI content in memory: real images, small or large, and a layout directory that skopeo can copy from."""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Blob:
    """Bytes and their digest."""

    data: bytes

    @cached_property
    def digest(self) -> str:
        return digest_of(self.data)


@dataclass(frozen=True)
class Image:
    """The image of one platform: `manifest` names `config` and `layers` (OCI image-spec, manifest.md)."""

    config: Blob
    layers: tuple[Blob, ...]
    manifest: bytes
    media_type: str
    platform: str

    @cached_property
    def digest(self) -> str:
        return digest_of(self.manifest)

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """The config, then the layers: the blobs that a pull fetches."""
        return (self.config, *self.layers)


@dataclass(frozen=True)
class Index:
    """An image for several platforms. A platform is written `linux/amd64`."""

    images: tuple[tuple[str, Image], ...]
    manifest: bytes
    media_type: str

    @cached_property
    def digest(self) -> str:
        return digest_of(self.manifest)


def random_bytes(size: int, seed: int) -> bytes:
    """`size` bytes that cannot be compressed; the same seed gives the same bytes. As fast as AES (> 1 GB/s)."""
    key = hashlib.sha256(f"cacheyd test bytes {seed}".encode()).digest()
    cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    zeros = bytes(256 * 1024)
    return b"".join(cipher.update(zeros[: size - at]) for at in range(0, size, len(zeros)))


def make_image(
    *, layers: int = 1, layer_size: int = 2048, seed: int = 0, docker: bool = False, architecture: str = "amd64"
) -> Image:
    """An image that clients can unpack: each layer is a tar archive with one file of `layer_size` bytes.

    OCI layers are plain tar. With `docker`, the media types are Docker's and the layers are gzip. The same arguments give
    the same bytes. Another seed gives other layers; another architecture gives only another config and manifest.
    """
    archives = [_tar(f"layer-{n}.bin", random_bytes(layer_size, seed * 1009 + n)) for n in range(layers)]
    config = Blob(
        _json(
            {
                "architecture": architecture,
                "os": "linux",
                "config": {"Cmd": ["/layer-0.bin"]},
                "rootfs": {"type": "layers", "diff_ids": [digest_of(archive) for archive in archives]},
                "history": [{"created_by": f"cacheyd test layer {n}"} for n in range(layers)],
            }
        )
    )
    blobs = tuple(Blob(gzip.compress(archive, compresslevel=0, mtime=0) if docker else archive) for archive in archives)
    media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": _descriptor(DOCKER_CONFIG if docker else OCI_CONFIG, config),
            "layers": [_descriptor(DOCKER_LAYER if docker else OCI_LAYER, blob) for blob in blobs],
        }
    )
    return Image(config, blobs, manifest, media_type, f"linux/{architecture}")


def make_index(*images: Image) -> Index:
    """An index of these images, in this order. If all of them are Docker's, it is a manifest list of Docker."""
    docker = all(image.media_type == DOCKER_MANIFEST for image in images)
    media_type = DOCKER_LIST if docker else OCI_INDEX
    entries = []
    for image in images:
        system, architecture = image.platform.split("/")
        descriptor = _descriptor(image.media_type, Blob(image.manifest))
        entries.append({**descriptor, "platform": {"architecture": architecture, "os": system}})
    manifest = _json({"schemaVersion": 2, "mediaType": media_type, "manifests": entries})
    return Index(tuple((image.platform, image) for image in images), manifest, media_type)


def write_layout(path: Path, tags: Mapping[str, Image | Index]) -> None:
    """Writes an OCI image layout (image-spec, image-layout.md) at `path`, for `skopeo copy --all oci:path:tag …`.

    Use OCI images here: skopeo's `oci:` transport does not accept Docker media types.
    """
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (path / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    roots = []
    for tag, content in tags.items():
        for blob in _all_blobs(content):
            (blobs / blob.digest.removeprefix("sha256:")).write_bytes(blob.data)
        descriptor = _descriptor(content.media_type, Blob(content.manifest))
        roots.append({**descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}})
    (path / "index.json").write_bytes(_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": roots}))


def _all_blobs(content: Image | Index) -> Iterator[Blob]:
    if isinstance(content, Index):
        for _, image in content.images:
            yield from _all_blobs(image)
    else:
        yield from content.blobs
    yield Blob(content.manifest)


def _descriptor(media_type: str, blob: Blob) -> dict[str, object]:
    return {"mediaType": media_type, "digest": blob.digest, "size": len(blob.data)}


def _tar(name: str, data: bytes) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    padding = -len(data) % tarfile.BLOCKSIZE
    return b"".join((entry.tobuf(tarfile.USTAR_FORMAT), data, bytes(padding + 2 * tarfile.BLOCKSIZE)))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
