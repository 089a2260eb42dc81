"""Platforms: how to write them, and which platform runs the images of another.

Source: containerd's matching of platforms (https://github.com/containerd/platforms).
"""

import platform
import re
from dataclasses import dataclass

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
# The variant of an architecture that is written without a variant.
_DEFAULT_VARIANT = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


@dataclass(frozen=True, slots=True)
class Platform:
    """Operating system, architecture and variant; a default variant is written out."""

    system: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        shown = "" if self.variant == _DEFAULT_VARIANT.get(self.architecture) else self.variant
        return "/".join(part for part in (self.system, self.architecture, shown) if part)

    def rank(self, other: "Platform") -> int:
        """How well an image for `other` suits this platform: 0 means not at all, a higher number is better.

        A processor also runs images for an earlier variant of its architecture.
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


def normal_platform(system: str, architecture: str, variant: str) -> Platform:
    """A platform with Go's spelling, from the names that people and manifests use (`x86_64`, `aarch64`)."""
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
    return normal_platform(parts[0], parts[1], parts[2] if len(parts) > 2 else "")


def own_platform() -> Platform:
    """The platform of this machine: linux on its architecture."""
    return normal_platform("linux", platform.machine() or "amd64", "")
