"""Runs the commands `export` and `import` at the terminal."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import batched
from pathlib import Path
from typing import IO, BinaryIO

from cacheyd.admin.image_orders import Export, ImportCheck, ImportObject, ImportRoom, ImportTag
from cacheyd.admin.orders import Order
from cacheyd.observe.wording import counted, shown_size
from cacheyd.protocol.descriptors import Descriptor
from cacheyd.protocol.images import ImageName, parse_image
from cacheyd.protocol.platforms import Platform
from cacheyd.resources import open_files
from cacheyd.terminal.images import Call, UsageError, image_names, opened, platforms
from cacheyd.terminal.layout.reading import Kept, import_layout
from cacheyd.terminal.layout.words import Image, IncompleteError, LayoutError
from cacheyd.terminal.layout.writing import write_layout

# The most digests in one command.
BATCH = 500


def export(
    call: Call,
    root: Path,
    images: Sequence[ImageName],
    platforms: Sequence[Platform] | None,
    target: str,
    *,
    referrers: bool = False,
) -> int:
    """Writes images into a tar file (`-`: standard output); with `referrers` also the images under tags that refer to them.

    Gives the bytes of all objects. Raises LayoutError, OSError.
    """
    (answer,) = call(Export(tuple(images), referrers))
    found = [
        Image(parse_image(item["name"]), Descriptor(item["digest"], item["size"], item["media_type"]))
        for item in answer["images"]
    ]
    open_files.raise_limit()  # Each object of the images is one open file.
    with _output(target) as out:
        return write_layout(out, found, lambda digest: _open_blob(root, digest), platforms)


def _open_blob(root: Path, digest: str) -> BinaryIO | None:
    try:
        return open(root / "blobs" / digest.replace(":", "/"), "rb")
    except FileNotFoundError:
        return None


@contextmanager
def _output(target: str) -> Iterator[IO[bytes]]:
    """A context with standard output, or with a new file that gets its name when it is complete."""
    if target == "-":
        if sys.stdout.isatty():
            raise LayoutError("a tar file cannot be written to a terminal: use -o FILE, or a pipe")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _created(unfinished, path) as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _created(unfinished: Path, path: Path) -> BinaryIO:
    """Makes the unfinished file that will become `path`. Raises OSError with a name that people know."""
    try:
        return open(unfinished, "xb")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path if path.parent.is_dir() else path.parent)) from None


def import_images(
    call: Call, root: Path, source: str, name: str = "", progress: Callable[[int], None] = lambda size: None
) -> list[Image]:
    """Takes the images of a tar file (`-`: standard input) into the cache. Raises LayoutError, UsageError, OSError."""
    try:
        given = parse_image(name, default_tag="") if name else None
    except ValueError as error:
        raise UsageError(str(error)) from error

    taken: list[str] = []

    def tell(order: Order) -> None:
        for _ in call(order):
            pass

    def keep(kept: Kept) -> None:
        file = kept.file
        tell(ImportObject(file.path.name, file.digest, kept.media_type, tuple(kept.within)))
        taken.append(file.digest)

    def set_tag(image: Image) -> None:
        tell(ImportTag(image.name, image.root.digest))

    def reserve(size: int) -> None:
        tell(ImportRoom(size))

    open_files.raise_limit()
    with opened(source) as file:
        images = import_layout(file, root / "partial", keep, set_tag, given, progress, reserve)
    gone = 0
    for some in batched(taken, BATCH):
        (answer,) = call(ImportCheck(some))
        gone += len(answer["gone"])
    if gone:
        raise LayoutError(f"{gone} of {len(taken)} objects were removed again: max_size or the disk is too small")
    return images


def run_export(args: argparse.Namespace, call: Call, root: Path) -> int:
    """Runs `cacheyd export`. Gives the exit code. Raises UsageError, LayoutError, OSError, and the errors of `call`."""
    images = image_names(args.images)
    try:
        size = export(call, root, images, platforms(args), args.output, referrers=args.referrers)
    except IncompleteError as error:
        options = " --referrers" if args.referrers else ""
        options += " --all-platforms" if args.all_platforms else "".join(f" --platform {name}" for name in args.platforms)
        names = " ".join(map(str, images))
        raise LayoutError(f"{error}\nThis fetches it: cacheyd warm{options} {names}") from error
    print(f"{counted(len(images), 'image')}, {shown_size(size)}", file=sys.stderr)
    return 0


def run_import(args: argparse.Namespace, call: Call, root: Path) -> int:
    """Runs `cacheyd import`. Gives the exit code. Raises UsageError, LayoutError, OSError, and the errors of `call`."""
    for image in import_images(call, root, args.source, args.name):
        print(image.name)
    return 0
