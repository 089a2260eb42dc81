"""Descriptors, by which one object refers to another, and the choice of an index's entries for a platform.

Source: OCI image-spec ("Descriptors", "Image Index").
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from cacheyd.protocol.digest import DIGEST
from cacheyd.protocol.media_types import OCI_INDEX, kind_of
from cacheyd.protocol.platforms import Platform, normal_platform
from cacheyd.protocol.reference import Kind

# Annotations of BuildKit's provenance and SBOM manifests: the first marks such a manifest, the second has the digest of the
# manifest that it is about.
ATTESTATION, ATTESTED = "vnd.docker.reference.type", "vnd.docker.reference.digest"
UNKNOWN = Platform("unknown", "unknown")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference from one object to another; `size` is in bytes. `foreign`: the registry does not need to have the object.

    `attests` is the digest of the manifest that a BuildKit attestation is about; empty for all other objects.
    """

    digest: str
    size: int
    media_type: str
    platform: Platform | None = None
    foreign: bool = False
    attests: str = ""

    @property
    def kind(self) -> Kind | None:
        """Manifest or blob, by the media type; None if the media type does not tell."""
        return kind_of(self.media_type)


def parse_descriptor(item: object, media_type: str = OCI_INDEX) -> Descriptor:
    """A descriptor; `media_type` counts if the descriptor has no media type. Raises ValueError."""
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
    return normal_platform(system, architecture, variant)


def select(entries: Iterable[Descriptor], wanted: Collection[Platform] | None, *, attested: bool = False) -> list[Descriptor]:
    """The entries of an index for these platforms (None: all entries). An entry without a platform is for every platform.

    For each platform, chooses the best entry that it runs. Attestations (`unknown/unknown`) are for no platform; with
    `attested`, chooses the attestations of the chosen entries, too.
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
    """The platforms that have no entry among the chosen entries."""
    platforms = [entry.platform for entry in chosen]
    return [one for one in wanted or () if not any(other is None or one.rank(other) for other in platforms)]
