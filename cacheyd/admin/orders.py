"""What each command is given, as a value: the tools build an order, the control socket carries it, the server parses it once.

`args()` is the order as JSON on the socket, `parse()` is its reverse. Both ends may be of different versions of cacheyd: a
member that is left out means what it meant before there was such a member, and members that are not known do not matter.

`parse()` raises ValueError with a text for people, and KeyError or TypeError for a member that is missing or of another kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeGuard, override

from cacheyd.admin.selection import Target, parse_target
from cacheyd.protocol.images import ImageName, parse_image

type Args = dict[str, Any]


class Order:
    """A command with what it is given; this one is given nothing."""

    __slots__ = ()
    command: ClassVar[str]

    def args(self) -> Args:
        """What goes over the socket."""
        return {}

    @classmethod
    def parse(cls, args: Mapping[str, Any]) -> Self:
        """The order that came over the socket."""
        return cls()


@dataclass(frozen=True, slots=True)
class Ls(Order):
    """Lists the images that are meant, or all; with `blobs` their objects instead."""

    command: ClassVar[str] = "ls"
    patterns: tuple[Target, ...] = ()
    blobs: bool = False

    @override
    def args(self) -> Args:
        return given(patterns=[target.text for target in self.patterns], blobs=self.blobs)

    @classmethod
    @override
    def parse(cls, args: Mapping[str, Any]) -> Self:
        return cls(_targets(args, "patterns"), bool(args.get("blobs")))


class Du(Order):
    """Says who takes how much of the disk."""

    command: ClassVar[str] = "du"


class Stats(Order):
    """Gives the totals of the store and the counters of the process that serves."""

    command: ClassVar[str] = "stats"


class Held(Order):
    """Lists the tags whose image is too young."""

    command: ClassVar[str] = "held"


@dataclass(frozen=True, slots=True)
class Release(Order):
    """Lets images through although they are too young."""

    command: ClassVar[str] = "release"
    images: tuple[ImageName, ...]

    @override
    def args(self) -> Args:
        return {"images": [str(image) for image in self.images]}

    @classmethod
    @override
    def parse(cls, args: Mapping[str, Any]) -> Self:
        return cls(tuple(map(parse_image, _names(args, "images"))))


@dataclass(frozen=True, slots=True)
class Rm(Order):
    """Removes what is meant by the targets and what only that needs, or everything."""

    command: ClassVar[str] = "rm"
    targets: tuple[Target, ...] = ()
    dry_run: bool = False
    everything: bool = False

    @override
    def args(self) -> Args:
        targets = [target.text for target in self.targets]
        return given(targets=targets, dry_run=self.dry_run, all=self.everything)

    @classmethod
    @override
    def parse(cls, args: Mapping[str, Any]) -> Self:
        return cls(_targets(args, "targets"), bool(args.get("dry_run")), bool(args.get("all")))


@dataclass(frozen=True, slots=True)
class Gc(Order):
    """Tidies up; with `unreferenced` also removes blobs that no manifest needs."""

    command: ClassVar[str] = "gc"
    unreferenced: bool = False

    @override
    def args(self) -> Args:
        return given(unreferenced=self.unreferenced)

    @classmethod
    @override
    def parse(cls, args: Mapping[str, Any]) -> Self:
        return cls(bool(args.get("unreferenced")))


class Verify(Order):
    """Reads everything that is stored, and drops what does not have its digest."""

    command: ClassVar[str] = "verify"


def given(**members: object) -> Args:
    """The members that say something."""
    return {name: value for name, value in members.items() if value}


def are_texts(value: object) -> TypeGuard[list[str]]:
    """Whether this is a list of texts."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _names(args: Mapping[str, Any], key: str) -> list[str]:
    given = args.get(key, [])
    if not are_texts(given):
        raise ValueError(f"{key} is not a list of names")
    return given


def _targets(args: Mapping[str, Any], key: str) -> tuple[Target, ...]:
    return tuple(map(parse_target, _names(args, key)))
