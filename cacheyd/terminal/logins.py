"""As whom the registries are asked: the login that was typed, or those of an auth file."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from cacheyd.protocol.images import ImageName
from cacheyd.terminal.images import UsageError
from cacheyd.upstream.auth_files import AuthFile
from cacheyd.upstream.programs import HelperError


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


def logins(args: argparse.Namespace, images: Sequence[ImageName]) -> dict[str, str]:
    """The logins for the images, by their full names. Raises UsageError."""
    if args.username is None and not args.password_stdin:
        return file_logins(images, args.authfile) if args.authfile else {}
    if args.authfile:
        raise UsageError("--username and --authfile exclude each other")
    password = sys.stdin.readline().rstrip("\r\n") if args.password_stdin else ""
    return one_login(images, args.username or "", password)
