"""Media types of manifests, indexes and blobs, and what they tell (image-spec, "Media Types")."""

import re
from typing import TypeGuard

from cacheyd.protocol.reference import Kind

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCTET_STREAM = "application/octet-stream"
# The first manifest schema, plain and signed: nobody serves it any more, some clients still name it.
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+json"
SCHEMA_1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*")
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
# Manifests with `blobs`, of the release candidates of image-spec 1.1 and of ORAS; they have no schemaVersion.
ARTIFACTS = frozenset({"application/vnd.oci.artifact.manifest.v1+json", "application/vnd.cncf.oras.artifact.manifest.v1+json"})
INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFESTS = INDEXES | ARTIFACTS | {DOCKER_MANIFEST, OCI_MANIFEST, SCHEMA_1, SCHEMA_1_SIGNED}
# What is a blob wherever it is listed: BuildKit's caches are indexes of layers with a config of its own.
_BLOBS = (
    "application/vnd.oci.image.layer.",
    "application/vnd.oci.image.config.",
    "application/vnd.oci.empty.",
    "application/vnd.docker.image.rootfs.",
    "application/vnd.docker.container.image.",
    "application/vnd.buildkit.cacheconfig.",
)
# Types that say nothing of what it is.
NO_TYPES = frozenset({"application/json", OCTET_STREAM})


def kind_of(media_type: str) -> Kind | None:
    """Whether this is the type of manifests or of blobs; None if it does not tell."""
    name = media_type.partition(";")[0].strip().lower()
    if name in MANIFESTS:
        return Kind.MANIFEST
    return Kind.BLOB if name.startswith(_BLOBS) else None


def is_media_type(value: object) -> TypeGuard[str]:
    """Whether this is a media type by its form (RFC 6838 section 4.2), and not too long to be kept by the thousand."""
    return isinstance(value, str) and len(value) <= 127 and _MEDIA_TYPE.fullmatch(value) is not None
