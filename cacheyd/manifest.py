"""What a manifest or an index refers to, and which entries of an index are for a platform.

Sources: OCI image-spec ("Descriptors", "Image Index", "Image Manifest") and containerd's matching of platforms
(https://github.com/containerd/platforms).
"""

import json
import platform
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from cacheyd.reference import DIGEST, OCI_INDEX, OCI_MANIFEST

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


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What one object refers to another by. `foreign` says that the registry need not have it."""

    digest: str
    size: int
    media_type: str
    platform: Platform | None = None
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a manifest or index refers to: config and layers, or the manifests of an index."""

    is_index: bool
    entries: tuple[Descriptor, ...]


def parse_manifest(data: bytes) -> Manifest:
    """A manifest's content. Raises ValueError for what is neither an image's manifest nor an index."""
    content = parse_object(data)
    manifests, layers, config = content.get("manifests"), content.get("layers"), content.get("config")
    if isinstance(manifests, list):
        return Manifest(True, tuple(parse_descriptor(item, OCI_MANIFEST) for item in manifests))
    if isinstance(config, dict) and isinstance(layers, list):
        return Manifest(False, tuple(parse_descriptor(item, "") for item in (config, *layers)))
    raise ValueError("neither the manifest of an image nor an index")


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises ValueError."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def parse_descriptor(item: object, media_type: str = OCI_INDEX) -> Descriptor:
    """A descriptor; `media_type` is for one that has none. Raises ValueError."""
    fields = item if isinstance(item, dict) else {}
    digest, size, stated = fields.get("digest"), fields.get("size"), fields.get("mediaType") or media_type
    if not (isinstance(digest, str) and DIGEST.fullmatch(digest) and isinstance(stated, str)):
        raise ValueError("a descriptor without a digest that can be checked")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"the descriptor of {digest} has no size")
    foreign = bool(fields.get("urls")) or ".nondistributable." in stated or ".foreign." in stated
    return Descriptor(digest, size, stated, _platform_of(fields.get("platform")), foreign)


def _platform_of(fields: object) -> Platform | None:
    if not isinstance(fields, dict):
        return None
    system, architecture, variant = (fields.get(name, "") for name in ("os", "architecture", "variant"))
    if not (isinstance(system, str) and isinstance(architecture, str) and isinstance(variant, str) and system):
        return None
    return _platform(system, architecture, variant)


def select(entries: Iterable[Descriptor], wanted: Collection[Platform] | None) -> list[Descriptor]:
    """The entries of an index for these platforms (None: all); those that say no platform are for every one.

    For each platform the best that it runs; attestations (`unknown/unknown`) are for none.
    """
    entries = list(entries)
    if wanted is None:
        return entries
    chosen = {entry for entry in entries if entry.platform is None}
    for one in wanted:
        best = max((one.rank(entry.platform) for entry in entries if entry.platform), default=0)
        chosen |= {entry for entry in entries if best and entry.platform and one.rank(entry.platform) == best}
    return [entry for entry in entries if entry in chosen]


def unmet(wanted: Collection[Platform] | None, chosen: Collection[Descriptor]) -> list[Platform]:
    """The platforms that nothing among the chosen entries is for."""
    platforms = [entry.platform for entry in chosen]
    return [one for one in wanted or () if not any(other is None or one.rank(other) for other in platforms)]
