"""Manifests and indexes: what they are, and what they refer to (OCI image-spec, "Image Index", "Image Manifest")."""

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
    """What a manifest or index refers to: config and layers, or the manifests of an index."""

    is_index: bool
    entries: tuple[Descriptor, ...]


def parse_manifest(data: bytes) -> Manifest:
    """A manifest's content; a list may be `null` or left out. Raises ValueError for what is no manifest and no index."""
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
    """The entries of an index. Where none names a real platform, `unknown` ones are for every platform."""
    entries = tuple(parse_descriptor(item, "") for item in items)
    if any(entry.platform not in (None, UNKNOWN) for entry in entries):
        return entries
    return tuple(entry if entry.attests else replace(entry, platform=None) for entry in entries)


def media_type_of(content: dict[str, Any]) -> str:
    """What a manifest is by its own content: its `mediaType` (image-spec: optional), else its shape; empty if it is none."""
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
    # Docker's own manifests are to have a mediaType; of one that has none, the config tells.
    return DOCKER_MANIFEST if config.get("mediaType") == DOCKER_CONFIG else OCI_MANIFEST


def kept_type(content: dict[str, Any]) -> str:
    """The media type of a manifest that may be kept: of the second schema, or an artifact, which has none; else empty."""
    schema = content.get("schemaVersion")
    whole = schema == 2 or (schema is None and content.get("mediaType") in ARTIFACTS)
    return media_type_of(content) if whole else ""


def is_manifest(data: bytes) -> bool:
    """Whether bytes are a manifest, where the type that they are listed by does not tell."""
    try:
        return bool(kept_type(parse_object(data)))
    except ValueError:
        return False


def signed_payload(data: bytes | bytearray) -> bytes | None:
    """The bytes that the digest of a signed manifest of the first schema covers: all but its signatures. None for others.

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
