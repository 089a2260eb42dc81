"""What the tests in this folder have in common: a registry with images, and tables that point at it."""

import json
from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tests.real.containerd import write_hosts
from tests.real.registry import Access, Cdn, DockerRegistry
from tests.real.skopeo import push
from tests.real.token_service import TokenService
from tests.support.images import Image, Index, make_image, make_index, write_layout

# The port makes containerd percent-encode ns; a name in a path (skopeo) cannot have one.
REGISTRY = "registry.test:5000"
SHORT_REGISTRY = "registry.test"
_SEEDS = count(1000, 2)


def registry_table(name: str, upstream: str, ca_file: Path | None = None) -> str:
    """cacheyd's configuration of one registry."""
    lines = [f"[registries.{json.dumps(name)}]", f"upstream = {json.dumps(upstream)}"]
    if ca_file:
        lines.append(f"ca_file = {json.dumps(str(ca_file))}")
    return "\n".join(lines) + "\n"


def new_image(*, layers: int = 3, layer_size: int = 200_000) -> Index:
    """A multi-arch image (amd64, arm64) that no other test has."""
    seed = next(_SEEDS)
    amd64 = make_image(layers=layers, layer_size=layer_size, seed=seed)
    return make_index(amd64, make_image(layers=layers, layer_size=layer_size, seed=seed + 1, architecture="arm64"))


def image_for(index: Index, platform: str) -> Image:
    return dict(index.images)[platform]


def contents(index: Index, *platforms: str) -> set[str]:
    """The digests of all that a pull of these platforms (default: all) fetches."""
    images = [image for platform, image in index.images if not platforms or platform in platforms]
    blobs = {blob.digest for image in images for blob in image.blobs}
    return blobs | {image.digest for image in images} | {index.digest}


@dataclass(frozen=True, slots=True)
class Lab:
    """A registry, with what belongs to it."""

    registry: DockerRegistry
    cdn: Cdn | None
    tokens: TokenService | None
    ca_file: Path

    def publish(self, directory: Path, repository: str, tag: str = "1.0", content: Index | None = None) -> Index:
        """Pushes `content` (default: a new multi-arch image) as `repository:tag`."""
        content = content or new_image()
        layout = directory / f"layout-{content.digest[-8:]}"
        write_layout(layout, {tag: content})
        creds = self.tokens.creds if self.tokens else None
        push(layout, tag, f"{self.registry.host}/{repository}:{tag}", creds)
        return content

    def reads(self, repository: str) -> list[Access]:
        """GETs and HEADs in this repository, pushes and requests without a valid token not counted."""
        requests = self.registry.requests(f"{repository}/")
        return [access for access in requests if access.method in ("GET", "HEAD") and access.status in (200, 206, 307)]

    def downloads(self, repository: str) -> Counter[str]:
        """How often each digest (or tag) was downloaded; a blob counts where its bytes came from."""
        gets = [access for access in self.reads(repository) if access.method == "GET"]
        return Counter(access.reference for access in gets)

    def hosts(self, directory: Path, mirror: str | None, *, registry: str = REGISTRY) -> Path:
        """A hosts directory: the mirror first, then this registry itself."""
        return write_hosts(directory, registry, mirror, server=self.registry.url, ca=self.ca_file)
