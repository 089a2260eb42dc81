"""The common parts of the commands about images: which images and platforms the user means, and which files are read.

A `Call` sends one order to a cache and gives the values of its replies, in order. A `Call` raises CommandError if the cache
refuses the order.
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
    """The command line, or a file that it names, has something that cannot be used."""


def image_names(names: Iterable[str]) -> list[ImageName]:
    """The images that the user means, each once. Raises UsageError."""
    try:
        found = list(dict.fromkeys(map(parse_image, names)))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not found:
        raise UsageError("no image is named")
    return found


def platforms(args: argparse.Namespace) -> tuple[Platform, ...] | None:
    """The platforms that the user means, None for all. Raises UsageError."""
    try:
        return None if args.all_platforms else tuple(map(parse_platform, args.platforms)) or (own_platform(),)
    except ValueError as error:
        raise UsageError(str(error)) from error


def opened(source: str) -> AbstractContextManager[IO[bytes]]:
    """Opens a file for reading; `-` is standard input. Raises OSError."""
    return nullcontext(sys.stdin.buffer) if source == "-" else open(source, "rb")


def shown_source(source: str) -> str:
    """The name of a file to read, for people; `-` is standard input."""
    return "standard input" if source == "-" else source
