"""Media types of manifests, indexes and blobs, and the kind that each implies (image-spec, "Media Types")."""

import re
from typing import TypeGuard

from cacheyd.protocol.reference import Kind

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCTET_STREAM = "application/octet-stream"
# The first manifest schema, plain and signed: no registry serves it any more, but some clients still name it.
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+json"
SCHEMA_1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*")
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
# Manifests with `blobs`, from the release candidates of image-spec 1.1 and from ORAS; they have no schemaVersion.
ARTIFACTS = frozenset({"application/vnd.oci.artifact.manifest.v1+json", "application/vnd.cncf.oras.artifact.manifest.v1+json"})
INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFESTS = INDEXES | ARTIFACTS | {DOCKER_MANIFEST, OCI_MANIFEST, SCHEMA_1, SCHEMA_1_SIGNED}
# The beginnings of media types of blobs, also in an index: BuildKit's caches are indexes of layers with BuildKit's own config.
_BLOBS = (
    "application/vnd.oci.image.layer.",
    "application/vnd.oci.image.config.",
    "application/vnd.oci.empty.",
    "application/vnd.docker.image.rootfs.",
    "application/vnd.docker.container.image.",
    "application/vnd.buildkit.cacheconfig.",
)
# Media types that do not tell whether an object is a manifest or a blob.
NO_TYPES = frozenset({"application/json", OCTET_STREAM})


def kind_of(media_type: str) -> Kind | None:
    """The kind of objects with this media type, manifest or blob; None if the media type does not tell."""
    name = media_type.partition(";")[0].strip().lower()
    if name in MANIFESTS:
        return Kind.MANIFEST
    return Kind.BLOB if name.startswith(_BLOBS) else None


def is_media_type(value: object) -> TypeGuard[str]:
    """Whether the value has the form of a media type (RFC 6838 section 4.2) and at most 127 characters: cacheyd keeps
    thousands of them.
    """
    return isinstance(value, str) and len(value) <= 127 and _MEDIA_TYPE.fullmatch(value) is not None
