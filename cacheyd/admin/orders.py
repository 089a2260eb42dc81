"""An order: a command with its arguments, as a value. The tools make an order, and the server parses it once from the socket.

`args()` is the order as JSON for the socket, `parse()` is the reverse. Both ends can be different versions of cacheyd. So a
missing member has the meaning that the order had before this member existed, and an unknown member is ignored.

`parse()` raises ValueError with a text for people, and KeyError or TypeError for a missing member or one of the wrong type.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeGuard, override

from cacheyd.admin.selection import Target, parse_target
from cacheyd.protocol.images import ImageName, parse_image

type Args = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Order:
    """A command with its arguments. This base class is for a command without arguments."""

    command: ClassVar[str]

    def args(self) -> Args:
        """The arguments as JSON for the socket."""
        return {}

    @classmethod
    def parse(cls, args: Mapping[str, Any]) -> Self:
        """Makes the order from the arguments that came over the socket."""
        return cls()


@dataclass(frozen=True, slots=True)
class Ls(Order):
    """Lists the images that the patterns mean, or all images; with `blobs` their objects instead."""

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
    """Asks how much of the disk each registry and each repository takes."""

    command: ClassVar[str] = "du"


class Stats(Order):
    """Asks for the totals of the store, and for the counters of the process that serves."""

    command: ClassVar[str] = "stats"


class Held(Order):
    """Lists the tags that are held: their new image is younger than `min_age`."""

    command: ClassVar[str] = "held"


@dataclass(frozen=True, slots=True)
class Release(Order):
    """Lets clients have images although these are younger than `min_age`."""

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
    """Removes the images that the targets mean, and the objects that only these need; or everything."""

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
    """Reads all stored objects, and removes each object whose bytes do not have its digest."""

    command: ClassVar[str] = "verify"


def given(**members: object) -> Args:
    """The members that are not empty or false."""
    return {name: value for name, value in members.items() if value}


def are_texts(value: object) -> TypeGuard[list[str]]:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _names(args: Mapping[str, Any], key: str) -> list[str]:
    given = args.get(key, [])
    if not are_texts(given):
        raise ValueError(f"{key} is not a list of names")
    return given


def _targets(args: Mapping[str, Any], key: str) -> tuple[Target, ...]:
    return tuple(map(parse_target, _names(args, key)))
