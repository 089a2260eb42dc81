"""Manifests and indexes: their types, and the objects that they refer to (OCI image-spec, "Image Index", "Image Manifest")."""

import base64
from dataclasses import dataclass, replace
from typing import Any

from cacheyd.protocol.bounded_json import parse_object
from cacheyd.protocol.descriptors import UNKNOWN, Descriptor, parse_descriptor
from cacheyd.protocol.media_types import (
    ARTIFACTS,
    DOCKER_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    INDEXES,
    MANIFESTS,
    NO_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    is_media_type,
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The objects that a manifest refers to (config and layers), or that an index refers to (manifests)."""

    is_index: bool
    entries: tuple[Descriptor, ...]


def parse_manifest(data: bytes) -> Manifest:
    """The content of a manifest or index; a list can be `null` or missing. Raises ValueError if it is neither of the two."""
    content = parse_object(data)
    config, lists = content.get("config"), [content.get(name) for name in ("manifests", "layers", "blobs")]
    if any(not isinstance(items, list | None) for items in lists) or not isinstance(config, dict | None):
        raise ValueError("neither a manifest nor an index")
    manifests, *blobs = lists
    if manifests is not None:
        return Manifest(True, _entries(manifests))
    parts = [*([config] if config is not None else []), *(item for items in blobs for item in items or ())]
    media_type = media_type_of(content)
    if not parts and media_type not in MANIFESTS:
        raise ValueError("neither a manifest nor an index")
    return Manifest(not parts and media_type in INDEXES, tuple(parse_descriptor(item, "") for item in parts))


def _entries(items: list[object]) -> tuple[Descriptor, ...]:
    """The entries of an index. If no entry names a real platform, the `unknown` entries are for every platform."""
    entries = tuple(parse_descriptor(item, "") for item in items)
    if any(entry.platform not in (None, UNKNOWN) for entry in entries):
        return entries
    return tuple(entry if entry.attests else replace(entry, platform=None) for entry in entries)


def media_type_of(content: dict[str, Any]) -> str:
    """The media type of a manifest by its content: its `mediaType` (image-spec: optional), else by its shape; else empty."""
    declared = content.get("mediaType")
    if is_media_type(declared) and declared.startswith("application/") and declared not in NO_TYPES:
        return str(declared)
    config, manifests = content.get("config"), content.get("manifests")
    if isinstance(manifests, list):
        docker = [isinstance(item, dict) and item.get("mediaType") == DOCKER_MANIFEST for item in manifests]
        return DOCKER_LIST if docker and all(docker) else OCI_INDEX
    if not isinstance(config, dict):
        if "manifests" in content and manifests is None:
            return OCI_INDEX
        return OCI_MANIFEST if isinstance(content.get("layers"), list) else ""
    # Docker's own manifests should have a mediaType; if there is none, the config tells.
    return DOCKER_MANIFEST if config.get("mediaType") == DOCKER_CONFIG else OCI_MANIFEST


def kept_type(content: dict[str, Any]) -> str:
    """The media type of a manifest that cacheyd keeps: with schema 2, or an artifact, which has no schema; else empty."""
    schema = content.get("schemaVersion")
    whole = schema == 2 or (schema is None and content.get("mediaType") in ARTIFACTS)
    return media_type_of(content) if whole else ""


def is_manifest(data: bytes) -> bool:
    """Whether the bytes are a manifest that cacheyd keeps; for bytes whose listed media type does not tell."""
    try:
        return bool(kept_type(parse_object(data)))
    except ValueError:
        return False


def signed_payload(data: bytes | bytearray) -> bytes | None:
    """The bytes that the digest of a signed schema 1 manifest covers: all except the signatures. None for other manifests.

    https://github.com/distribution/distribution/blob/v2.8.2/docs/spec/manifest-v2-1.md, "Signed Manifests".
    """
    try:
        content = parse_object(data)
        protected = content["signatures"][0]["protected"]
        fields = parse_object(_decode(protected))
        length, tail = fields["formatLength"], _decode(fields["formatTail"])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    if content.get("schemaVersion") != 1 or not isinstance(length, int) or not 0 < length <= len(data):
        return None
    return bytes(data[:length]) + tail


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
