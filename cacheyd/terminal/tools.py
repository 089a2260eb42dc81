"""Runs the tools that show the cache or clean it up: in the running cacheyd, or on the directory itself."""

import os
import signal
import sys
from argparse import Namespace

from cacheyd.admin.control import CommandError
from cacheyd.admin.orders import Du, Gc, Held, Ls, Order, Release, Rm, Stats, Verify
from cacheyd.admin.selection import parse_target
from cacheyd.protocol.images import parse_image
from cacheyd.settings.settings import Settings
from cacheyd.terminal.asking import ToolError, carry_out
from cacheyd.terminal.view import View

# The orders without arguments, by their command.
_BARE: dict[str, type[Order]] = {order.command: order for order in (Du, Held, Stats, Verify)}


def run(args: Namespace, settings: Settings) -> int:
    """Runs a tool. Gives the exit code: 0, 1 (failed, or nothing found) or 2 (wrong names)."""
    try:
        order = _order(args)
    except ValueError as error:
        print(f"cacheyd: {error}", file=sys.stderr)
        return 2
    view = View(args.command, as_json=args.json, asked=isinstance(order, Ls) and bool(order.patterns))
    try:
        carry_out(settings, order, view.take)
    except (ToolError, CommandError) as error:
        view.end_progress()
        print(f"cacheyd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        view.end_progress()
        return 128 + signal.SIGINT
    view.end_progress()
    _write(view.text())
    return view.code()


def _order(args: Namespace) -> Order:
    """The order for the typed command. Raises ValueError."""
    match args.command:
        case "ls":
            return Ls(tuple(map(parse_target, args.patterns)), args.blobs)
        case "rm":
            return Rm(tuple(map(parse_target, args.targets)), args.dry_run, args.all)
        case "gc":
            return Gc(args.unreferenced)
        case "release":
            return Release(tuple(map(parse_image, args.images)))
    return _BARE[args.command]()


def _write(text: str) -> None:
    """Writes the text to standard output. Its reader can close a pipe at any time."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output once more at its end, and must not fail then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
