"""Programs that give logins, and files that name them: docker's credential helpers, kubelet's credential providers, and
docker's config.json.

Sources: https://github.com/docker/docker-credential-helpers (the protocol of `get`),
https://kubernetes.io/docs/reference/config-api/kubelet-credentialprovider.v1/ and docker's `cli/config/configfile`.
A program is run without a shell, in a session of its own, with this process's environment. Logins are `user:password`.
"""

import asyncio
import base64
import binascii
import contextlib
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

from cacheyd.protocol.bounded_json import parse_object
from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.registries import DOCKER_HUB, canonical_registry
from cacheyd.settings.values import helper_name

# What a program may write: to standard output, and what of its errors is looked at (bytes).
OUTPUT_MAX, ERRORS_MAX = 64 << 10, 4 << 10
# An auth file (bytes), and a login out of any of them (characters).
FILE_MAX, LOGIN_MAX = 1 << 20, 16 << 10
# How long one run may take (seconds), and how long after its end what a child of it still holds open is waited for.
DEADLINE, LINGER = 10.0, 0.5
# How long an answer holds that does not say (seconds).
LIFE = 300.0
# As which docker's own registry is known to helpers and in auth files.
DOCKER_SERVER = "https://index.docker.io/v1/"
PROVIDER = "credentialprovider.kubelet.k8s.io/v1"
# Of a program's errors, how much is looked at for secrets, and the most of it that goes into the log (characters).
_LOOKED_AT, _SAID = 1000, 300
_NOT_FOUND = "credentials not found"
_TOKEN_USER = "<token>"  # noqa: S105
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
# Words that a secret follows, and words that are long enough to be one.
_NAMED = re.compile(
    r"""(?i)((?:pass\w*|pwd|secret\w*|token\w*|key\w*|auth\w*|credential\w*)["']?[:=] ?(?:(?:bearer|basic) )?"""
    r"""|(?:password|passwd|pwd|secret|token|key|bearer|basic) (?:(?:password|secret|token|key|is|was) )*)\S+"""
)
_LONG = re.compile(r"[A-Za-z0-9+/=_.~-]{20,}")
_USER_INFO = re.compile(r"//[^/@\s]*@")
_SECRET_NAMES = ("PASS", "SECRET", "TOKEN", "KEY", "AUTH", "CREDENTIAL")


class HelperError(Exception):
    """A program or a file that gave no login; the message is one line without secrets."""


def executable(helper: str) -> str:
    """The program of one of docker's credential helpers."""
    return f"docker-credential-{helper}"


def find(program: str) -> str | None:
    """Where a program is, on PATH unless it has a path."""
    return shutil.which(program)


def server_of(registry: str) -> str:
    """The server whose login a helper is asked for."""
    return DOCKER_SERVER if registry == DOCKER_HUB else registry


# Running


async def run(argv: Sequence[str], data: bytes, deadline: float = DEADLINE) -> bytes:
    """What a program writes when it reads `data`. Raises HelperError.

    One that takes longer than `deadline` seconds, writes more than 64 KiB or fails is killed with its children.
    """
    name = os.path.basename(argv[0])
    path = find(argv[0])
    if path is None:
        raise HelperError(f"{name} cannot be found, or is not executable")
    loop = asyncio.get_running_loop()
    try:
        transport, program = await loop.subprocess_exec(partial(_Program, name), path, *argv[1:], start_new_session=True)
    except (OSError, ValueError) as error:
        raise HelperError(f"{name} cannot be run: {getattr(error, 'strerror', None) or error}") from None
    ok = False
    try:
        stdin = cast(asyncio.WriteTransport, transport.get_pipe_transport(0))
        stdin.write(data)
        stdin.close()
        async with asyncio.timeout(deadline):
            await program.ended
        code = transport.get_returncode()
        if code:
            said = clean(program.errors, program.output) or clean(program.output)
            raise HelperError(f"{name} failed: {_status(code)}{f': {said}' if said else ''}")
        ok = True
        return bytes(program.output)
    except TimeoutError:
        said = clean(program.errors, program.output)
        raise HelperError(f"{name} did not end within {deadline:g} s{f': {said}' if said else ''}") from None
    finally:
        if not ok:
            await _kill(transport.get_pid(), program.exited)
        transport.close()


async def _kill(pid: int, exited: asyncio.Event) -> None:
    """Kills a program and its children, and waits until it is gone: `close` would read its status away."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            await exited.wait()


def _status(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"status {code}"


class _Program(asyncio.SubprocessProtocol):
    """Collects what a program writes. `ended` is done when it has ended, and fails if it writes too much."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.output, self.errors = bytearray(), bytearray()
        self.exited = asyncio.Event()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd != 1:
            self.errors += data[: ERRORS_MAX - len(self.errors)]
        elif len(self.output) + len(data) <= OUTPUT_MAX:
            self.output += data
        elif not self.ended.done():
            self.ended.set_exception(HelperError(f"{self._name} wrote more than {OUTPUT_MAX >> 10} KiB"))

    def process_exited(self) -> None:
        self.exited.set()
        # An agent that it left running may hold its output open for good.
        asyncio.get_running_loop().call_later(LINGER, self._end)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


def clean(said: bytes | bytearray, secret: bytes | bytearray = b"") -> str:
    """The beginning of what a program said, as one line, without what may be secret: what it wrote as its answer, values
    of the environment's secrets, what follows words such as `password`, and long words.
    """
    text = " ".join(bytes(said).decode("utf-8", "replace").split())
    text = "".join(char if char.isprintable() else "?" for char in text)
    hidden = {value for name, value in os.environ.items() if any(word in name.upper() for word in _SECRET_NAMES)}
    hidden.update(re.split(r'[\s"\',:{}\[\]]+', bytes(secret).decode("utf-8", "replace")))
    for value in sorted((value for value in hidden if len(value) > 3), key=len, reverse=True):
        text = text.replace(value, "…")
    text = _USER_INFO.sub("//…@", text)
    text = _NAMED.sub(r"\1…", text[:_LOOKED_AT])
    return _LONG.sub("…", text)[:_SAID]


# docker's credential helpers


async def docker_login(helper: str, server: str, deadline: float = DEADLINE) -> str:
    """The login that a helper of docker's has for a server, empty if it has none. Raises HelperError."""
    name = executable(helper)
    try:
        output = await run([name, "get"], server.encode(), deadline)
    except HelperError as error:
        if _NOT_FOUND in str(error):
            return ""
        raise
    answer = {key.lower(): value for key, value in _object(name, output).items()}
    username, secret = answer.get("username"), answer.get("secret")
    if username == _TOKEN_USER:
        raise HelperError(f"{name} gave an identity token, which cacheyd cannot use")
    return _checked(name, username, secret)


def _object(name: str, output: bytes) -> dict[str, Any]:
    try:
        return parse_object(output)
    except ValueError as error:
        raise HelperError(f"{name}: its answer is {error}") from None


def _checked(name: str, username: object, password: object) -> str:
    """A login of these two. A line break or a colon in the name would make it another one."""
    if not (isinstance(username, str) and isinstance(password, str)):
        raise HelperError(f"{name}: its answer has no name and password")
    login = f"{username}:{password}"
    if ":" in username or len(login) > LOGIN_MAX or any(ord(char) < 32 or 0xD800 <= ord(char) < 0xE000 for char in login):
        raise HelperError(f"{name}: its answer has a name or a password that cannot be sent")
    return login if login != ":" else ""


# kubelet's credential providers


@dataclass(frozen=True, slots=True)
class Provided:
    """What a provider answered: logins by pattern of image, for how many seconds (None: it does not say).

    `of_image` says that it is for the image that was asked for alone.
    """

    logins: Mapping[str, str] = field(repr=False)
    life: float | None
    of_image: bool

    def login(self, image: str) -> str:
        """The login for an image: that of the longest pattern that matches, without wildcards first; empty for none."""
        found = [pattern for pattern in self.logins if image_matches(pattern, image)]
        return self.logins[max(found, key=lambda p: (len(p), "*" not in p))] if found else ""


async def provided_login(argv: Sequence[str], image: str, deadline: float = DEADLINE) -> Provided:
    """What a credential provider answers for an image (`registry/repository`). Raises HelperError."""
    request = {"apiVersion": PROVIDER, "kind": "CredentialProviderRequest", "image": image}
    output = await run(argv, json.dumps(request).encode(), deadline)
    return parse_provided(os.path.basename(argv[0]), output)


def parse_provided(name: str, output: bytes) -> Provided:
    """A CredentialProviderResponse of v1. Raises HelperError."""
    answer = _object(name, output)
    if (answer.get("apiVersion"), answer.get("kind")) != (PROVIDER, "CredentialProviderResponse"):
        raise HelperError(f"{name}: its answer is no CredentialProviderResponse of {PROVIDER}")
    kind = answer.get("cacheKeyType")
    if kind not in ("Image", "Registry", "Global"):
        raise HelperError(f"{name}: its answer has no cacheKeyType Image, Registry or Global")
    auth = answer.get("auth")
    if not isinstance(auth, dict | None):
        raise HelperError(f"{name}: its answer has an auth that is no object")
    logins = {}
    for pattern, entry in (auth or {}).items():
        fields = entry if isinstance(entry, dict) else {}
        logins[pattern] = _checked(name, fields.get("username", ""), fields.get("password", ""))
    return Provided(logins, _seconds(name, answer.get("cacheDuration")), kind == "Image")


def _seconds(name: str, value: object) -> float | None:
    """Go's notation of a duration (`12h0m0s`)."""
    if value is None:
        return None
    text = value if isinstance(value, str) and len(value) <= 100 else ""
    if text == "0":
        return 0.0
    parts = _PART.findall(text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not parts or "".join(number + unit for number, unit in parts) != text or not math.isfinite(seconds):
        raise HelperError(f"{name}: its answer has a cacheDuration that is none, such as 12h0m0s")
    return seconds


def image_matches(pattern: str, image: str) -> bool:
    """Whether a key of `auth` means this image: the same number of parts of the host, with wildcards in them; the port,
    if the key has one; and its path, of whole components.
    """
    host, _, path = pattern.removeprefix("https://").removeprefix("http://").rstrip("/").partition("/")
    own_host, _, own_path = image.partition("/")
    host, port = _port_of(host)
    own_host, own_port = _port_of(own_host)
    labels, own_labels = host.lower().split("."), own_host.lower().split(".")
    return (
        port in ("", own_port)
        and len(labels) == len(own_labels)
        and all(own == label or fnmatchcase(own, label) for label, own in zip(labels, own_labels, strict=True))
        and f"{own_path}/".startswith(f"{path}/" if path else "")
    )


def _port_of(host: str) -> tuple[str, str]:
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and port.isdigit() else (host, "")


# Auth files


@dataclass(frozen=True, slots=True)
class _Entry:
    key: str
    fields: Mapping[str, Any] = field(repr=False)


class AuthFile:
    """docker's config.json, or podman's auth.json: logins, and the helpers that have them."""

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
        """The helper that may be run for a registry: its own, or that of all."""
        if registry in self._helpers:
            return [self._helpers[registry][1]]
        return [self._store] if self._store else []

    def is_narrow(self, registry: str) -> bool:
        """Whether some of the registry's repositories have a login of their own, as podman writes them."""
        return any(place.startswith(f"{registry}/") for place in self._auths)

    async def login(self, name: str, deadline: float = DEADLINE) -> str:
        """The login for `registry/repository`, empty if there is none. Raises HelperError."""
        registry = name.partition("/")[0]
        if registry in self._helpers:
            key, helper = self._helpers[registry]
            return await self._ask(registry, helper, server_of(registry) if registry == DOCKER_HUB else key, deadline)
        place = max((place for place in self._auths if f"{name}/".startswith(f"{place}/")), key=len, default="")
        login = self._own(place) if place else ""
        # A store that was never used for this registry, and is not there, has no login either.
        if not login and self._store and (place or find(executable(self._store))):
            server = self._auths[place].key if place else server_of(registry)
            return await self._ask(registry, self._store, server, deadline)
        return login

    async def _ask(self, registry: str, helper: str, server: str, deadline: float) -> str:
        try:
            return await docker_login(helper_name(helper), server, deadline)
        except ValueError:
            raise HelperError(f"{self.path}: the credential helper of {registry} has a name that is none") from None
        except HelperError as error:
            raise HelperError(f"{self.path}: the credential helper of {registry}: {error}") from None

    def _own(self, place: str) -> str:
        """The login that stands in the file itself."""
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
        return _checked(f"{self.path}: {place}", name, password) if login else ""


def _place(key: str) -> str:
    """What a key of `auths` is about: a registry, or (podman) a part of one; docker writes its own as a URL."""
    host, _, path = key.removeprefix("https://").removeprefix("http://").rstrip("/").partition("/")
    try:
        registry = canonical_registry(host)
    except RequestError:
        return key
    return registry if not path or path in ("v1", "v2") else f"{registry}/{path}"
