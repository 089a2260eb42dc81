"""The command `config`: checks whether the settings can be used, or shows them."""

import argparse
import sys

from cacheyd.settings.settings import Settings
from cacheyd.settings.show import show
from cacheyd.store.check import check_directory
from cacheyd.upstream.login_sources import missing


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Runs `config check` or `config show`, with settings whose files were checked before. Gives the exit code."""
    if args.action == "show":
        print(show(settings))
        return 0
    for warning in settings.warnings:
        print(f"cacheyd: warning: {warning}", file=sys.stderr)
    return _check_helpers(settings) or _check_directory(settings)


def _check_helpers(settings: Settings) -> int:
    lines = missing(settings)
    for line in lines:
        print(f"cacheyd: {line}", file=sys.stderr)
    return 1 if lines else 0


def _check_directory(settings: Settings) -> int:
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
