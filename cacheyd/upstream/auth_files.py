"""Reads auth files: docker's config.json (its `cli/config/configfile`) and podman's auth.json."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from cacheyd.protocol.bounded_json import parse_object
from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.registries import DOCKER_HUB, canonical_registry
from cacheyd.settings.values import helper_name
from cacheyd.upstream.docker_helpers import docker_login, executable, server_of
from cacheyd.upstream.programs import DEADLINE, HelperError, checked_login, find

# The most bytes of an auth file.
FILE_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class _Entry:
    key: str
    fields: Mapping[str, Any] = field(repr=False)


class AuthFile:
    """docker's config.json or podman's auth.json: logins, and the helpers that have logins."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path = path
        auths, helpers = (value if isinstance(value := content.get(n), dict) else {} for n in ("auths", "credHelpers"))
        self._auths = {_place(key): _Entry(key, entry if isinstance(entry, dict) else {}) for key, entry in auths.items()}
        self._helpers = {_place(key): (key, name) for key, name in helpers.items() if isinstance(name, str) and name}
        store = content.get("credsStore")
        self._store = store if isinstance(store, str) else ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file. Raises HelperError."""
        try:
            with path.open("rb") as file:
                data = file.read(FILE_MAX + 1)
        except OSError as error:
            raise HelperError(f"{path}: cannot be read: {error.strerror}") from None
        if len(data) > FILE_MAX:
            raise HelperError(f"{path}: has more than {FILE_MAX >> 20} MiB")
        try:
            return cls(path, parse_object(data))
        except ValueError as error:
            raise HelperError(f"{path}: {error}") from None

    def helpers(self, registry: str) -> list[str]:
        """The helper that cacheyd can run for a registry: the registry's own helper, or the helper for all registries."""
        if registry in self._helpers:
            return [self._helpers[registry][1]]
        return [self._store] if self._store else []

    def is_narrow(self, registry: str) -> bool:
        """Whether some of the registry's repositories have their own login, as podman can write it."""
        return any(place.startswith(f"{registry}/") for place in self._auths)

    async def login(self, name: str, deadline: float = DEADLINE) -> str:
        """The login for `registry/repository`; empty if there is none. Raises HelperError."""
        registry = name.partition("/")[0]
        if registry in self._helpers:
            key, helper = self._helpers[registry]
            return await self._ask(registry, helper, server_of(registry) if registry == DOCKER_HUB else key, deadline)
        place = max((place for place in self._auths if f"{name}/".startswith(f"{place}/")), key=len, default="")
        login = self._own(place) if place else ""
        # If the store has no entry for this registry, and its program does not exist, then it has no login either.
        if not login and self._store and (place or find(executable(self._store))):
            server = self._auths[place].key if place else server_of(registry)
            return await self._ask(registry, self._store, server, deadline)
        return login

    async def _ask(self, registry: str, helper: str, server: str, deadline: float) -> str:
        try:
            return await docker_login(helper_name(helper), server, deadline)
        except ValueError:
            raise HelperError(f"{self.path}: the credential helper of {registry} has an invalid name") from None
        except HelperError as error:
            raise HelperError(f"{self.path}: the credential helper of {registry}: {error}") from None

    def _own(self, place: str) -> str:
        """The login in the file itself. Raises HelperError."""
        fields = self._auths[place].fields
        if fields.get("identitytoken"):
            raise HelperError(f"{self.path}: the login of {place} is an identity token, which cacheyd cannot use")
        try:
            login = base64.b64decode(str(fields.get("auth") or ""), validate=True).decode().rstrip("\0")
        except (binascii.Error, ValueError):
            login = "?"
        if login and ":" not in login:
            raise HelperError(f"{self.path}: the login of {place} is not base64 of name:password")
        if not login and fields.get("username"):
            login = f"{fields['username']}:{fields.get('password') or ''}"
        name, _, password = login.partition(":")
        return checked_login(f"{self.path}: {place}", name, password) if login else ""


def _place(key: str) -> str:
    """The place that a key of `auths` means: a registry, or (podman) a part of a registry. Docker writes its own as a URL."""
    host, _, path = key.removeprefix("https://").removeprefix("http://").rstrip("/").partition("/")
    try:
        registry = canonical_registry(host)
    except RequestError:
        return key
    return registry if not path or path in ("v1", "v2") else f"{registry}/{path}"
