"""The commands `warm`, `export` and `import` at the terminal: they ask a cache through `call`, and show how it goes.

`call(command, args)` gives the replies of one command, in order; it raises CommandError for one that is an error.
"""

import argparse
import asyncio
import errno
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import batched
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, Self, TextIO

from cacheyd.admin.orders import MAX_LAYERS
from cacheyd.observe.wording import counted, shown_size
from cacheyd.protocol.descriptors import Descriptor
from cacheyd.protocol.images import ImageName, parse_image
from cacheyd.protocol.platforms import Platform, own_platform, parse_platform
from cacheyd.resources import open_files as descriptors
from cacheyd.terminal.layout import Image, IncompleteError, Kept, LayoutError, import_layout, write_layout
from cacheyd.terminal.workloads import MAX_TEXT, Found, read_images
from cacheyd.upstream.auth_files import AuthFile
from cacheyd.upstream.programs import HelperError

# So many digests, or images with their logins (tokens have some KiB), go into one command.
BATCH, WARM_BATCH = 500, 100

type Call = Callable[[str, dict[str, Any]], Iterable[dict[str, Any]]]


class UsageError(Exception):
    """Something on the command line, or in a file that it names, that cannot be used."""


# Which images, and as whom


def image_names(names: Iterable[str]) -> list[ImageName]:
    """The images meant, each once. Raises UsageError."""
    try:
        found = list(dict.fromkeys(map(parse_image, names)))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not found:
        raise UsageError("no image is named")
    return found


def one_login(images: Sequence[ImageName], username: str, password: str) -> dict[str, str]:
    """The login that was given, for each image. It is for one registry, so that no other one sees it. Raises UsageError."""
    registries = sorted({image.registry for image in images})
    if len(registries) > 1:
        raise UsageError(f"--username is for one registry, and these are {', '.join(registries)}; use --authfile")
    if not username or ":" in username or not password:
        raise UsageError("--username needs a name without a colon, and a password on standard input (--password-stdin)")
    return {str(image): f"{username}:{password}" for image in images}


def file_logins(images: Sequence[ImageName], path: Path) -> dict[str, str]:
    """The logins that a docker or podman auth file has for the images; its credential helpers are run. Raises UsageError."""
    try:
        return asyncio.run(_file_logins(images, AuthFile.read(path)))
    except HelperError as error:
        raise UsageError(str(error)) from error


async def _file_logins(images: Sequence[ImageName], file: AuthFile) -> dict[str, str]:
    """Each registry's helper is run once."""
    found: dict[str, str] = {}
    for image in images:
        place = image.name if file.is_narrow(image.registry) else image.registry
        if place not in found:
            found[place] = await file.login(place)
    places = {str(image): image.name if file.is_narrow(image.registry) else image.registry for image in images}
    return {name: found[place] for name, place in places.items() if found[place]}


# Warm


class Display(Protocol):
    """Shows the events of a warming."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *reason: object) -> None: ...

    def show(self, event: dict[str, Any]) -> None:
        """One event."""


def warm(
    call: Call,
    images: Sequence[ImageName],
    platforms: Sequence[str] | None,
    logins: dict[str, str],
    display: Display,
    *,
    layers: int = 4,
    referrers: bool = False,
) -> int:
    """Has images pulled into the cache, with `referrers` their signatures and SBOMs, too; 0 if all are there, else 1."""
    args: dict[str, Any] = {"platforms": platforms if platforms is None else list(platforms), "layers": layers}
    if referrers:
        args["referrers"] = True
    failed = without = 0
    with display:
        # Those of a whole cluster do not fit into one command.
        for some in batched(map(str, images), WARM_BATCH):
            known = {name: logins[name] for name in some if name in logins}
            ended = False
            for event in call("warm", {**args, "images": list(some), "logins": known}):
                if event["event"] == "end":
                    failed, ended = failed + event["failed"], True
                    without += event.get("referrers_failed", 0)
                else:
                    display.show(event)
            if not ended:
                return 1
        more = {"referrers_failed": without} if without else {}
        display.show({"event": "end", "images": len(images), "failed": failed, **more})
    return int(failed + without > 0)


def display_for(out: TextIO, *, as_json: bool) -> Display:
    """Bars on a terminal, else lines; lines of JSON if wanted."""
    if as_json:
        return JsonLines(out)
    return Bars() if out.isatty() else Lines(out)


class Lines:
    """A line for each image and each layer."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self._out.flush()

    def show(self, event: dict[str, Any]) -> None:
        """One event; progress is none."""
        if line := line_of(event):
            print(line, file=self._out, flush=True)


class JsonLines(Lines):
    """Each event as a line of JSON."""

    def show(self, event: dict[str, Any]) -> None:
        """One event."""
        print(json.dumps(event), file=self._out, flush=True)


def line_of(event: dict[str, Any]) -> str:
    """An event for people; empty for progress."""
    image, digest = event.get("image", ""), str(event.get("digest", ""))[:19]
    match event["event"]:
        case "image":
            return f"{image}"
        case "layer-done":
            return f"  {digest} {shown_size(event['size'])} {event['result']}"
        case "layer-failed":
            return f"  {digest} {shown_size(event['size'])} failed: {event['reason']}"
        case "done":
            more = f", with {event['referrers']} that refer to it" if "referrers" in event else ""
            held = f" ({event['held']})" if event.get("held") else ""
            without = f"; what refers to it is not all there: {why}" if (why := event.get("referrers_failed")) else ""
            return f"{image}: {shown_size(event['bytes'])} in the cache{more}{held}{without}"
        case "failed":
            return f"{image} failed: {event['reason']}"
        case "end":
            total, here = event["images"], event["images"] - event["failed"]
            without = f"; what refers to {count} of them is not all there" if (count := event.get("referrers_failed")) else ""
            return f"{here} of {counted(total, 'image')} {'is' if 1 in (here, total) else 'are'} in the cache{without}"
    return ""


class Bars:
    """A bar for each layer on its way, above the lines of what is done."""

    def __init__(self) -> None:
        # Not for --help, nor where there is no terminal.
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn  # noqa: PLC0415

        columns = (TextColumn("  {task.description}"), BarColumn(), DownloadColumn(True), TransferSpeedColumn())
        self._progress = Progress(*columns, transient=True)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._progress.stop()

    def show(self, event: dict[str, Any]) -> None:
        """One event."""
        key = str(event.get("digest", ""))
        if event["event"] == "layer":
            if key not in self._tasks:
                self._tasks[key] = self._progress.add_task(key[:19], total=event["size"] or None)
            self._progress.update(self._tasks[key], completed=event["received"])
        elif (task := self._tasks.pop(key, None)) is not None:
            self._progress.remove_task(task)
        if line := line_of(event):
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


# Export and import


def export(
    call: Call,
    root: Path,
    images: Sequence[ImageName],
    platforms: Sequence[Platform] | None,
    target: str,
    *,
    referrers: bool = False,
) -> int:
    """Writes images into a tar file (`-`: standard output), with `referrers` also what the cache has under tags that refer
    to them; how many bytes of objects. Raises LayoutError, OSError.
    """
    (answer,) = call("export", {"images": [str(image) for image in images], "referrers": referrers})
    found = [
        Image(parse_image(item["name"]), Descriptor(item["digest"], item["size"], item["media_type"]))
        for item in answer["images"]
    ]
    descriptors.raise_limit()  # Each object of the images is one open file.
    with _output(target) as out:
        return write_layout(out, found, lambda digest: _open_blob(root, digest), platforms)


def _open_blob(root: Path, digest: str) -> BinaryIO | None:
    try:
        return open(root / "blobs" / digest.replace(":", "/"), "rb")
    except FileNotFoundError:
        return None


@contextmanager
def _output(target: str) -> Iterator[IO[bytes]]:
    """Standard output, or a file that is there under its name when it is complete."""
    if target == "-":
        if sys.stdout.isatty():
            raise LayoutError("a tar file is nothing for a terminal: use -o FILE, or a pipe")
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
    """The new file that is to be `path`. Raises OSError with a name that people know."""
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

    def keep(kept: Kept) -> None:
        file = kept.file
        args = {"file": file.path.name, "digest": file.digest, "media_type": kept.media_type}
        _all(call("import-object", {**args, "within": list(kept.within)}))
        taken.append(file.digest)

    def set_tag(image: Image) -> None:
        _all(call("import-tag", {"image": str(image.name), "digest": image.root.digest}))

    def reserve(size: int) -> None:
        _all(call("import-room", {"size": size}))

    descriptors.raise_limit()
    with _input(source) as file:
        images = import_layout(file, root / "partial", keep, set_tag, given, progress, reserve)
    gone = 0
    for some in batched(taken, BATCH):
        (answer,) = call("import-check", {"digests": list(some)})
        gone += len(answer["gone"])
    if gone:
        raise LayoutError(f"{gone} of {len(taken)} objects were removed again: max_size or the disk is too small")
    return images


def _all(replies: Iterable[dict[str, Any]]) -> None:
    for _ in replies:
        pass


def _input(source: str) -> AbstractContextManager[IO[bytes]]:
    return nullcontext(sys.stdin.buffer) if source == "-" else open(source, "rb")


# The command line


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> list[argparse.ArgumentParser]:
    """Adds the three commands; their parsers."""
    warming = commands.add_parser(
        "warm",
        help="pull images into the cache",
        description="Pulls images into the cache, as clients would. Exit code: 0 all are there, 1 not all, 2 wrong usage.",
    )
    warming.add_argument("images", nargs="*", metavar="IMAGE", help="such as alpine:3.22 or ghcr.io/acme/app@sha256:…")
    warming.add_argument(
        "-f", "--file", action="append", dest="files", default=[], metavar="FILE",
        help="an image per line, # for comments; or Kubernetes objects, JSON or YAML (kubectl get -o json, helm template);"
        " - is stdin; may be repeated",
    )  # fmt: skip
    _add_platforms(warming)
    warming.add_argument(
        "--referrers", action="store_true", help="also what refers to the images: signatures, attestations, SBOMs"
    )
    warming.add_argument("--layers", type=int, default=4, metavar="N", help="layers that are fetched at once (default: 4)")
    warming.add_argument("--username", metavar="NAME", help="log in at the registry, with --password-stdin")
    warming.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    warming.add_argument("--authfile", type=Path, metavar="FILE", help="logins, as in ~/.docker/config.json")
    warming.add_argument("--json", action="store_true", help="events as lines of JSON")
    exporting = commands.add_parser(
        "export",
        help="write images of the cache to a tar file",
        description="Writes images to an OCI image layout in a tar file, for ctr images import, skopeo and cacheyd import.",
    )
    exporting.add_argument("images", nargs="+", metavar="IMAGE")
    exporting.add_argument("-o", "--output", required=True, metavar="FILE", help="the tar file; - is standard output")
    _add_platforms(exporting)
    exporting.add_argument(
        "--referrers", action="store_true", help="also what the cache has under tags that refer to them (sha256-….sig)"
    )
    importing = commands.add_parser(
        "import",
        help="take the images of a tar file into the cache",
        description="Reads an OCI image layout in a tar file, as cacheyd export, skopeo, ctr and docker (25 on) write it.",
    )
    importing.add_argument("source", metavar="FILE", help="the tar file, also compressed; - is standard input")
    importing.add_argument("--name", default="", help="of the image; without a tag, of all images in the file")
    return [warming, exporting, importing]


def _add_platforms(command: argparse.ArgumentParser) -> None:
    group = command.add_mutually_exclusive_group()
    text = "os/arch[/variant], may be repeated (default: linux on this machine's architecture)"
    group.add_argument("--platform", action="append", dest="platforms", default=[], metavar="PLATFORM", help=text)
    group.add_argument("--all-platforms", action="store_true", help="all that an image is there for")


def run(args: argparse.Namespace, call: Call, root: Path) -> int:
    """Runs one of the three commands against the cache in `root`; the exit code. What `call` raises goes on."""
    commands = {"warm": _run_warm, "export": _run_export, "import": _run_import}
    try:
        return commands[args.command](args, call, root)
    except UsageError as error:
        print(f"cacheyd: {error}", file=sys.stderr)
        return 2
    except LayoutError as error:
        print(f"cacheyd: {error}", file=sys.stderr)
    except BrokenPipeError:
        raise  # Nobody reads what it prints.
    except OSError as error:
        print(f"cacheyd: {error.filename or 'the tar file'}: {error.strerror or error}", file=sys.stderr)
    return 1


def _platforms(args: argparse.Namespace) -> list[Platform] | None:
    try:
        return None if args.all_platforms else [parse_platform(text) for text in args.platforms] or [own_platform()]
    except ValueError as error:
        raise UsageError(str(error)) from error


def _run_warm(args: argparse.Namespace, call: Call, root: Path) -> int:
    files = [(source, _read_names(source, taken=args.password_stdin)) for source in args.files]
    problems = [f"{source}: {problem}" for source, read in files for problem in read.problems]
    for problem in problems:
        print(f"cacheyd: {problem}", file=sys.stderr)
    names = [*args.images, *(name for _, read in files for name in read.images)]
    if files and not names:
        raise UsageError(
            "no image is named: " + "; ".join(f"{_shown_source(source)}: {read.nothing}" for source, read in files)
        )
    images = image_names(names)
    platforms = _platforms(args)
    if not 1 <= args.layers <= MAX_LAYERS:
        raise UsageError(f"--layers must be from 1 to {MAX_LAYERS}")
    shown = None if platforms is None else [str(platform) for platform in platforms]
    display = display_for(sys.stdout, as_json=args.json)
    logins = _logins(args, images)
    failed = warm(call, images, shown, logins, display, layers=args.layers, referrers=args.referrers)
    return failed or int(bool(problems))


def _read_names(source: str, *, taken: bool) -> Found:
    if source == "-" and taken:
        raise UsageError("standard input cannot be both the list and the password")
    try:
        with _input(source) as file:
            data = file.read(MAX_TEXT + 1)
        return read_images(data)
    except OSError as error:
        raise UsageError(f"{_shown_source(source)}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{_shown_source(source)}: {error}") from error


def _shown_source(source: str) -> str:
    return "standard input" if source == "-" else source


def _logins(args: argparse.Namespace, images: Sequence[ImageName]) -> dict[str, str]:
    if args.username is None and not args.password_stdin:
        return file_logins(images, args.authfile) if args.authfile else {}
    if args.authfile:
        raise UsageError("--username and --authfile exclude each other")
    password = sys.stdin.readline().rstrip("\r\n") if args.password_stdin else ""
    return one_login(images, args.username or "", password)


def _run_export(args: argparse.Namespace, call: Call, root: Path) -> int:
    images = image_names(args.images)
    try:
        size = export(call, root, images, _platforms(args), args.output, referrers=args.referrers)
    except IncompleteError as error:
        options = " --referrers" if args.referrers else ""
        options += " --all-platforms" if args.all_platforms else "".join(f" --platform {name}" for name in args.platforms)
        names = " ".join(map(str, images))
        raise LayoutError(f"{error}\nThis fetches it: cacheyd warm{options} {names}") from error
    print(f"{counted(len(images), 'image')}, {shown_size(size)}", file=sys.stderr)
    return 0


def _run_import(args: argparse.Namespace, call: Call, root: Path) -> int:
    for image in import_images(call, root, args.source, args.name):
        print(image.name)
    return 0
