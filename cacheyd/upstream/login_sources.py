"""The sources of stored logins: the settings, an auth file, a program."""

import asyncio
import logging
import os
from collections.abc import Mapping

from cacheyd.protocol.reference import Reference
from cacheyd.settings.settings import ConfigError, RegistrySettings, Settings
from cacheyd.upstream import programs
from cacheyd.upstream.auth_files import AuthFile
from cacheyd.upstream.bases import server_name
from cacheyd.upstream.credential_providers import Provided, provided_login
from cacheyd.upstream.docker_helpers import docker_login, executable, server_of
from cacheyd.upstream.port import UpstreamBroken
from cacheyd.upstream.programs import HelperError, find

log = logging.getLogger(__name__)


def has_source(registry: RegistrySettings) -> bool:
    """Whether the login comes from a program or an auth file."""
    return registry.auth == "credentials" and bool(
        registry.credential_helper or registry.credential_command or registry.auth_file
    )


def own_login(registry: RegistrySettings) -> str:
    """The login in the settings; empty for anonymous. Raises UpstreamBroken if it cannot be read."""
    if registry.auth != "credentials":
        return ""
    try:
        return f"{registry.username}:{password(registry)}"
    except ConfigError as error:
        log.error("%s", error)
        raise UpstreamBroken("the stored login cannot be read", refused=True) from None


def mark_of(registry: RegistrySettings) -> tuple[int, ...]:
    """The state of the auth file, which shows whether the file has changed; empty if there is no auth file."""
    if registry.auth_file is None:
        return ()
    try:
        found = os.stat(registry.auth_file)
    except OSError:
        return (0,)
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


async def provided_by(settings: Settings, ref: Reference, image: str) -> Provided:
    """Asks the program or file that has the login for an image (`registry/repository`). Raises HelperError."""
    registry, name = settings.registry(ref.registry), image.partition("/")[0]
    deadline = min(programs.DEADLINE, settings.head_timeout)
    if registry.credential_helper:
        login = await docker_login(registry.credential_helper, server_of(name), deadline)
        return Provided({name: login}, None, of_image=False)
    if registry.credential_command:
        return await provided_login(registry.credential_command, image, deadline)
    assert registry.auth_file
    file = await asyncio.to_thread(AuthFile.read, registry.auth_file)
    narrow = file.is_narrow(name) or file.is_narrow(ref.registry)
    login = await file.login(image if narrow else name, deadline)
    if not login and name != ref.registry:
        login = await file.login(f"{ref.registry}/{ref.repository}" if narrow else ref.registry, deadline)
    return Provided({name: login}, None, of_image=narrow)


def missing(settings: Settings) -> list[str]:
    """A line for each program for logins that cannot be found; the settings, or the auth files in them, name the programs."""
    lines = []
    for name, registry in settings.registries.items():
        if not has_source(registry):
            continue
        needed = [executable(registry.credential_helper)] if registry.credential_helper else []
        needed += registry.credential_command[:1]
        if registry.auth_file:
            try:
                found = AuthFile.read(registry.auth_file).helpers(server_name(settings, name))
            except HelperError as error:
                lines.append(f'registries."{name}".auth_file: {error}')
                continue
            needed += map(executable, found)
        lines += [f'registries."{name}": {program} cannot be found' for program in needed if not find(program)]
    return lines


def password(registry: RegistrySettings, environ: Mapping[str, str] = os.environ) -> str:
    """The stored password. Reads it anew each time, so that a rotated secret counts. Raises ConfigError if it is missing."""
    if registry.password_file:
        try:
            return registry.password_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{registry.password_file}: cannot be read: {error}") from None
    if registry.password_env:
        if registry.password_env not in environ:
            raise ConfigError(f"environment variable {registry.password_env} is not set")
        return environ[registry.password_env]
    return registry.password
