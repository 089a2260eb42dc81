"""Parses names of images, as people and containerd write them."""

import re
from dataclasses import dataclass

from cacheyd.protocol.digest import DIGEST
from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.reference import MAX_NAME, NAME, TAG, Kind, Reference
from cacheyd.protocol.registries import DOCKER_HUB, canonical_registry, has_registry

# A digest, or the beginning of a digest, as tools show it. Docker does not accept it as a name, either.
_BARE_DIGEST = re.compile(r"sha(?:256|512):[a-f0-9]{12,128}")


@dataclass(frozen=True, slots=True)
class ImageName:
    """The name of an image: `docker.io/library/alpine:3.22`, `ghcr.io/acme/app@sha256:…`.

    If there are both a tag and a digest, the digest decides.
    """

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Registry and repository in one text, as the store records them for objects and tags."""
        return f"{self.registry}/{self.repository}"

    @property
    def reference(self) -> str:
        """The digest or tag with which to ask for the manifest."""
        return self.digest or self.tag

    def __str__(self) -> str:
        tag, digest = (f":{self.tag}" if self.tag else ""), (f"@{self.digest}" if self.digest else "")
        return f"{self.name}{tag}{digest}"

    def part(self, kind: Kind, reference: str, ns: str = "") -> Reference:
        """The reference of a manifest or blob in this repository."""
        digest = reference if DIGEST.fullmatch(reference) else None
        return Reference(self.registry, self.repository, kind, reference, digest, ns)


def parse_image(name: str, *, default_tag: str = "latest") -> ImageName:
    """The image that a name means for docker: `alpine` is `docker.io/library/alpine:latest`. Raises ValueError."""
    if _BARE_DIGEST.fullmatch(name):
        raise ValueError(f"{name!r} is a digest without a name; an image is named like ghcr.io/acme/app@{name}")
    rest, at, digest = name.partition("@")
    first, _, path = rest.partition("/")
    named = has_registry(rest)
    try:
        registry = canonical_registry(first) if named else DOCKER_HUB
    except RequestError:
        raise ValueError(f"{name!r} does not begin with a registry: it must be host or host:port") from None
    repository, colon, tag = (path if named else rest).partition(":")
    if registry == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    if len(repository) > MAX_NAME or not NAME.fullmatch(repository):
        raise ValueError(f"{name!r} is not the name of an image (lower case, like ghcr.io/acme/app:1.0)")
    if colon and not TAG.fullmatch(tag):
        raise ValueError(f"{name!r}: no tag can be {tag!r}")
    if at and not DIGEST.fullmatch(digest):
        raise ValueError(f"{name!r}: the digest is not one (sha256: and 64 hexadecimal digits)")
    return ImageName(registry, repository, tag or ("" if at else default_tag), digest)
