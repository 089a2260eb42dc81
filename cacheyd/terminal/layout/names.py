"""Finds the name of an image in a layout: from its annotations, or from `--name`."""

from collections.abc import Mapping
from typing import Any

from cacheyd.protocol.descriptors import Descriptor
from cacheyd.protocol.images import ImageName, parse_image
from cacheyd.protocol.reference import TAG
from cacheyd.protocol.registries import has_registry
from cacheyd.terminal.layout.words import FULL_NAME, REF_NAME, LayoutError


def name_of(item: Mapping[str, Any], root: Descriptor, given: ImageName | None, *, alone: bool) -> ImageName:
    """The name of an image in index.json; `alone` says that it is the only image there. Raises LayoutError."""
    annotations = item.get("annotations")
    stated = annotations if isinstance(annotations, dict) else {}
    full, ref = (value if isinstance(value := stated.get(key), str) else "" for key in (FULL_NAME, REF_NAME))
    name = _given_name(given, full, ref, alone=alone) if given else _stated_name(full) or _stated_name(ref)
    if name is None:
        raise LayoutError(f"{root.digest} has no full name in the file ({full or ref or 'none'}): give one with --name")
    if name.digest and name.digest != root.digest:
        raise LayoutError(f"{name} is not {root.digest}, which the file has")
    return name


def _stated_name(text: str) -> ImageName | None:
    try:
        return parse_image(text) if has_registry(text) else None
    except ValueError:
        return None


def _given_name(given: ImageName, full: str, ref: str, *, alone: bool) -> ImageName:
    if given.tag or given.digest:
        if not alone:
            raise LayoutError("the file has several images: --name may have no tag then")
        return given
    stated = _stated_name(full) or _stated_name(ref)
    tag = stated.tag if stated else ref if TAG.fullmatch(ref) else ""
    return ImageName(given.registry, given.repository, tag or "latest")
