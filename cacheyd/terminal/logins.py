"""The logins for the registries: the login that the user typed, or the logins of an auth file."""

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
    """The typed login, for each image. Raises UsageError for images of several registries: only one may see the login."""
    registries = sorted({image.registry for image in images})
    if len(registries) > 1:
        raise UsageError(f"--username is for one registry, and these are {', '.join(registries)}; use --authfile")
    if not username or ":" in username or not password:
        raise UsageError("--username needs a name without a colon, and a password on standard input (--password-stdin)")
    return {str(image): f"{username}:{password}" for image in images}


def file_logins(images: Sequence[ImageName], path: Path) -> dict[str, str]:
    """The logins for the images in a docker or podman auth file. Runs its credential helpers. Raises UsageError."""
    try:
        return asyncio.run(_file_logins(images, AuthFile.read(path)))
    except HelperError as error:
        raise UsageError(str(error)) from error


async def _file_logins(images: Sequence[ImageName], file: AuthFile) -> dict[str, str]:
    """The logins by the full names of the images. Runs the helper of each registry once."""
    found: dict[str, str] = {}
    for image in images:
        place = image.name if file.is_narrow(image.registry) else image.registry
        if place not in found:
            found[place] = await file.login(place)
    places = {str(image): image.name if file.is_narrow(image.registry) else image.registry for image in images}
    return {name: found[place] for name, place in places.items() if found[place]}


def logins(args: argparse.Namespace, images: Sequence[ImageName]) -> dict[str, str]:
    """The logins for the images, by the full names of the images. Raises UsageError."""
    if args.username is None and not args.password_stdin:
        return file_logins(images, args.authfile) if args.authfile else {}
    if args.authfile:
        raise UsageError("--username and --authfile exclude each other")
    password = sys.stdin.readline().rstrip("\r\n") if args.password_stdin else ""
    return one_login(images, args.username or "", password)
