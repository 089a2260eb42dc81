"""What a manifest's bytes say of themselves, as far as a store has to know it; in bounds, for bytes that anybody sent."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cacheyd.protocol.bounded_json import parse_object
from cacheyd.protocol.digest import DIGEST
from cacheyd.protocol.manifest import kept_type
from cacheyd.protocol.media_types import kind_of
from cacheyd.protocol.reference import Kind

# A manifest that refers to more than this is not looked into (real ones have tens): it would fill the memory.
MAX_CHILDREN = 1024


@dataclass(frozen=True, slots=True)
class Description:
    """What an object's bytes say of it: the media type of a manifest (empty if it is none that is kept), and what it needs.

    `blobs` are those of an index's entries that are blobs by their media type: it needs them as a manifest its layers.
    """

    media_type: str = ""
    needs: tuple[str, ...] = ()
    schema: int = 2
    blobs: tuple[str, ...] = ()


def describe(data: bytes | bytearray | None) -> Description:
    """Looks into what may be a manifest, whatever somebody says that it is. Up to 20 ms for the worst."""
    if not data or bytes(data[:4096]).lstrip()[:1] != b"{":
        return Description()
    try:
        content = parse_object(data)
    except ValueError:
        return Description()
    if content.get("schemaVersion") == 1:
        return Description(schema=1)
    needs = _needed(content)
    return Description(kept_type(content), needs, blobs=_listed_blobs(content) if needs else ())


def _needed(content: dict[str, Any]) -> tuple[str, ...]:
    found = [content.get("config")]
    for name in ("layers", "manifests", "blobs"):
        items = content.get(name)
        found += items if isinstance(items, list) else []
    right = _digests(found)
    return right if len(right) <= MAX_CHILDREN else ()


def _digests(found: Iterable[object]) -> tuple[str, ...]:
    digests = [item.get("digest") for item in found if isinstance(item, dict)]
    return tuple(dict.fromkeys(digest for digest in digests if isinstance(digest, str) and DIGEST.fullmatch(digest)))


def _listed_blobs(content: dict[str, Any]) -> tuple[str, ...]:
    items = content.get("manifests")
    return _digests(item for item in items if _is_blob(item)) if isinstance(items, list) else ()


def _is_blob(item: object) -> bool:
    media_type = item.get("mediaType") if isinstance(item, dict) else None
    return isinstance(media_type, str) and kind_of(media_type) is Kind.BLOB


def guess_media_type(data: bytes | None) -> str:
    """What a manifest is by its content; empty if it is not a manifest."""
    return describe(data).media_type


def children(data: bytes | None) -> list[str]:
    """The digests that a manifest or index needs, each once (image-spec, "Descriptors"); none for absurdly many."""
    return list(describe(data).needs)
