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

from cacheyd.settings import load as config
from cacheyd.settings.settings import ConfigError, Settings
from cacheyd.terminal import arguments

log = logging.getLogger(__name__)


def main(typed: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, 1 (cannot run, or nothing found), 2 (wrong input), or 141 (as for SIGPIPE) if
    the reader of its output has closed the pipe.
    """
    try:
        try:
            args = _parsed(sys.argv[1:] if typed is None else typed)
            if args.command != "serve":
                return _run(args)
        finally:
            # Flush here: at the end of the process, Python would report a failure with a traceback.
            print(end="", flush=True)
    except BrokenPipeError:
        _let_go()
        return 128 + signal.SIGPIPE
    return _run(args)


def _let_go() -> None:
    """Points the output streams to /dev/null: Python flushes them once more at its end."""
    with open(os.devnull, "wb") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere.fileno(), stream.fileno())


def _parsed(typed: Sequence[str]) -> argparse.Namespace:
    """The parsed command line. Errors show the usage of the typed command."""
    parser = arguments.parser()
    args, unknown = parser.parse_known_args(typed)
    own = args.parser if typed[0] == args.command else parser
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
    # Each command imports only the modules that it needs.
    match args.command:
        case "serve":
            return asyncio.run(_serve(settings, load))
        case "config":
            from cacheyd.terminal import configuration  # noqa: PLC0415

            return configuration.run(args, settings)
        case "warm" | "export" | "import":
            from cacheyd.terminal import session  # noqa: PLC0415

            return session.run(args, settings)
        case _:
            from cacheyd.terminal import tools  # noqa: PLC0415

            return tools.run(args, settings)


async def _serve(settings: Settings, load: Callable[[], Settings]) -> int:
    # The import of mitmproxy takes most of a second: --help, --version and wrong input must not wait for it.
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
    # The objects of now live as long as the process: the collector does not need to look at them again.
    gc.collect()
    gc.freeze()
    return await daemon.run()
