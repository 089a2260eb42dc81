"""Reads the documents in a text: JSON values one after another, or YAML 1.1 with merge keys, as kubectl reads it.

The documents contain only texts, lists and mappings (and `Other`). An alias of YAML takes no memory.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

# The most values and levels that YAML can have: its parser is slow, and builds trees.
MAX_VALUES, MAX_DEPTH = 5_000_000, 200

# The most brackets, braces, commas and colons in JSON: the parser takes about 100 bytes of memory for each. The list of a
# cluster's pods has some hundred of them for each pod.
MAX_SIGNS = 3_000_000

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})

# Plain scalars that kubectl reads as numbers, true or false (YAML 1.1, without dates and times).
_NO_TEXT = re.compile(
    r"[-+]?(?:0x[0-9a-fA-F_]+|0b[01_]+|0o[0-7_]+|(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))"
    r"|\.(?:nan|NaN|NAN)|[yYnN]|[yY]es|YES|[nN]o|NO|[oO]n|ON|[oO]ff|OFF|[tT]rue|TRUE|[fF]alse|FALSE"
)

_MERGE = "<<"
# The most characters of a wrong text that an error message shows.
SHOWN = 200


@dataclass(slots=True)
class Other:
    """A number, true or false, as the document has it."""

    written: str


class Unreadable(Exception):
    """A document cannot be read; the message says why."""


def json_documents(text: str) -> Iterator[object]:
    """The JSON values of a text, in their order. Raises Unreadable."""
    if sum(map(text.count, "{[,:")) > MAX_SIGNS:
        raise Unreadable(f"more than {MAX_SIGNS} values and names; fewer objects at a time can be read (kubectl get -n …)")
    # Numbers are not needed, and the time to parse a long number grows with the square of its length.
    decoder = json.JSONDecoder(parse_int=Other, parse_float=Other, parse_constant=Other)
    at, end = 0, len(text)
    while at < end:
        if text[at].isspace():
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise Unreadable(f"not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
        except RecursionError:
            raise Unreadable("nested too deeply") from None
        yield value


@dataclass(slots=True)
class _Mapping:
    """A mapping that is not complete yet."""

    items: dict[str, object] = field(default_factory=dict)
    merged: list[object] = field(default_factory=list)
    key: str | None = None

    def take(self, value: object) -> None:
        """Takes a key, or the value of the key before."""
        if self.key is None:
            # A key can be of any type. Keys that are no texts are not needed.
            self.key = value if isinstance(value, str) else ""
            return
        if self.key == _MERGE:
            self.merged.append(value)
        else:
            self.items[self.key] = value
        self.key = None


class _Builder:
    """Makes documents from the events of YAML's parser, without recursion, and without a copy for an alias."""

    def __init__(self) -> None:
        self._open: list[list[object] | _Mapping] = []
        self._anchors: dict[str | None, object] = {}
        self._values = 0
        self.document: object = None

    def begin(self) -> None:
        """Begins a new document."""
        self._open, self._anchors, self.document = [], {}, None

    def scalar(self, value: str | Other | None, anchor: str | None) -> None:
        self._add(value, anchor)

    def alias(self, anchor: str | None) -> None:
        if anchor not in self._anchors:
            raise Unreadable(f"the alias *{str(anchor)[:SHOWN]} has no anchor")
        self._add(self._anchors[anchor], None)

    def start(self, container: list[object] | _Mapping, anchor: str | None) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise Unreadable(f"nested more than {MAX_DEPTH} deep")
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
        else:
            container.take(value)

    def _merge(self, items: dict[str, object], value: object) -> None:
        """Adds the keys of other mappings that are missing in this one (https://yaml.org/type/merge.html)."""
        others = value if isinstance(value, list) else [value]
        for other in {id(one): one for one in others if isinstance(one, dict)}.values():
            self._count(len(other))
            for key in list(other):
                items.setdefault(key, other[key])

    def _count(self, number: int) -> None:
        self._values += number
        if self._values > MAX_VALUES:
            raise Unreadable(f"more than {MAX_VALUES} values")


def yaml_documents(text: str) -> Iterator[object]:
    """The YAML documents of a text, in their order. Raises Unreadable."""
    # The module is imported only here: the other commands need no YAML.
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
        raise Unreadable(f"not YAML: {error.problem or error.context}{where}") from None
    except yaml.YAMLError as error:
        raise Unreadable(f"not YAML: {str(error).partition(chr(10))[0]}") from None


def _plain(value: str) -> str | Other | None:
    """The value of a scalar without quotes: None, a text, or Other."""
    if value in _NULLS:
        return None
    return Other(value) if _NO_TEXT.fullmatch(value) else value
