"""What the commands about images have in common: which images and platforms are meant, and which files are read.

A `Call` gives what a cache tells of one order, in its order; it raises CommandError for an order that is refused.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import IO, Any

from cacheyd.admin.orders import Order
from cacheyd.protocol.images import ImageName, parse_image
from cacheyd.protocol.platforms import Platform, own_platform, parse_platform

type Call = Callable[[Order], Iterable[dict[str, Any]]]


class UsageError(Exception):
    """Something on the command line, or in a file that it names, that cannot be used."""


def image_names(names: Iterable[str]) -> list[ImageName]:
    """The images meant, each once. Raises UsageError."""
    try:
        found = list(dict.fromkeys(map(parse_image, names)))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not found:
        raise UsageError("no image is named")
    return found


def platforms(args: argparse.Namespace) -> tuple[Platform, ...] | None:
    """The platforms meant, None for all. Raises UsageError."""
    try:
        return None if args.all_platforms else tuple(map(parse_platform, args.platforms)) or (own_platform(),)
    except ValueError as error:
        raise UsageError(str(error)) from error


def opened(source: str) -> AbstractContextManager[IO[bytes]]:
    """A file to be read; `-` is standard input. Raises OSError."""
    return nullcontext(sys.stdin.buffer) if source == "-" else open(source, "rb")


def shown_source(source: str) -> str:
    """The name of such a file for people."""
    return "standard input" if source == "-" else source
