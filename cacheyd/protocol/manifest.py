"""What a manifest or an index refers to, and which entries of an index are for a platform.

Sources: OCI image-spec ("Descriptors", "Image Index", "Image Manifest") and containerd's matching of platforms
(https://github.com/containerd/platforms).
"""

import base64
import json
import platform
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from cacheyd.protocol.reference import (
    DIGEST,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    OCTET_STREAM,
    SCHEMA_1,
    SCHEMA_1_SIGNED,
    Kind,
)

_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm/v7",
    "armv7l": "arm/v7",
    "armv6l": "arm/v6",
    "armel": "arm/v6",
    "i386": "386",
    "i686": "386",
    "loongarch64": "loong64",
}
# What a JSON object may have in it (objects, lists, members, escapes): index and manifest, 1,024 entries each, have 20,000.
# 50,000 take 15 ms.
MAX_VALUES, MAX_DIGITS = 50_000, 40
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*")
_DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
# Manifests with `blobs`, of the release candidates of image-spec 1.1 and of ORAS; they have no schemaVersion.
ARTIFACTS = frozenset({"application/vnd.oci.artifact.manifest.v1+json", "application/vnd.cncf.oras.artifact.manifest.v1+json"})
_INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
_MANIFESTS = _INDEXES | ARTIFACTS | {DOCKER_MANIFEST, OCI_MANIFEST, SCHEMA_1, SCHEMA_1_SIGNED}
# What is a blob wherever it is listed: BuildKit's caches are indexes of layers with a config of its own.
_BLOBS = (
    "application/vnd.oci.image.layer.",
    "application/vnd.oci.image.config.",
    "application/vnd.oci.empty.",
    "application/vnd.docker.image.rootfs.",
    "application/vnd.docker.container.image.",
    "application/vnd.buildkit.cacheconfig.",
)
# BuildKit's provenance and SBOM manifests say so, and of which manifest they are.
ATTESTATION, ATTESTED = "vnd.docker.reference.type", "vnd.docker.reference.digest"
# Types that say nothing of what it is.
NO_TYPES = frozenset({"application/json", OCTET_STREAM})
_PART = re.compile(r"[A-Za-z0-9_.-]+")
# The variant that is meant where none is said.
_DEFAULT_VARIANT = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


@dataclass(frozen=True, slots=True)
class Platform:
    """Operating system and architecture, with the variant that this stands for written out."""

    system: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        shown = "" if self.variant == _DEFAULT_VARIANT.get(self.architecture) else self.variant
        return "/".join(part for part in (self.system, self.architecture, shown) if part)

    def rank(self, other: "Platform") -> int:
        """How well what was built for `other` suits this platform: 0 not at all, the higher the better.

        A processor also runs what was built for an earlier variant of it.
        """
        if (self.system, self.architecture) != (other.system, other.architecture):
            return 0
        mine, theirs = _level(self.variant), _level(other.variant)
        if mine is None or theirs is None:
            return int(self.variant == other.variant)
        return theirs if theirs <= mine else 0


def _level(variant: str) -> int | None:
    match = re.fullmatch(r"v(\d{1,3})(?:\.\d+)?", variant)
    return int(match[1]) + 1 if match else None


def _platform(system: str, architecture: str, variant: str) -> Platform:
    architecture, _, implied = _ARCHITECTURES.get(architecture.lower(), architecture.lower()).partition("/")
    variant = variant.lower() or implied
    if variant.isdigit():
        variant = f"v{variant}"
    return Platform(system.lower(), architecture, variant or _DEFAULT_VARIANT.get(architecture, ""))


def parse_platform(text: str) -> Platform:
    """A platform from `linux/arm64` or `linux/arm/v7`. Raises ValueError."""
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(_PART.fullmatch(part) for part in parts):
        raise ValueError(f"{text!r} is not a platform: it must be os/arch or os/arch/variant, like linux/arm64")
    return _platform(parts[0], parts[1], parts[2] if len(parts) > 2 else "")


def own_platform() -> Platform:
    """linux on this machine's architecture."""
    return _platform("linux", platform.machine() or "amd64", "")


_UNKNOWN = Platform("unknown", "unknown")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What one object refers to another by. `foreign` says that the registry need not have it.

    `attests` is the digest of the manifest that an attestation of BuildKit is about; empty for all others.
    """

    digest: str
    size: int
    media_type: str
    platform: Platform | None = None
    foreign: bool = False
    attests: str = ""

    @property
    def kind(self) -> Kind | None:
        """Whether it is a manifest or a blob, by its media type; None if that does not tell."""
        return kind_of(self.media_type)


def kind_of(media_type: str) -> Kind | None:
    """Whether this is the type of manifests or of blobs; None if it does not tell."""
    name = media_type.partition(";")[0].strip().lower()
    if name in _MANIFESTS:
        return Kind.MANIFEST
    return Kind.BLOB if name.startswith(_BLOBS) else None


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
    if not parts and media_type not in _MANIFESTS:
        raise ValueError("neither a manifest nor an index")
    return Manifest(not parts and media_type in _INDEXES, tuple(parse_descriptor(item, "") for item in parts))


def _entries(items: list[object]) -> tuple[Descriptor, ...]:
    """The entries of an index. Where none names a real platform, `unknown` ones are for every platform."""
    entries = tuple(parse_descriptor(item, "") for item in items)
    if any(entry.platform not in (None, _UNKNOWN) for entry in entries):
        return entries
    return tuple(entry if entry.attests else replace(entry, platform=None) for entry in entries)


def parse_object(data: bytes | bytearray) -> dict[str, Any]:
    """A JSON object. Raises ValueError, also for one that would take long: the parser lets no other thread run."""
    # What the parser's time and memory grow with; counting is a hundredth of it.
    if sum(map(data.count, (b"{", b"[", b",", b"\\"))) > MAX_VALUES:
        raise ValueError("not looked into: too much in one JSON object")
    try:
        content = json.loads(data, parse_int=_integer, parse_float=_fraction)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def _integer(text: str) -> int:
    # Long ones take quadratic time.
    if len(text) > MAX_DIGITS:
        raise ValueError("too many digits")
    return int(text)


def _fraction(text: str) -> float:
    if len(text) > MAX_DIGITS:
        raise ValueError("too many digits")
    return float(text)


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
    return DOCKER_MANIFEST if config.get("mediaType") == _DOCKER_CONFIG else OCI_MANIFEST


def kept_type(content: dict[str, Any]) -> str:
    """The media type of what is kept as a manifest: the second schema, and artifacts, which have none; empty for others."""
    schema = content.get("schemaVersion")
    whole = schema == 2 or (schema is None and content.get("mediaType") in ARTIFACTS)
    return media_type_of(content) if whole else ""


def is_manifest(data: bytes) -> bool:
    """Whether bytes are a manifest, where the type that they are listed by does not tell."""
    try:
        return bool(kept_type(parse_object(data)))
    except ValueError:
        return False


def is_media_type(value: object) -> TypeGuard[str]:
    """Whether this is a media type by its form (RFC 6838 section 4.2), and not too long to be kept by the thousand."""
    return isinstance(value, str) and len(value) <= 127 and _MEDIA_TYPE.fullmatch(value) is not None


def signed_payload(data: bytes | bytearray) -> bytes | None:
    """What the digest of a signed manifest of the first schema is over: all but its signatures; None if it is none.

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


def parse_descriptor(item: object, media_type: str = OCI_INDEX) -> Descriptor:
    """A descriptor; `media_type` is for one that has none. Raises ValueError."""
    fields = item if isinstance(item, dict) else {}
    digest, size, stated = fields.get("digest"), fields.get("size"), fields.get("mediaType") or media_type
    if not (isinstance(digest, str) and DIGEST.fullmatch(digest) and isinstance(stated, str)):
        raise ValueError("a descriptor without a digest that can be checked")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"the descriptor of {digest} has no size")
    foreign = bool(fields.get("urls")) or ".nondistributable." in stated or ".foreign." in stated
    return Descriptor(digest, size, stated, _platform_of(fields.get("platform")), foreign, _attested(fields))


def _attested(fields: dict[str, Any]) -> str:
    annotations = fields.get("annotations")
    if not isinstance(annotations, dict) or ATTESTATION not in annotations:
        return ""
    digest = annotations.get(ATTESTED)
    return digest if isinstance(digest, str) and DIGEST.fullmatch(digest) else "unknown"


def _platform_of(fields: object) -> Platform | None:
    if not isinstance(fields, dict):
        return None
    system, architecture, variant = (fields.get(name, "") for name in ("os", "architecture", "variant"))
    if not (isinstance(system, str) and isinstance(architecture, str) and isinstance(variant, str) and system):
        return None
    return _platform(system, architecture, variant)


def select(entries: Iterable[Descriptor], wanted: Collection[Platform] | None, *, attested: bool = False) -> list[Descriptor]:
    """The entries of an index for these platforms (None: all); those that say no platform are for every one.

    For each platform the best that it runs. Attestations (`unknown/unknown`) are for none; with `attested`, those about what
    is chosen are chosen, too.
    """
    entries = list(entries)
    if wanted is None:
        return entries
    chosen = {entry for entry in entries if entry.platform is None and not entry.attests}
    for one in wanted:
        best = max((one.rank(entry.platform) for entry in entries if entry.platform), default=0)
        chosen |= {entry for entry in entries if best and entry.platform and one.rank(entry.platform) == best}
    about = {entry.digest for entry in chosen} if attested else set()
    return [entry for entry in entries if entry in chosen or entry.attests in about]


def unmet(wanted: Collection[Platform] | None, chosen: Collection[Descriptor]) -> list[Platform]:
    """The platforms that nothing among the chosen entries is for."""
    platforms = [entry.platform for entry in chosen]
    return [one for one in wanted or () if not any(other is None or one.rank(other) for other in platforms)]
