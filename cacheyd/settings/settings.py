"""The one table of settings, and the frozen values that a running cache works with.

A new setting is a row of the table and a field of the same name, with the same default; both are below. `load` reads file,
environment and flags by the table, `show` prints it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from cacheyd.protocol.registries import DOCKER_HUB
from cacheyd.settings import values as parse
from cacheyd.settings.ages import parse_ages
from cacheyd.settings.pins import parse_pins
from cacheyd.settings.rules import parse_rules
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


def _with_field(row: Setting) -> bool:
    """Whether the row has its field. One that has none cannot be set; a test says so, and all else goes on."""
    return row.name in {f.name for f in fields(Settings if row.scope is Scope.GLOBAL else RegistrySettings)}


ROWS = tuple(filter(_with_field, SETTINGS))
GLOBAL = tuple(s for s in ROWS if s.scope is Scope.GLOBAL)
PER_REGISTRY = tuple(s for s in ROWS if s.scope is not Scope.GLOBAL)
DEFAULTS = tuple(s for s in ROWS if s.scope is Scope.DEFAULTS)
BY_NAME = {s.name: s for s in ROWS}


def not_live(old: Settings, new: Settings) -> list[str]:
    """The settings that differ but take a restart to change."""
    return [s.name for s in GLOBAL if not s.live and getattr(old, s.name) != getattr(new, s.name)]
