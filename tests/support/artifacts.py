"""Artifacts as tools push them to registries besides images: BuildKit's caches, charts, signatures, SBOMs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.support.images import OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Blob, digest_of, random_bytes
from tests.support.origin import Origin

CACHE_CONFIG = "application/vnd.buildkit.cacheconfig.v0"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = Blob(b"{}")
ARTIFACT_MANIFEST = "application/vnd.oci.artifact.manifest.v1+json"


@dataclass(frozen=True)
class Artifact:
    """A manifest or index, and the blobs that it refers to directly."""

    manifest: bytes
    media_type: str
    blobs: tuple[Blob, ...] = ()

    @cached_property
    def digest(self) -> str:
        return digest_of(self.manifest)

    @property
    def digests(self) -> set[str]:
        return {self.digest, *(blob.digest for blob in self.blobs)}

    @property
    def objects(self) -> dict[str, bytes]:
        return {self.digest: self.manifest, **{blob.digest: blob.data for blob in self.blobs}}

    def push(self, origin: Origin, repo: str, reference: str = "") -> Artifact:
        """Pushes the artifact to a registry, under a tag or only by its digest."""
        for blob in self.blobs:
            origin.add_blob(repo, blob.data)
        origin.add_manifest(repo, reference or self.digest, self.manifest, self.media_type)
        return self


def descriptor(media_type: str | None, data: bytes, /, **more: Any) -> dict[str, Any]:
    """A descriptor of `data`; without a media type if `media_type` is None."""
    typed = {} if media_type is None else {"mediaType": media_type}
    return {**typed, "digest": digest_of(data), "size": len(data), **more}


def encoded(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def buildkit_cache(seed: int, *, layers: int = 2, layer_type: str | None = f"{OCI_LAYER}+gzip") -> Artifact:
    """A cache as BuildKit pushes it with `--cache-to type=registry,image-manifest=false`: an index of layers and a config."""
    blobs = [Blob(random_bytes(3000, seed * 31 + n)) for n in range(layers)]
    config = Blob(encoded({"layers": [{"blob": blob.digest, "parent": -1} for blob in blobs], "records": [{"seed": seed}]}))
    notes = {"buildkit/createdat": "2026-11-01T00:00:00Z", "containerd.io/uncompressed": digest_of(b"raw")}
    entries = [descriptor(layer_type, blob.data, annotations=notes) for blob in blobs]
    entries.append(descriptor(CACHE_CONFIG if layer_type else None, config.data))
    index = encoded({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    return Artifact(index, OCI_INDEX, (*blobs, config))


def artifact(seed: int, subject: bytes | None = None, *, size: int = 500, **changes: Any) -> Artifact:
    """An artifact as ORAS, cosign and Helm push it: an empty config, one layer, perhaps a subject. None removes a member."""
    blob = Blob(random_bytes(size, 77_000 + seed))
    content: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.acme.sbom.v1",
        "config": descriptor(EMPTY_TYPE, EMPTY.data, data="e30="),
        "layers": [descriptor("application/spdx+json", blob.data)],
        **changes,
    }
    if subject is not None:
        content["subject"] = descriptor(OCI_MANIFEST, subject)
    content = {name: value for name, value in content.items() if value is not None}
    used = json.dumps(content)
    return Artifact(
        encoded(content), str(content.get("mediaType", OCI_MANIFEST)), tuple(b for b in (EMPTY, blob) if b.digest in used)
    )


def listing(*artifacts: Artifact) -> Artifact:
    """An index of these artifacts, as the fallback tag `sha256-<hex>` has it."""
    entries = [descriptor(one.media_type, one.manifest) for one in artifacts]
    return Artifact(encoded({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}), OCI_INDEX)


def tag_of(digest: str, suffix: str = "") -> str:
    """The tag of cosign beside an image with this digest."""
    return f"{digest.replace(':', '-')}{suffix}"
