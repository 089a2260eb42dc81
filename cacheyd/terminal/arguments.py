"""The command line as a table: each command with its arguments."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cacheyd import __version__
from cacheyd.admin.image_orders import LAYERS
from cacheyd.settings.settings import SETTINGS

type Adder = Callable[[argparse.ArgumentParser], object]


def _argument(*names: str, **options: Any) -> Adder:
    return lambda parser: parser.add_argument(*names, **options)


def _flag(name: str, text: str) -> Adder:
    return _argument(name, action="store_true", help=text)


def _platforms(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    text = "os/arch[/variant], may be repeated (default: linux on this machine's architecture)"
    group.add_argument("--platform", action="append", dest="platforms", default=[], metavar="PLATFORM", help=text)
    group.add_argument("--all-platforms", action="store_true", help="all platforms that an image has")


def _settings(parser: argparse.ArgumentParser) -> None:
    _CONFIG(parser)
    for setting in SETTINGS:
        if not setting.variables():
            continue
        variables = ", ".join(reversed(setting.variables()))
        action = {"nargs": "?", "const": "true"} if setting.default is False else {}
        text = f"{setting.help} (environment: {variables}; default: {setting.default!r})".replace("%", "%%")
        flag = f"--{setting.name.replace('_', '-')}"
        parser.add_argument(flag, dest=setting.name, metavar="VALUE", help=text, **action)  # type: ignore[arg-type]


_CONFIG = _argument("--config", metavar="FILE", help="TOML file (environment: CACHEYD_CONFIG)")
_PLACE = (_CONFIG, _argument("--cache-dir", metavar="DIR", help="where the cache lives (environment: CACHE_DIR)"))
_TOOL = (*_PLACE, _flag("--json", "print JSON"))


@dataclass(frozen=True, slots=True)
class Line:
    """A command in the table. `actions` are its subcommands. An empty description means that the help text is used for it."""

    help: str
    arguments: tuple[Adder, ...] = ()
    description: str | None = ""
    actions: "Mapping[str, Line] | None" = None


COMMANDS: Mapping[str, Line] = {
    "serve": Line("run the cache", (_settings,), "Runs the cache until SIGTERM or SIGINT."),
    "config": Line("check or show the settings", description=None, actions={
        "check": Line("say whether the settings can be used", (_settings,), None),
        "show": Line("print each setting and where it comes from, secrets masked", (_settings,), None),
    }),
    "ls": Line("list the images that are stored", (
        *_TOOL,
        _argument("patterns", nargs="*", metavar="PATTERN",
                  help="image, registry, digest, or a pattern with *; default: all"),
        _flag("--blobs", "list their manifests and blobs instead"),
    )),
    "du": Line("show the disk space of each registry and repository", _TOOL),
    "rm": Line("remove images, and the objects that only they need", (
        *_TOOL,
        _argument("targets", nargs="*", metavar="IMAGE",
                  help="image (without a tag: the whole repository), name@digest, digest, or a pattern with *"),
        _flag("--dry-run", "only print what would be removed"),
        _flag("--all", "remove everything"),
    )),
    "gc": Line("tidy up: compare index and files, sweep partial files and old tags, keep the bounds", (
        *_TOOL,
        _flag("--unreferenced", "also remove blobs without a manifest, unused for an hour"),
    )),
    "verify": Line("read all stored objects, and remove each one that does not have its digest", _TOOL),
    "stats": Line("show the totals of the store, and the counters of the running cacheyd", _TOOL),
    "held": Line("list the tags whose new image is too young (min_age), and the image that clients get instead", _TOOL),
    "release": Line("let clients have an image although it is too young (min_age)", (
        *_TOOL,
        _argument("images", nargs="+", metavar="IMAGE", help="image with its tag, or name@digest"),
    )),
    "warm": Line("pull images into the cache", (
        _argument("images", nargs="*", metavar="IMAGE", help="such as alpine:3.22 or ghcr.io/acme/app@sha256:…"),
        _argument("-f", "--file", action="append", dest="files", default=[], metavar="FILE",
                  help="an image per line, # for comments; or Kubernetes objects, JSON or YAML"
                       " (kubectl get -o json, helm template); - is stdin; may be repeated"),
        _platforms,
        _flag("--referrers", "also pull what refers to the images: signatures, attestations, SBOMs"),
        _argument("--layers", type=int, default=LAYERS, metavar="N",
                  help=f"layers that are fetched at once (default: {LAYERS})"),
        _argument("--username", metavar="NAME", help="log in at the registry, with --password-stdin"),
        _flag("--password-stdin", "read the password from standard input"),
        _argument("--authfile", type=Path, metavar="FILE", help="logins, as in ~/.docker/config.json"),
        _flag("--json", "events as lines of JSON"),
        *_PLACE,
    ), "Pulls images into the cache, as clients do. Exit code: 0 all are in the cache, 1 not all, 2 wrong usage."),
    "export": Line("write images of the cache to a tar file", (
        _argument("images", nargs="+", metavar="IMAGE"),
        _argument("-o", "--output", required=True, metavar="FILE", help="the tar file; - is standard output"),
        _platforms,
        _flag("--referrers", "also write what the cache has under tags that refer to the images (sha256-….sig)"),
        *_PLACE,
    ), "Writes images to an OCI image layout in a tar file, for ctr images import, skopeo and cacheyd import."),
    "import": Line("take the images of a tar file into the cache", (
        _argument("source", metavar="FILE", help="the tar file, also compressed; - is standard input"),
        _argument("--name", default="", help="name of the image; without a tag, the repository of all images in the file"),
        *_PLACE,
    ), "Reads an OCI image layout in a tar file, as cacheyd export, skopeo, ctr and docker (25 on) write it."),
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """Makes the parser of the table. The parsed arguments have the parser of their command in `parser`."""
    whole = argparse.ArgumentParser(prog="cacheyd", description="A pull-through cache for container registries.")
    whole.add_argument("--version", action="version", version=f"cacheyd {__version__}")
    _add(whole, "command", COMMANDS)
    return whole


def _add(parent: argparse.ArgumentParser, dest: str, lines: Mapping[str, Line]) -> None:
    commands = parent.add_subparsers(dest=dest, required=True, metavar=dest.upper())
    for name, line in lines.items():
        description = f"{line.help[0].upper()}{line.help[1:]}." if line.description == "" else line.description
        command = commands.add_parser(name, help=line.help, description=description)
        command.set_defaults(parser=command)
        for add in line.arguments:
            add(command)
        if line.actions is not None:
            _add(command, "action", line.actions)
