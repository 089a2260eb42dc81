"""The command line: `cacheyd serve`, and the tools beside it."""

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial

from cacheyd import __version__
from cacheyd.settings import load as config
from cacheyd.settings.settings import SETTINGS, ConfigError, Settings
from cacheyd.settings.show import show
from cacheyd.terminal import images

log = logging.getLogger(__name__)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cacheyd", description="A pull-through cache for container registries.")
    parser.add_argument("--version", action="version", version=f"cacheyd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the cache", description="Runs the cache until SIGTERM or SIGINT.")
    settings = commands.add_parser("config", help="check or show the settings")
    actions = settings.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="say whether the settings can be used")
    show = actions.add_parser("show", help="print each setting and where it comes from, secrets masked")
    for command in (serve, check, show):
        _add_settings(command)
    _add_tools(commands)
    for command in (*commands.choices.values(), *actions.choices.values()):
        command.set_defaults(parser=command)
    return parser


def _add_tools(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    def add(name: str, text: str) -> argparse.ArgumentParser:
        tool = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        _add_place(tool)
        tool.add_argument("--json", action="store_true", help="print JSON")
        return tool

    ls = add("ls", "list the images that are stored")
    ls.add_argument(
        "patterns", nargs="*", metavar="PATTERN", help="image, registry, digest, or a pattern with *; default: all"
    )
    ls.add_argument("--blobs", action="store_true", help="list their manifests and blobs instead")
    add("du", "show what each registry and repository takes")
    rm = add("rm", "remove images, and what only they need")
    rm.add_argument(
        "targets", nargs="*", metavar="IMAGE",
        help="image (without a tag: the whole repository), name@digest, digest, or a pattern with *",
    )  # fmt: skip
    rm.add_argument("--dry-run", action="store_true", help="only say what would go")
    rm.add_argument("--all", action="store_true", help="remove everything")
    gc_ = add("gc", "tidy up: compare index and files, sweep partial files and old tags, keep the bounds")
    gc_.add_argument("--unreferenced", action="store_true", help="also remove blobs without a manifest, unused for an hour")
    add("verify", "read everything that is stored, and drop what does not have its digest")
    add("stats", "show the totals of the store, and the counters of the running cacheyd")
    add("held", "list the tags whose image is too young (min_age), and what is served meanwhile")
    release = add("release", "let an image through although it is too young (min_age)")
    release.add_argument("images", nargs="+", metavar="IMAGE", help="image with its tag, or name@digest")
    for tool in images.add_commands(commands):
        _add_place(tool)


def _add_place(tool: argparse.ArgumentParser) -> None:
    tool.add_argument("--config", metavar="FILE", help="TOML file (environment: CACHEYD_CONFIG)")
    tool.add_argument("--cache-dir", metavar="DIR", help="where the cache lives (environment: CACHE_DIR)")


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", metavar="FILE", help="TOML file (environment: CACHEYD_CONFIG)")
    for setting in SETTINGS:
        if not setting.variables():
            continue
        variables = ", ".join(reversed(setting.variables()))
        action = {"nargs": "?", "const": "true"} if setting.default is False else {}
        text = f"{setting.help} (environment: {variables}; default: {setting.default!r})".replace("%", "%%")
        flag = f"--{setting.name.replace('_', '-')}"
        command.add_argument(flag, dest=setting.name, metavar="VALUE", help=text, **action)  # type: ignore[arg-type]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, 1 (cannot run, or nothing found), 2 (wrong input), or 141 (as SIGPIPE) where
    nobody reads on what it prints.
    """
    try:
        try:
            args = _parsed(sys.argv[1:] if arguments is None else arguments)
            if args.command != "serve":
                return _run(args)
        finally:
            # Here, and not at the end of Python, where a failure is told with a traceback.
            print(end="", flush=True)
    except BrokenPipeError:
        _let_go()
        return 128 + signal.SIGPIPE
    return _run(args)


def _let_go() -> None:
    """Python flushes once more at its end."""
    with open(os.devnull, "wb") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere.fileno(), stream.fileno())


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """What was typed. What is wrong about it is told with the usage of its own command."""
    parser = _parser()
    args, unknown = parser.parse_known_args(arguments)
    own = args.parser if arguments[0] == args.command else parser
    if unknown:
        own.error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.command == "rm" and bool(args.targets) == args.all:
        own.error("name what to remove, or give --all")
    return args


def _run(args: argparse.Namespace) -> int:
    load = partial(config.load, file=args.config, flags=vars(args))
    try:
        settings = load()
        if args.command == "config":
            from cacheyd.proxy.outbound.trust import check_files  # noqa: PLC0415

            check_files(settings)
    except ConfigError as error:
        print(f"cacheyd: {error}", file=sys.stderr)
        return 2
    if args.command == "config":
        if args.action == "show":
            print(show(settings))
            return 0
        for warning in settings.warnings:
            print(f"cacheyd: warning: {warning}", file=sys.stderr)
        return _check_helpers(settings) or _check_directory(settings)
    if args.command in ("warm", "export", "import"):
        from cacheyd.terminal import session  # noqa: PLC0415

        return session.run(args, settings)
    if args.command != "serve":
        from cacheyd.terminal import tools  # noqa: PLC0415

        return tools.run(args, settings)
    return asyncio.run(_serve(settings, load))


def _check_helpers(settings: Settings) -> int:
    from cacheyd.upstream.login_sources import missing  # noqa: PLC0415

    lines = missing(settings)
    for line in lines:
        print(f"cacheyd: {line}", file=sys.stderr)
    return 1 if lines else 0


def _check_directory(settings: Settings) -> int:
    from cacheyd.store.check import check_directory  # noqa: PLC0415

    try:
        check_directory(settings.cache_dir)
    except OSError as error:
        print(
            f"cacheyd: cache_dir: nothing could be kept in {settings.cache_dir}:"
            f" {error.filename or settings.cache_dir}: {error.strerror or error}",
            file=sys.stderr,
        )
        return 1
    print("the settings can be used")
    return 0


async def _serve(settings: Settings, load: Callable[[], Settings]) -> int:
    # mitmproxy takes most of a second to import: not for --help, --version and wrong input.
    from cacheyd.observe import logs  # noqa: PLC0415
    from cacheyd.proxy.daemon import Daemon  # noqa: PLC0415

    access_log = logs.setup(debug=settings.debug)
    try:
        daemon = Daemon(settings, load, access_log)
    except ConfigError as error:
        print(f"cacheyd: {error}", file=sys.stderr)
        return 2
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, daemon.stop)
    # What is there now lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    return await daemon.run()
