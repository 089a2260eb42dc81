"""The command line: `cacheyd serve`."""

import argparse
import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Sequence

from cacheyd import __version__, config
from cacheyd.config import SETTINGS, ConfigError, Settings

log = logging.getLogger(__name__)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cacheyd", description="A pull-through cache for container registries.")
    parser.add_argument("--version", action="version", version=f"cacheyd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the cache", description="Runs the cache until SIGTERM or SIGINT.")
    serve.add_argument("--config", metavar="FILE", help="TOML file (environment: CACHEYD_CONFIG)")
    for setting in SETTINGS:
        variables = ", ".join(reversed(setting.variables()))
        action = {"action": "store_const", "const": "true"} if setting.default is False else {"metavar": "VALUE"}
        text = f"{setting.help} (environment: {variables}; default: {setting.default!r})".replace("%", "%%")
        serve.add_argument(f"--{setting.name.replace('_', '-')}", dest=setting.name, help=text, **action)  # type: ignore[arg-type]
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, 1 (cannot run) or 2 (wrong input)."""
    args = _parser().parse_args(arguments)
    try:
        settings = config.load(file=args.config, flags=vars(args))
    except ConfigError as error:
        print(f"cacheyd: {error}", file=sys.stderr)
        return 2
    return asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    # mitmproxy takes most of a second to import: not for --help, --version and wrong input.
    from cacheyd import logs  # noqa: PLC0415
    from cacheyd.proxy.daemon import Daemon  # noqa: PLC0415

    access_log = logs.setup(debug=settings.debug)
    daemon = Daemon(settings, access_log)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, daemon.stop)
    # What is there now lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    return await daemon.run()
