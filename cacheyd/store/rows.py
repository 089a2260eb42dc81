"""What the index's rows mean, and what manifests refer to."""

import json
from dataclasses import dataclass
from typing import Any

from cacheyd.reference import DIGEST, OCI_INDEX, OCI_MANIFEST, Kind
from cacheyd.store.index import Row

MAX_VARIANTS = 8


@dataclass(frozen=True, slots=True)
class Stored:
    """A verified object on disk. `media_type` is empty for blobs; `created` and `used` are in seconds since the epoch.

    `within` names the repositories (`registry/repository`) that upstream served it in, the last ones.
    """

    digest: str
    size: int
    media_type: str
    created: float
    within: tuple[str, ...] = ()
    used: float = 0.0

    @property
    def kind(self) -> Kind:
        """Manifest if it was stored with a media type."""
        return Kind.MANIFEST if self.media_type else Kind.BLOB


@dataclass(frozen=True, slots=True)
class TagVariant:
    """What a tag meant when upstream was last asked with these media types in Accept (`asked`)."""

    asked: frozenset[str]
    digest: str
    media_type: str
    size: int
    checked: float


def read_stored(digest: str, row: Row) -> Stored | None:
    """An object's row; None if it is not one."""
    try:
        created = float(row["at"])
        return Stored(
            digest, int(row["size"]), str(row["type"]), created, tuple(row.get("in", ())), float(row.get("used", created))
        )
    except (KeyError, TypeError, ValueError):
        return None


def write_stored(stored: Stored) -> Row:
    """The row of an object."""
    return {
        "size": stored.size,
        "type": stored.media_type,
        "at": stored.created,
        "in": list(stored.within),
        "used": stored.used or stored.created,
    }


def read_variants(row: Row) -> list[TagVariant]:
    """A tag's row; empty if it is not one."""
    try:
        return [
            TagVariant(frozenset(v["asked"]), str(v["digest"]), str(v["type"]), int(v["size"]), float(v["at"]))
            for v in row["variants"]
        ]
    except (KeyError, TypeError, ValueError):
        return []


def write_variants(variants: list[TagVariant]) -> Row:
    """The row of a tag, with its newest variants."""
    return {
        "variants": [
            {"asked": sorted(v.asked), "digest": v.digest, "type": v.media_type, "size": v.size, "at": v.checked}
            for v in variants[:MAX_VARIANTS]
        ]
    }


def _content(data: bytes | None) -> dict[str, Any]:
    if not data or data.lstrip()[:1] != b"{":
        return {}
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def guess_media_type(data: bytes | None) -> str:
    """What a manifest is by its content (image-spec: `mediaType` is optional); empty if it is not a manifest."""
    content = _content(data)
    if content.get("schemaVersion") != 2:
        return ""
    declared = content.get("mediaType")
    if isinstance(declared, str) and declared.isprintable() and "/" in declared:
        return declared
    if isinstance(content.get("manifests"), list):
        return OCI_INDEX
    return OCI_MANIFEST if isinstance(content.get("config"), dict) else ""


def children(data: bytes | None) -> list[str]:
    """The digests that a manifest or index refers to (image-spec, "Descriptors")."""
    content = _content(data)
    found = [content.get("config"), content.get("subject")]
    for name in ("layers", "manifests", "blobs"):
        items = content.get(name)
        found += items if isinstance(items, list) else []
    digests = [item.get("digest") for item in found if isinstance(item, dict)]
    return [digest for digest in digests if isinstance(digest, str) and DIGEST.fullmatch(digest)]
