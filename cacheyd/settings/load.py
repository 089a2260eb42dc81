"""Reads the settings from file, environment and flags.

A later source overrides an earlier one: default, file (`--config` or CACHEYD_CONFIG, TOML), environment, flag. A wrong value
stops the start with one line: the source, the key, the value and the expected form.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.registries import canonical_registry
from cacheyd.settings.doubts import doubts
from cacheyd.settings.environment import is_set
from cacheyd.settings.hints import hint_for, printable
from cacheyd.settings.settings import DEFAULTS, GLOBAL, PER_REGISTRY, ConfigError, RegistrySettings, Setting, Settings


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {str(error).partition(chr(10))[0]}") from None


_URL_LOGIN = re.compile(r"//[^/@\s]*@")


class _Loader:
    """Parses values, and remembers the source of each in `origins`."""

    def __init__(self) -> None:
        self.origins: dict[str, str] = {}

    def value(self, setting: Setting, raw: object, where: str, key: str, shown: str = "") -> Any:
        try:
            parsed = setting.parse(raw)
        except ValueError as error:
            value = "…" if setting.secret else _URL_LOGIN.sub("//…@", repr(raw))
            raise ConfigError(f"{where}: {shown or key} = {value}: expected {error}") from None
        self.origins[key] = where
        return parsed

    def table(self, raw: object, known: tuple[Setting, ...], where: str, prefix: str) -> dict[str, Any]:
        """The parsed values of a table of the file."""
        if not isinstance(raw, dict):
            raise ConfigError(f"{where}: {prefix.rstrip('.')}: expected a table")
        by_name = {setting.name: setting for setting in known}
        for key in raw:
            if key not in by_name:
                hint = hint_for(key, by_name, top=not prefix)
                if prefix.startswith("registries.") and isinstance(raw[key], dict):
                    hint = 'the name of a registry is written in quotes: [registries."ghcr.io"]'
                raise ConfigError(f"{where}: {prefix}{printable(key)}: there is no such setting here; {hint}")
        return {name: self.value(by_name[name], found, where, prefix + name) for name, found in raw.items()}

    def registries(self, raw: object, where: str, defaults: dict[str, Any]) -> dict[str, RegistrySettings]:
        """The settings of each configured registry: its own values override the defaults."""
        if not isinstance(raw, dict):
            raise ConfigError(f'{where}: registries: expected tables such as [registries."ghcr.io"]')
        found = {}
        for ns, table in raw.items():
            prefix = f'registries."{ns}".'
            try:
                name = canonical_registry(ns)
            except RequestError:
                raise ConfigError(f"{where}: {prefix.rstrip('.')}: expected a registry: host or host:port") from None
            if name in found:
                raise ConfigError(f"{where}: {prefix.rstrip('.')}: {name} is configured twice")
            row = defaults | self.table(table, PER_REGISTRY, where, prefix)
            row["tag_ttls"] = _with_latest(row["tag_ttls"])
            found[name] = _registry(row, where, prefix)
        return found

    def overrides(self, known: tuple[Setting, ...], environ: Mapping[str, str], flags: Mapping[str, object]) -> dict[str, Any]:
        """The parsed values that environment and flags set."""
        found = {}
        for setting in known:
            if variable := next((name for name in setting.variables() if is_set(environ, name)), None):
                found[setting.name] = self.value(setting, environ[variable], "environment", setting.key, variable)
            if flags.get(setting.name) is not None:
                flag = f"--{setting.name.replace('_', '-')}"
                found[setting.name] = self.value(setting, flags[setting.name], "flag", setting.key, flag)
        return found


def _with_latest(ttls: tuple[tuple[str, float], ...]) -> tuple[tuple[str, float], ...]:
    """Appends `latest` with 0 seconds: cacheyd asks upstream each time, unless an earlier pattern covers `latest`."""
    return ttls if ("latest", 0.0) in ttls else (*ttls, ("latest", 0.0))


def _registry(values: dict[str, Any], where: str, prefix: str) -> RegistrySettings:
    found = RegistrySettings(configured=True, **values)
    if found.auth == "credentials":
        secrets = [s for s in (found.password, found.password_file, found.password_env) if s]
        sources = [s for s in (found.credential_helper, found.credential_command, found.auth_file) if s]
        own = bool(found.username or secrets)
        if len(sources) + own != 1 or (own and not (found.username and len(secrets) == 1)):
            raise ConfigError(
                f'{where}: {prefix}auth = "credentials": expected one of credential_helper, credential_command, auth_file, and'
                " username with one of password, password_file, password_env"
            )
    if found.client_key and not found.client_cert:
        raise ConfigError(f"{where}: {prefix}client_key: expected client_cert beside it")
    return found


def load(
    *,
    file: str | None = None,
    environ: Mapping[str, str] = os.environ,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """The settings in force. Raises ConfigError with one line if a value is wrong."""
    loader = _Loader()
    flags = flags or {}
    values = {s.name: loader.value(s, s.default, "default", s.key) for s in GLOBAL}
    defaults = {s.name: loader.value(s, s.default, "default", s.key) for s in DEFAULTS}
    raw_registries: object = {}
    path = file or environ.get("CACHEYD_CONFIG") or ""
    if path:
        raw = _read_file(Path(path))
        raw_registries = raw.pop("registries", {})
        defaults |= loader.table(raw.pop("defaults", {}), DEFAULTS, path, "defaults.")
        values |= loader.table(raw, GLOBAL, path, "")
    values |= loader.overrides(GLOBAL, environ, flags)
    defaults |= loader.overrides(DEFAULTS, environ, flags)
    defaults["tag_ttls"] = _with_latest(defaults["tag_ttls"])
    registries = loader.registries(raw_registries, path, defaults)
    if defaults["auth"] == "credentials":
        raise ConfigError(f'{loader.origins["defaults.auth"]}: auth = "credentials": expected in [registries."…"] only')
    if (values["tls_key"] or values["client_ca"]) and not values["tls_cert"]:
        raise ConfigError("tls_key, client_ca: expected tls_cert beside them")
    return Settings(
        defaults=RegistrySettings(**defaults),
        registries=registries,
        origins=loader.origins,
        warnings=tuple(doubts(values, environ, registries)),
        **values,
    )
