"""The one table of settings: file, environment and flags make a frozen `Settings`.

Later wins: default, file (`--config` or CACHEYD_CONFIG, TOML), environment, flag. Anything that cannot be used stops the
start with one line that names where it stands, the key, the value and what was expected.
"""

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Any

from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.registries import DOCKER_HUB, canonical_registry
from cacheyd.settings import values as parse
from cacheyd.settings.rules import meant_image, parse_ages, parse_pins, parse_rules
from cacheyd.settings.values import Size


class ConfigError(Exception):
    """One line that says which setting cannot be used, and why."""


class Scope(StrEnum):
    """Where a setting may stand."""

    GLOBAL = "global"
    """At the top of the file."""
    DEFAULTS = "defaults"
    """In [defaults], and in [registries."…"] for one registry."""
    REGISTRY = "registry"
    """In [registries."…"] only."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of the table. `env` are further variables that set it; `live` says that SIGHUP can change it."""

    name: str
    parse: Callable[[object], Any]
    default: object
    help: str
    scope: Scope = Scope.GLOBAL
    env: tuple[str, ...] = ()
    live: bool = True
    secret: bool = False

    @property
    def key(self) -> str:
        """Its place in the file."""
        return self.name if self.scope is Scope.GLOBAL else f"{self.scope}.{self.name}"

    def variables(self) -> tuple[str, ...]:
        """The environment variables that set it, the first one that is set wins; none for one registry's own."""
        return () if self.scope is Scope.REGISTRY else (f"CACHEYD_{self.name.upper()}", *self.env)


_D, _R = Scope.DEFAULTS, Scope.REGISTRY

SETTINGS: tuple[Setting, ...] = (
    Setting("host", parse.text, "", "address to listen on; empty means all, IPv4 and IPv6", live=False),
    Setting("port", parse.integer(1, 65535), 3000, "port to listen on", env=("PORT",), live=False),
    Setting(
        "cache_dir", parse.directory, "/tmp/cacheyd", "where the cache lives; created if missing", env=("CACHE_DIR",), live=False
    ),
    Setting("debug", parse.switch, False, "log more; never credentials", env=("DEBUG",)),
    Setting("max_size", parse.size, "", "most that is stored; least recently used objects make room; empty means no limit"),
    Setting("min_free", parse.size, "5%", "what is left free on the disk, in the same way"),
    Setting("low_watermark", parse.share, "90%", "when objects make room, how far down: share of max_size; of min_free as much more"),
    Setting("max_age", parse.duration, "0s", "images that nobody used for so long are removed; 0s means never"),
    Setting("pin", parse_pins, "", "images that are never evicted, as patterns of registry/repository:tag"),
    Setting("durability", parse.choice("fast", "fsync"), "fast", "fsync: an object is on the disk itself before it counts as stored; slower", live=False),
    Setting("scrub_every", parse.duration, "7d", "how often everything stored is read and checked in the background; 0s means never"),
    Setting("scrub_rate", parse.byte_count, "16MiB", "how many bytes a second that reads"),
    Setting("default_registry", parse.registry_name, "", "registry for clients that send no ns and no host in the path"),
    Setting("allow", parse_rules, "", "what may be asked for, as patterns of registries or of registry/repository:tag; empty means anything"),
    Setting("deny", parse_rules, "", "what may not, in the same way; the most specific pattern of both decides, deny if they are alike"),
    Setting("min_ages", parse_ages, "", "min_age by pattern, as in allow; the most specific pattern counts, and before any min_age"),
    Setting("connect_timeout", parse.duration, "10s", "deadline for connecting to an upstream"),
    Setting("head_timeout", parse.duration, "20s", "deadline for the head of an upstream's response"),
    Setting("progress_timeout", parse.duration, "30s", "a body that stands still for so long is broken, either way"),
    Setting("min_rate", parse.byte_count, "1KiB", "a body that brings fewer bytes a second, over progress_timeout, is broken, either way"),
    Setting("retries", parse.integer(0, 100), 5, "how often a broken upstream body is resumed"),
    Setting("grace", parse.duration, "20s", "time for running transfers after SIGTERM"),
    Setting("max_connections", parse.integer(1, 1_000_000), 4096, "most connections of clients; more are refused"),
    Setting("max_flights", parse.integer(1, 100_000), 256, "most objects that are fetched at once; more wait their turn", live=False),
    Setting("flight_memory", parse.byte_count, "128MiB", "memory for the bodies of all that is fetched; less of it makes many at once slower"),
    Setting("finish_abandoned", parse.duration, "10m", "how long a fetch goes on after its last client has left"),
    Setting("max_waiting", parse.integer(1, 1_000_000), 4096, "most clients that wait for upstreams; more get 503"),
    Setting("tls_cert", parse.readable_file, "", "PEM file with the listener's certificate chain; makes it speak TLS", live=False),
    Setting("tls_key", parse.readable_file, "", "PEM file with its key, if that is not in tls_cert", live=False),
    Setting("client_ca", parse.readable_file, "", "PEM file of authorities; clients must have a certificate of one", live=False),
    Setting("tag_ttl", parse.duration, "5m", "how long a tag is served before upstream is asked again", _D),
    Setting("tag_ttls", parse.ttls, "latest=0s", "the same by pattern of tag; the first that matches counts, latest=0s comes last", _D),
    Setting("stale_if_error", parse.duration, "7d", "how long the last known tag is served while upstream is failing", _D),
    Setting("min_age", parse.duration, "0s", "how old an image has to be until a tag leads to it; until then it leads to the one before; 0s means at once", _D),
    Setting("min_age_action", parse.choice("refuse", "allow", "audit"), "refuse", "what is done where none before is known: refuse (403) or allow; audit: nothing is held, only said", _D),
    Setting("min_age_evidence", parse.choice("any", "seen"), "any", "what shows an age: any (how long cacheyd has seen it, or the image's own created) or seen alone", _D),
    Setting("access", parse.choice("open", "verify"), "open", "verify: ask upstream whether this client may read it, on hits too", _D),
    Setting("access_ttl", parse.duration, "5m", "how long upstream's answer to that holds", _D),
    Setting(
        "auth", parse.choice("passthrough", "credentials", "anonymous"), "passthrough",
        "whose login upstream sees: the client's, the stored one, or an anonymous token", _D,
    ),
    Setting("ratelimit_floor", parse.integer(0, 1_000_000), 0, "with fewer pulls left upstream, stale tags are served first", _D),
    Setting("retry_after_max", parse.duration, "5s", "rate limits (429 with Retry-After) that are waited for, in all for one request", _D),
    Setting("max_fetches", parse.integer(1, 100_000), 64, "most requests to one registry at once; more wait their turn", _D),
    Setting("proxy", parse.proxy_url, "", "HTTP(S) proxy to reach upstreams through", _D, secret=True),
    Setting("ca_file", parse.readable_file, "", "PEM file of authorities to trust besides the public ones", _D),
    Setting("insecure_skip_verify", parse.switch, False, "do not check upstream's certificate", _D),
    Setting("upstream", parse.base_urls, "", "base URL of the origin, or several, tried in order; default https://<registry>", _R),
    Setting("client_cert", parse.readable_file, "", "PEM file with a client certificate for upstream", _R),
    Setting("client_key", parse.readable_file, "", "PEM file with its key, if that is not in client_cert", _R),
    Setting("username", parse.text, "", "login for auth = credentials", _R),
    Setting("password", parse.text, "", "its password or token; better in password_file or password_env", _R, secret=True),
    Setting("password_file", parse.readable_file, "", "file that holds the password", _R),
    Setting("password_env", parse.text, "", "environment variable that holds the password", _R),
    Setting("credential_helper", parse.helper_name, "", "one of docker's credential helpers that has the login, such as ecr-login", _R),
    Setting(
        "credential_command", parse.command, "", "credential provider of kubelet's that has the login: program and arguments", _R,
        secret=True,
    ),
    Setting("auth_file", parse.readable_file, "", "docker's config.json with the login, or with the helper that has it", _R),
    Setting("token_realms", parse.base_urls, "", "token services that may see the stored login, besides upstream's own host", _R),
)  # fmt: skip

GLOBAL = tuple(s for s in SETTINGS if s.scope is Scope.GLOBAL)
PER_REGISTRY = tuple(s for s in SETTINGS if s.scope is not Scope.GLOBAL)
DEFAULTS = tuple(s for s in SETTINGS if s.scope is Scope.DEFAULTS)
_BY_NAME = {s.name: s for s in SETTINGS}


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """How one registry is treated. `configured` says that the operator named it, so its address is trusted."""

    upstream: tuple[str, ...] = ()
    configured: bool = False
    tag_ttl: float = 300.0
    tag_ttls: tuple[tuple[str, float], ...] = (("latest", 0.0),)
    stale_if_error: float = 7 * 86400.0
    min_age: float = 0.0
    min_age_action: str = "refuse"
    min_age_evidence: str = "any"
    access: str = "open"
    access_ttl: float = 300.0
    auth: str = "passthrough"
    ratelimit_floor: int = 0
    retry_after_max: float = 5.0
    max_fetches: int = 64
    proxy: str = field(default="", repr=False)
    ca_file: Path | None = None
    insecure_skip_verify: bool = False
    client_cert: Path | None = None
    client_key: Path | None = None
    username: str = ""
    password: str = field(default="", repr=False)
    password_file: Path | None = None
    password_env: str = ""
    credential_helper: str = ""
    credential_command: tuple[str, ...] = field(default=(), repr=False)
    auth_file: Path | None = None
    token_realms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings. Durations are in seconds. `origins` says for each key in the file's notation where it came from;
    `warnings` are lines about what can hardly be meant.
    """

    host: str = ""
    port: int = 3000
    cache_dir: Path = Path("/tmp/cacheyd")
    debug: bool = False
    max_size: Size = field(default_factory=Size)
    min_free: Size = field(default_factory=lambda: Size(share=0.05))
    low_watermark: Size = field(default_factory=lambda: Size(share=0.9))
    max_age: float = 0.0
    pin: tuple[str, ...] = ()
    durability: str = "fast"
    scrub_every: float = 7 * 86400.0
    scrub_rate: int = 16 << 20
    default_registry: str = ""
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    min_ages: tuple[tuple[str, float], ...] = ()
    connect_timeout: float = 10.0
    head_timeout: float = 20.0
    progress_timeout: float = 30.0
    min_rate: int = 1 << 10
    retries: int = 5
    grace: float = 20.0
    max_connections: int = 4096
    max_flights: int = 256
    flight_memory: int = 128 << 20
    finish_abandoned: float = 600.0
    max_waiting: int = 4096
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    defaults: RegistrySettings = RegistrySettings()
    registries: Mapping[str, RegistrySettings] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def registry(self, name: str) -> RegistrySettings:
        """How `name` (canonical) is treated: as configured, else by the defaults."""
        return self.registries.get(name) or self.defaults

    @property
    def has_min_age(self) -> bool:
        """Whether any tag has to wait for the age of its image."""
        rows = (self.defaults, *self.registries.values())
        return any(age for _, age in self.min_ages) or any(row.min_age for row in rows)

    def upstreams(self, name: str) -> tuple[str, ...]:
        """The base URLs of a registry, in the order in which they are tried."""
        if name == DOCKER_HUB:
            return self.registry(name).upstream or ("https://registry-1.docker.io",)
        return self.registry(name).upstream or (f"https://{name}",)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {str(error).partition(chr(10))[0]}") from None


# The tables of the file.
_TABLES = ("defaults", "registries")
_PLACES = {Scope.GLOBAL: "at the top of the file", Scope.DEFAULTS: "in [defaults]", Scope.REGISTRY: 'in [registries."…"]'}


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _nearest(name: str, names: Iterable[str]) -> str:
    """What may have been meant; empty if there is nothing like it."""
    return next(iter(get_close_matches(name.lower(), list(names), 1)), "")


def _hint(key: str, known: Mapping[str, Setting], *, top: bool) -> str:
    """What was meant by a key that is not known in its table."""
    nearest = _nearest(key, [*known, *_BY_NAME, *(_TABLES if top else ())])
    if not nearest:
        return "known: " + ", ".join(sorted(known))
    if nearest in _TABLES:
        return f"did you mean [{nearest}]?"
    question = "" if nearest == key else f"did you mean {nearest}? "
    return f"{question}it belongs {_PLACES[_BY_NAME[nearest].scope]}" if nearest not in known else question.rstrip()


_URL_LOGIN = re.compile(r"//[^/@\s]*@")


class _Loader:
    """Collects values and where they came from."""

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
                hint = _hint(key, by_name, top=not prefix)
                if prefix.startswith("registries.") and isinstance(raw[key], dict):
                    hint = 'the name of a registry is written in quotes: [registries."ghcr.io"]'
                raise ConfigError(f"{where}: {prefix}{_printable(key)}: there is no such setting here; {hint}")
        return {name: self.value(by_name[name], found, where, prefix + name) for name, found in raw.items()}

    def registries(self, raw: object, where: str, defaults: dict[str, Any]) -> dict[str, RegistrySettings]:
        """Each configured registry: its own values over the defaults."""
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
        """What environment and flags say."""
        found = {}
        for setting in known:
            if variable := next((name for name in setting.variables() if _is_set(environ, name)), None):
                found[setting.name] = self.value(setting, environ[variable], "environment", setting.key, variable)
            if flags.get(setting.name) is not None:
                flag = f"--{setting.name.replace('_', '-')}"
                found[setting.name] = self.value(setting, flags[setting.name], "flag", setting.key, flag)
        return found


def _with_latest(ttls: tuple[tuple[str, float], ...]) -> tuple[tuple[str, float], ...]:
    """`latest` is asked for each time, unless a pattern before says otherwise."""
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


def _is_set(environ: Mapping[str, str], name: str) -> bool:
    return bool(environ.get(name)) and not (name.startswith(_PREFIX) and _is_of_service(name, environ[name]))


_PREFIX = "CACHEYD_"
_SERVICE = re.compile(
    r"CACHEYD_(?:\w+_)?SERVICE_(?:HOST|PORT(?:_\w+)?)|CACHEYD_PORT_\w+|CACHEYD_\w+_PORT_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?",
    re.ASCII,
)
_SERVICE_URL = re.compile(r"(?:tcp|udp|sctp)://")


def _is_of_service(name: str, value: str) -> bool:
    """Whether Kubernetes has set it: it does in every pod beside a Service called cacheyd, or cacheyd-something.

    Such as CACHEYD_PORT=tcp://10.0.0.1:3000 and CACHEYD_PORT_3000_TCP_ADDR=10.0.0.1.
    """
    return bool(_SERVICE.fullmatch(name) or (name.endswith("_PORT") and _SERVICE_URL.match(value)))


def _unknown_variables(environ: Mapping[str, str], registries: Mapping[str, RegistrySettings]) -> Iterator[str]:
    """A line for each variable that looks like a setting and is none."""
    shared = [s.name for s in SETTINGS if s.scope is not Scope.REGISTRY]
    known = {"CACHEYD_CONFIG", *(f"{_PREFIX}{name.upper()}" for name in shared)}
    known.update(row.password_env for row in registries.values())
    for name, value in sorted(environ.items()):
        if not value or not name.startswith(_PREFIX) or name in known or _is_of_service(name, value):
            continue
        nearest = _nearest(name.removeprefix(_PREFIX), ["config", *_BY_NAME])
        hint = f"; did you mean {_PREFIX}{nearest.upper()}?" if nearest else ""
        if nearest in _BY_NAME and _BY_NAME[nearest].scope is Scope.REGISTRY:
            hint = f"; {nearest} can only stand in the file, {_PLACES[Scope.REGISTRY]}"
        yield f"environment: {_printable(name)}: there is no such setting, so it changes nothing{hint}"


def _doubts(
    values: Mapping[str, Any], environ: Mapping[str, str], registries: Mapping[str, RegistrySettings]
) -> Iterator[str]:
    yield from _unknown_variables(environ, registries)
    known = [*registries, values["default_registry"]]
    for name in ("allow", "deny", "pin", "min_ages"):
        for pattern in (item if isinstance(item, str) else item[0] for item in values[name]):
            if image := meant_image(pattern, known):
                what = "images of a" if "/" in pattern else "a"
                yield (
                    f"{name}: {_quoted(pattern)} means {what} registry called {pattern.partition('/')[0]};"
                    f" the image of Docker Hub is {_quoted(image)}"
                )
    if values["max_size"] == values["min_free"] == Size():
        yield "neither max_size nor min_free is set: the cache grows until its disk is full"


def load(
    *,
    file: str | None = None,
    environ: Mapping[str, str] = os.environ,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """The settings in force; raises ConfigError with one line where something cannot be used."""
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
        warnings=tuple(_doubts(values, environ, registries)),
        **values,
    )


def not_live(old: Settings, new: Settings) -> list[str]:
    """The settings that differ but take a restart to change."""
    return [s.name for s in GLOBAL if not s.live and getattr(old, s.name) != getattr(new, s.name)]


def password(registry: RegistrySettings, environ: Mapping[str, str] = os.environ) -> str:
    """The stored password, read anew each time so that a rotated secret is seen; raises ConfigError if it is not there."""
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


def _quoted(value: object) -> str:
    """A TOML basic string: JSON's escapes are among its own."""
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _shown(setting: Setting, value: object) -> str:
    match value:
        case [program, *arguments] if setting.parse is parse.command:
            # A program is no secret; its arguments may be.
            return "[" + ", ".join([_quoted(program), *['"…"' for _ in arguments]]) + "]"
        case _ if setting.secret and value:
            return '"…"'
        case Size():
            return f'"{value.share * 100:g}%"' if value.share else str(value.bytes or '""')
        case tuple() if setting.parse in (parse.ttls, parse_ages):
            return "{ " + ", ".join(f"{_quoted(name)} = {ttl:g}" for name, ttl in value) + " }"
        case tuple():
            return "[" + ", ".join(map(_quoted, value)) + "]"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"{value:g}" if isinstance(value, float) else str(value)
        case _:
            return _quoted("" if value is None else value)


def show(settings: Settings) -> str:
    """The settings in force as TOML, each with where it came from; secrets are masked, durations are in seconds."""
    lines = [_line(s, getattr(settings, s.name), settings.origins.get(s.key)) for s in GLOBAL]
    lines += ["", "[defaults]"]
    lines += [_line(s, getattr(settings.defaults, s.name), settings.origins.get(s.key)) for s in DEFAULTS]
    for name, row in settings.registries.items():
        lines += ["", f'[registries."{name}"]']
        for setting in PER_REGISTRY:
            value = settings.upstreams(name) if setting.name == "upstream" else getattr(row, setting.name)
            if setting.scope is Scope.REGISTRY and not value:
                continue
            own = next((w for key, w in settings.origins.items() if _is_own(key, name, setting.name)), None)
            inherited = settings.origins.get(setting.key) if setting.scope is Scope.DEFAULTS else "default"
            lines.append(_line(setting, value, own or inherited))
    return "\n".join(lines)


def _is_own(key: str, registry: str, name: str) -> bool:
    if not key.startswith('registries."') or not key.endswith(f'".{name}'):
        return False
    return canonical_registry(key.removeprefix('registries."').removesuffix(f'".{name}')) == registry


def _line(setting: Setting, value: object, origin: str | None) -> str:
    return f"{setting.name} = {_shown(setting, value)}  # {origin or 'default'}"
