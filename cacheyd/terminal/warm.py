"""Runs the command `warm` at the terminal."""

import argparse
import sys
from collections.abc import Sequence
from itertools import batched
from pathlib import Path

from cacheyd.admin.image_orders import LAYERS, MAX_LAYERS, Warm
from cacheyd.protocol.images import ImageName
from cacheyd.protocol.platforms import Platform
from cacheyd.terminal.displays import Display, display_for
from cacheyd.terminal.findings import Found
from cacheyd.terminal.images import Call, UsageError, image_names, opened, platforms, shown_source
from cacheyd.terminal.logins import logins
from cacheyd.terminal.workloads import MAX_TEXT, read_images

# The most images, with their logins, in one command: a token has some KiB.
BATCH = 100


def warm(
    call: Call,
    images: Sequence[ImageName],
    platforms: Sequence[Platform] | None,
    logins: dict[str, str],
    display: Display,
    *,
    layers: int = LAYERS,
    referrers: bool = False,
) -> int:
    """Asks the cache to pull images, with `referrers` also signatures and SBOMs. Gives 0 if all are in the cache, else 1."""
    wanted = None if platforms is None else tuple(platforms)
    failed = without = 0
    with display:
        # The images of a whole cluster do not fit into one command.
        for some in batched(images, BATCH):
            known = {name: logins[name] for name in map(str, some) if name in logins}
            ended = False
            for event in call(Warm(some, wanted, known, layers, referrers)):
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


def run_warm(args: argparse.Namespace, call: Call, root: Path) -> int:
    """Runs `cacheyd warm`. Gives the exit code. Raises UsageError, and the errors of `call`."""
    files = [(source, _read_names(source, taken=args.password_stdin)) for source in args.files]
    problems = [f"{source}: {problem}" for source, read in files for problem in read.problems]
    for problem in problems:
        print(f"cacheyd: {problem}", file=sys.stderr)
    names = [*args.images, *(name for _, read in files for name in read.images)]
    if files and not names:
        raise UsageError(
            "no image is named: " + "; ".join(f"{shown_source(source)}: {read.nothing}" for source, read in files)
        )
    images = image_names(names)
    wanted = platforms(args)
    if not 1 <= args.layers <= MAX_LAYERS:
        raise UsageError(f"--layers must be from 1 to {MAX_LAYERS}")
    display = display_for(sys.stdout, as_json=args.json)
    failed = warm(call, images, wanted, logins(args, images), display, layers=args.layers, referrers=args.referrers)
    return failed or int(bool(problems))


def _read_names(source: str, *, taken: bool) -> Found:
    if source == "-" and taken:
        raise UsageError("standard input cannot be both the list and the password")
    try:
        with opened(source) as file:
            data = file.read(MAX_TEXT + 1)
        return read_images(data)
    except OSError as error:
        raise UsageError(f"{shown_source(source)}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{shown_source(source)}: {error}") from error
