"""The images in what somebody hands over: a list, or Kubernetes objects as JSON or YAML (kubectl, helm template).

Sources: Kubernetes' PodSpec (containers, initContainers, ephemeralContainers, volumes of type image) and YAML 1.1 with merge
keys, as kubectl reads it. Objects are known by their shape, so that custom resources with a pod in them are read, too.
Nothing of a document is built but texts, lists and mappings, and each of these is looked at once: aliases cost nothing.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cacheyd.observe.wording import counted
from cacheyd.protocol.images import parse_image

# The most that is read (bytes), and how many values and levels YAML may have: its parser is slow, and builds trees.
MAX_TEXT, MAX_VALUES, MAX_DEPTH = 128 << 20, 5_000_000, 200
# Brackets, braces, commas and colons of JSON: what its parser's memory grows with, about 100 bytes for each. Of the pods of
# a cluster there are some hundred for each pod.
MAX_SIGNS = 3_000_000
# Problems that are told, and the longest name that is looked at (characters).
MAX_PROBLEMS, MAX_NAMED = 100, 1000
_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")
# What no list of images has: `key:`, `- key:`, and the lines between documents.
_YAML_LINE = re.compile(
    r"""^(?:---|%YAML|[ ]*(?:-[ ]+)*(?:"[^"\n]*"|'[^'\n]*'|[^\s#"'][^\s#]*)[ ]*:(?:[ \t\r]|$))""", re.MULTILINE
)
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
# Plain scalars that are numbers, true or false as kubectl reads them (YAML 1.1, without its dates and times).
_NO_TEXT = re.compile(
    r"[-+]?(?:0x[0-9a-fA-F_]+|0b[01_]+|0o[0-7_]+|(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))"
    r"|\.(?:nan|NaN|NAN)|[yYnN]|[yY]es|YES|[nN]o|NO|[oO]n|ON|[oO]ff|OFF|[tT]rue|TRUE|[fF]alse|FALSE"
)
_MERGE = "<<"
_SHOWN = 200


@dataclass(slots=True)
class Found:
    """Images in the order in which they are named, each once, and what was there instead of one.

    `containers` is how many containers and image volumes had one, or should have; `nothing` says why there is no image.
    """

    images: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    containers: int = 0
    nothing: str = ""
    more: int = 0
    _told: set[str] = field(default_factory=set)

    def tell(self, problem: str) -> None:
        """A problem is told once, and only the first ones; others are counted."""
        if problem in self._told:
            return
        if len(self.problems) < MAX_PROBLEMS:
            self._told.add(problem)
            self.problems.append(problem)
        else:
            self.more += 1


@dataclass(slots=True)
class _Other:
    """A number, true or false, as it was written."""

    written: str


def read_images(data: bytes) -> Found:
    """The images of a list or of Kubernetes objects. Raises ValueError, with the number of the document, for what is neither,
    and for a list in which something is no image's name, with its line.
    """
    if len(data) > MAX_TEXT:
        raise ValueError(f"more than {MAX_TEXT >> 20} MiB")
    text = _decoded(data)
    if text.lstrip()[:1] in ("{", "["):
        return _in_objects(_json_documents(text), text, shared=False)
    if _YAML_LINE.search(text):
        return _in_objects(_yaml_documents(text), text, shared=True)
    return _in_list(text)


def _in_list(text: str) -> Found:
    found = Found(nothing="only comments are in it" if text.strip() else "it is empty")
    for number, line in enumerate(text.splitlines(), 1):
        for name in read_list([line]):
            try:
                parse_image(name)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            found.images.append(name)
    found.images = list(dict.fromkeys(found.images))
    return found


def read_list(lines: list[str]) -> list[str]:
    """The images of a list: one a line, `#` begins a comment."""
    return [name for line in lines if (name := line.partition("#")[0].strip())]


def _decoded(data: bytes) -> str:
    # PowerShell's `>` writes UTF-16.
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"not a text: byte {error.start} is not {encoding.removesuffix('-sig').upper()}") from None


def _in_objects(documents: Iterator[object], text: str, *, shared: bool) -> Found:
    found = Found()
    number = 0
    try:
        for number, document in enumerate(documents, 1):
            _look(document, number, found, shared=shared)
    except _Unreadable as error:
        hint = "; a template has to be rendered first (helm template)" if "{{" in text else ""
        raise ValueError(f"document {number + 1}: {error}{hint}") from None
    found.images = list(dict.fromkeys(found.images))
    if found.more:
        found.problems.append(f"and {found.more} more")
    found.nothing = (
        f"no image is in its {counted(found.containers, 'container')}"
        if found.containers
        else "no Kubernetes object with containers is in it"
    )
    return found


class _Unreadable(Exception):
    """Why a document cannot be read."""


# Documents


def _json_documents(text: str) -> Iterator[object]:
    if sum(map(text.count, "{[,:")) > MAX_SIGNS:
        raise _Unreadable(f"more than {MAX_SIGNS} values and names; fewer objects at a time can be read (kubectl get -n …)")
    # Numbers are of no interest, and long ones take quadratic time.
    decoder = json.JSONDecoder(parse_int=_Other, parse_float=_Other, parse_constant=_Other)
    at, end = 0, len(text)
    while at < end:
        if text[at].isspace():
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _Unreadable(f"not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
        except RecursionError:
            raise _Unreadable("nested too deeply") from None
        yield value


@dataclass(slots=True)
class _Mapping:
    """A mapping that is not complete yet."""

    items: dict[str, object] = field(default_factory=dict)
    merged: list[object] = field(default_factory=list)
    key: str | None = None


class _Builder:
    """Makes documents of the events of YAML's parser, without recursion and without a copy of what an alias stands for."""

    def __init__(self) -> None:
        self._open: list[list[object] | _Mapping] = []
        self._anchors: dict[str | None, object] = {}
        self._values = 0
        self.document: object = None

    def begin(self) -> None:
        """A new document."""
        self._open, self._anchors, self.document = [], {}, None

    def scalar(self, value: str | _Other | None, anchor: str | None) -> None:
        self._add(value, anchor)

    def alias(self, anchor: str | None) -> None:
        if anchor not in self._anchors:
            raise _Unreadable(f"*{str(anchor)[:_SHOWN]} stands for nothing")
        self._add(self._anchors[anchor], None)

    def start(self, container: list[object] | _Mapping, anchor: str | None) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise _Unreadable(f"nested more than {MAX_DEPTH} deep")
        self._add(container.items if isinstance(container, _Mapping) else container, anchor)
        self._open.append(container)

    def end(self) -> None:
        container = self._open.pop()
        if isinstance(container, _Mapping):
            for merged in container.merged:
                self._merge(container.items, merged)

    def _add(self, value: object, anchor: str | None) -> None:
        self._count(1)
        if anchor is not None:
            self._anchors[anchor] = value
        if not self._open:
            self.document = value
            return
        container = self._open[-1]
        if isinstance(container, list):
            container.append(value)
        elif container.key is None:
            # A key may be of any kind; those that are no text are of no interest.
            container.key = value if isinstance(value, str) else ""
        else:
            key, container.key = container.key, None
            if key == _MERGE:
                container.merged.append(value)
            else:
                container.items[key] = value

    def _merge(self, items: dict[str, object], value: object) -> None:
        """The keys of other mappings, where they are not there (https://yaml.org/type/merge.html)."""
        others = value if isinstance(value, list) else [value]
        for other in {id(one): one for one in others if isinstance(one, dict)}.values():
            self._count(len(other))
            for key in list(other):
                items.setdefault(key, other[key])

    def _count(self, number: int) -> None:
        self._values += number
        if self._values > MAX_VALUES:
            raise _Unreadable(f"more than {MAX_VALUES} values")


def _yaml_documents(text: str) -> Iterator[object]:
    # Only here: the other commands need no YAML.
    import yaml  # noqa: PLC0415

    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            match event:
                case yaml.DocumentStartEvent():
                    builder.begin()
                case yaml.ScalarEvent():
                    builder.scalar(_plain(event.value) if event.implicit[0] else event.value, event.anchor)
                case yaml.AliasEvent():
                    builder.alias(event.anchor)
                case yaml.SequenceStartEvent():
                    builder.start([], event.anchor)
                case yaml.MappingStartEvent():
                    builder.start(_Mapping(), event.anchor)
                case yaml.CollectionEndEvent():
                    builder.end()
                case yaml.DocumentEndEvent():
                    yield builder.document
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise _Unreadable(f"not YAML: {error.problem or error.context}{where}") from None
    except yaml.YAMLError as error:
        raise _Unreadable(f"not YAML: {str(error).partition(chr(10))[0]}") from None


def _plain(value: str) -> str | _Other | None:
    """What a scalar without quotes is."""
    if value in _NULLS:
        return None
    return _Other(value) if _NO_TEXT.fullmatch(value) else value


# What is in them


class _Once:
    """Tells what was there before: what an alias stands for. Where nothing is `shared`, nothing was."""

    def __init__(self, *, shared: bool) -> None:
        self._seen: set[tuple[str, int]] | None = set() if shared else None

    def is_new(self, value: object, role: str = "") -> bool:
        """Whether this is the first time in this role."""
        if self._seen is None:
            return True
        before = len(self._seen)
        self._seen.add((role, id(value)))
        return len(self._seen) > before


def _look(document: object, number: int, found: Found, *, shared: bool) -> None:
    """Takes the images of a document, each part of it once, in their order."""
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
                found.containers += 1
                _take(image, f"document {number}{owner}", place, found)
        waiting.append((iter(value if isinstance(value, list) else value.values()), owner))


def _named(value: dict[str, Any]) -> str:
    """A Kubernetes object's kind and name; empty if it is none."""
    kind, metadata = value.get("kind"), value.get("metadata")
    if not isinstance(kind, str) or not isinstance(metadata, dict):
        return ""
    names = [name for key in ("namespace", "name") if isinstance(name := metadata.get(key), str) and name]
    return f", {kind} {'/'.join(names)}"[:_SHOWN] if names else ""


def _images_of(value: dict[str, Any], once: _Once) -> Iterator[tuple[str, object]]:
    """What each container and each volume has as its image, and which one it is; without the key, something else gives it."""
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
    return f"{what} {name[:_SHOWN]}" if isinstance(name, str) and name else f"a {what}"


def _take(image: object, where: str, place: str, found: Found) -> None:
    name = image.strip() if isinstance(image, str) else ""
    if not name:
        found.tell(f"{where}: {place}: its image {_instead(image)}")
        return
    if len(name) > MAX_NAMED:
        found.tell(f"{where}: {place}: its image is too long for a name: {name[:_SHOWN]!r}…")
        return
    try:
        parse_image(name)
    except ValueError as error:
        found.tell(f"{where}: {error}")
    else:
        found.images.append(name)


def _instead(image: object) -> str:
    """What is there instead of a name."""
    match image:
        case str():
            return "is empty"
        case None:
            return "is null"
        case bool():
            return f"is {str(image).lower()}, which is no text"
        case _Other():
            return f"is {image.written[:_SHOWN]}, which is no text (quotes make it one)"
        case dict() if "" in image:
            return "is no text; a template has to be rendered first (helm template)"
        case _:
            return f"is a {'mapping' if isinstance(image, dict) else 'list'}, which is no text"
