"""Reads from a manifest's bytes the facts that a store needs; within bounds, because an attacker can send the bytes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cacheyd.protocol.bounded_json import parse_object
from cacheyd.protocol.digest import DIGEST
from cacheyd.protocol.manifest import kept_type
from cacheyd.protocol.media_types import kind_of
from cacheyd.protocol.reference import Kind

# The most digests that a manifest can refer to. With more, cacheyd ignores all of them: they would fill the memory. Real
# manifests have tens.
MAX_CHILDREN = 1024


@dataclass(frozen=True, slots=True)
class Description:
    """The facts in an object's bytes: its media type (empty if it is not a manifest that cacheyd keeps), and what it needs.

    `needs` are digests. `blobs` are the digests of an index's entries that are blobs by their media type: the index needs
    these blobs as a manifest needs its layers.
    """

    media_type: str = ""
    needs: tuple[str, ...] = ()
    schema: int = 2
    blobs: tuple[str, ...] = ()


def describe(data: bytes | bytearray | None) -> Description:
    """Describes bytes that can be a manifest; ignores any stated media type. Takes up to 20 ms in the worst case."""
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


def children(data: bytes | None) -> list[str]:
    """The digests that a manifest or index needs, each once (image-spec, "Descriptors"); empty if there are too many."""
    return list(describe(data).needs)
