"""Finds the images in Kubernetes objects: containers, initContainers, ephemeralContainers, volumes of type image (PodSpec).

This module knows objects by their shape, so custom resources that contain a pod are read, too. It looks at each part once.
"""

from collections.abc import Iterator
from typing import Any

from cacheyd.protocol.images import parse_image
from cacheyd.terminal.documents import SHOWN, Other
from cacheyd.terminal.findings import Findings

# The longest image name that is parsed (characters).
MAX_NAMED = 1000

_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")


class _Once:
    """Tells which parts were seen before: an alias leads to a part again. If nothing is `shared`, every part is new."""

    def __init__(self, *, shared: bool) -> None:
        self._seen: set[tuple[str, int]] | None = set() if shared else None

    def is_new(self, value: object, role: str = "") -> bool:
        """Whether this value is seen for the first time in this role."""
        if self._seen is None:
            return True
        before = len(self._seen)
        self._seen.add((role, id(value)))
        return len(self._seen) > before


def look_through(document: object, number: int, found: Findings, *, shared: bool) -> None:
    """Takes the images of a document into `found`, in their order. Looks at each part once."""
    once = _Once(shared=shared)
    waiting: list[tuple[Iterator[object], str]] = [(iter((document,)), "")]
    while waiting:
        children, owner = waiting[-1]
        value = next((child for child in children if isinstance(child, dict | list)), None)
        if value is None:
            waiting.pop()
            continue
        if not once.is_new(value):
            continue
        if isinstance(value, dict):
            owner = _named(value) or owner
            for place, image in _images_of(value, once):
                found.count_container()
                _take(image, f"document {number}{owner}", place, found)
        waiting.append((iter(value if isinstance(value, list) else value.values()), owner))


def _named(value: dict[str, Any]) -> str:
    """A Kubernetes object's kind and name, for messages; empty if the value is no such object."""
    kind, metadata = value.get("kind"), value.get("metadata")
    if not isinstance(kind, str) or not isinstance(metadata, dict):
        return ""
    names = [name for key in ("namespace", "name") if isinstance(name := metadata.get(key), str) and name]
    return f", {kind} {'/'.join(names)}"[:SHOWN] if names else ""


def _images_of(value: dict[str, Any], once: _Once) -> Iterator[tuple[str, object]]:
    """Each container or volume, as a text, and its image. Leaves out an item without the key: it has its image elsewhere."""
    for key in _CONTAINERS:
        items = value.get(key)
        for item in items if isinstance(items, list) and once.is_new(items, "containers") else ():
            if isinstance(item, dict) and "image" in item:
                yield _called("container", item), item["image"]
    volumes = value.get("volumes")
    for volume in volumes if isinstance(volumes, list) and once.is_new(volumes, "volumes") else ():
        source = volume.get("image") if isinstance(volume, dict) else None
        if isinstance(source, dict) and "reference" in source:
            yield _called("volume", volume), source["reference"]


def _called(what: str, item: dict[str, Any]) -> str:
    name = item.get("name")
    return f"{what} {name[:SHOWN]}" if isinstance(name, str) and name else f"a {what}"


def _take(image: object, where: str, place: str, found: Findings) -> None:
    name = image.strip() if isinstance(image, str) else ""
    if not name:
        found.tell(f"{where}: {place}: its image {_instead(image)}")
        return
    if len(name) > MAX_NAMED:
        found.tell(f"{where}: {place}: its image is too long for a name: {name[:SHOWN]!r}…")
        return
    try:
        parse_image(name)
    except ValueError as error:
        found.tell(f"{where}: {error}")
    else:
        found.take(name)


def _instead(image: object) -> str:
    """Says what a value is that should be an image name."""
    match image:
        case str():
            return "is empty"
        case None:
            return "is null"
        case bool():
            return f"is {str(image).lower()}, which is no text"
        case Other():
            return f"is {image.written[:SHOWN]}, which is no text (quotes make it one)"
        case dict() if "" in image:
            return "is no text; a template has to be rendered first (helm template)"
        case _:
            return f"is a {'mapping' if isinstance(image, dict) else 'list'}, which is no text"
