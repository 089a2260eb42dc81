"""The one table of settings: file, environment and flags make a frozen `Settings`.

Later wins: default, file (`--config` or CACHEYD_CONFIG, TOML), environment, flag. Anything that cannot be used stops the
start with one line that names where it stands, the key, the value and what was expected.
"""

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cacheyd.errors import RequestError
from cacheyd.reference import DOCKER_HUB, canonical_registry

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)(ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class ConfigError(Exception):
    """One line that says which setting cannot be used, and why."""


def parse_duration(value: object) -> float:
    """Seconds from `"90s"`, `"5m"`, `"1h30m"`, `"7d"` or a number of seconds; raises ValueError for the rest."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    if isinstance(value, str) and _DURATION.fullmatch(value):
        return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(value))
    raise ValueError('a duration such as "90s", "5m", "1h30m" or "7d"')


def _integer(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"\d{1,18}", value):
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise ValueError(f"a whole number from {low} to {high}")

    return parse


def _text(value: object) -> str:
    if isinstance(value, str) and value.isprintable():
        return value
    raise ValueError("a text")


def _directory(value: object) -> Path:
    if isinstance(value, str) and value and value.isprintable():
        return Path(value).expanduser().absolute()
    raise ValueError("a directory")


def _readable_file(value: object) -> Path:
    path = _directory(value)
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise ValueError(f"a file that can be read ({error.strerror})") from None


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    known = {
        "1": True,
        "true": True,
        "yes": True,
        "on": True,
        "0": False,
        "false": False,
        "no": False,
        "off": False,
        "": False,
    }
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    raise ValueError("true or false")


def _registry_name(value: object) -> str:
    if value == "":
        return ""
    try:
        return canonical_registry(_text(value))
    except RequestError:
        raise ValueError("a registry: host or host:port") from None


def _base_url(value: object) -> str:
    url = urlsplit(_text(value))
    try:
        ok = url.scheme in ("http", "https") and url.hostname and (url.port is None or url.port > 0)
    except ValueError:
        ok = False
    if not ok or url.username or url.password or url.query or url.fragment:
        raise ValueError("a URL such as https://registry.example or http://host:5000/path")
    return _text(value).rstrip("/")


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of the table. `env` are the variables that set it, the first one that is set wins."""

    name: str
    parse: Callable[[object], Any]
    default: object
    help: str
    env: tuple[str, ...] = ()

    def variables(self) -> tuple[str, ...]:
        """Each environment variable that sets it."""
        return (f"CACHEYD_{self.name.upper()}", *self.env)


SETTINGS: tuple[Setting, ...] = (
    Setting("host", _text, "", "address to listen on; empty means all, IPv4 and IPv6"),
    Setting("port", _integer(1, 65535), 3000, "port to listen on", ("PORT",)),
    Setting("cache_dir", _directory, "/tmp/cacheyd", "where the cache lives; created if missing", ("CACHE_DIR",)),  # noqa: S108
    Setting("debug", _switch, False, "log more; never credentials", ("DEBUG",)),
    Setting("default_registry", _registry_name, "", "registry for clients that send no ns and no host in the path"),
    Setting("tag_ttl", parse_duration, "5m", "how long a tag is served before upstream is asked again; never for latest"),
    Setting("stale_if_error", parse_duration, "7d", "how long the last known tag is served while upstream is failing"),
    Setting("connect_timeout", parse_duration, "10s", "deadline for connecting to an upstream"),
    Setting("head_timeout", parse_duration, "20s", "deadline for the head of an upstream's response"),
    Setting("progress_timeout", parse_duration, "30s", "a body that stands still for so long is broken, either way"),
    Setting("retries", _integer(0, 100), 5, "how often a broken upstream body is resumed"),
    Setting("grace", parse_duration, "20s", "time for running transfers after SIGTERM"),
)

REGISTRY_SETTINGS: tuple[Setting, ...] = (
    Setting("upstream", _base_url, "", "base URL of the origin; default https://<registry>"),
    Setting("ca_file", _readable_file, None, "PEM file of certificate authorities to trust besides the public ones"),
)


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """How one registry is reached. `configured` says that the operator named it, so its address is trusted."""

    upstream: str
    ca_file: Path | None = None
    configured: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings. Durations are in seconds."""

    host: str = ""
    port: int = 3000
    cache_dir: Path = Path("/tmp/cacheyd")  # noqa: S108
    debug: bool = False
    default_registry: str = ""
    tag_ttl: float = 300.0
    stale_if_error: float = 7 * 86400.0
    connect_timeout: float = 10.0
    head_timeout: float = 20.0
    progress_timeout: float = 30.0
    retries: int = 5
    grace: float = 20.0
    registries: Mapping[str, RegistrySettings] = field(default_factory=dict)

    def registry(self, name: str) -> RegistrySettings:
        """How `name` (canonical) is reached: as configured, else over https at its own address."""
        if found := self.registries.get(name):
            return found
        return RegistrySettings(_default_upstream(name))


def _default_upstream(registry: str) -> str:
    return "https://registry-1.docker.io" if registry == DOCKER_HUB else f"https://{registry}"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None


def _parse(setting: Setting, value: object, where: str, key: str) -> Any:
    try:
        return setting.parse(value)
    except ValueError as error:
        raise ConfigError(f"{where}: {key} = {value!r}: expected {error}") from None


def _check_keys(table: object, known: set[str], where: str, prefix: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: {prefix.rstrip('.')}: expected a table")
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: {prefix}{key}: there is no such setting; known: {', '.join(sorted(known))}")
    return table


def _parse_registries(table: object, where: str) -> dict[str, RegistrySettings]:
    if not isinstance(table, dict):
        raise ConfigError(f'{where}: registries: expected tables such as [registries."ghcr.io"]')
    registries = {}
    for ns, raw in table.items():
        try:
            name = canonical_registry(ns)
        except RequestError:
            raise ConfigError(f'{where}: registries."{ns}": expected a registry: host or host:port') from None
        prefix = f'registries."{ns}".'
        row = _check_keys(raw, {setting.name for setting in REGISTRY_SETTINGS}, where, prefix)
        values = {s.name: _parse(s, row[s.name], where, prefix + s.name) for s in REGISTRY_SETTINGS if s.name in row}
        values.setdefault("upstream", _default_upstream(name))
        registries[name] = RegistrySettings(configured=True, **values)
    return registries


def _is_set(environ: Mapping[str, str], name: str) -> bool:
    # Kubernetes sets CACHEYD_PORT=tcp://10.0.0.1:3000 in every pod beside a Service called cacheyd.
    return bool(environ.get(name)) and not (name == "CACHEYD_PORT" and environ[name].startswith("tcp://"))


def load(
    *,
    file: str | None = None,
    environ: Mapping[str, str] = os.environ,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """The settings in force; raises ConfigError with one line where something cannot be used."""
    values = {setting.name: _parse(setting, setting.default, "default", setting.name) for setting in SETTINGS}
    registries: dict[str, RegistrySettings] = {}
    if path := file or environ.get("CACHEYD_CONFIG"):
        table = _check_keys(_read_file(Path(path)), {s.name for s in SETTINGS} | {"registries"}, path, "")
        registries = _parse_registries(table.get("registries", {}), path)
        values |= {s.name: _parse(s, table[s.name], path, s.name) for s in SETTINGS if s.name in table}
    for setting in SETTINGS:
        if variable := next((name for name in setting.variables() if _is_set(environ, name)), None):
            values[setting.name] = _parse(setting, environ[variable], "environment", variable)
    for setting in SETTINGS:
        if flags and flags.get(setting.name) is not None:
            name = f"--{setting.name.replace('_', '-')}"
            values[setting.name] = _parse(setting, flags[setting.name], "flag", name)
    return Settings(registries=registries, **values)
