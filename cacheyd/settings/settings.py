"""The one table of settings, and the frozen values that a running cache works with.

A new setting is a row of the table and a field of the same name, with the same default; both are below. `load` reads file,
environment and flags by the table; `show` prints the settings.
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
    """A setting cannot be used. The message is one line: which setting, and why."""


class Scope(StrEnum):
    """The part of the file in which a setting can stand."""

    GLOBAL = "global"
    """At the top of the file."""
    DEFAULTS = "defaults"
    """In [defaults], and in [registries."…"] for one registry."""
    REGISTRY = "registry"
    """In [registries."…"] only."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of the table. `env` names further environment variables of the setting; `live`: SIGHUP can change the setting."""

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
        """The place of the setting in the file, such as `defaults.tag_ttl`."""
        return self.name if self.scope is Scope.GLOBAL else f"{self.scope}.{self.name}"

    def variables(self) -> tuple[str, ...]:
        """The environment variables of the setting; the first that is set wins. A setting of one registry has none."""
        return () if self.scope is Scope.REGISTRY else (f"CACHEYD_{self.name.upper()}", *self.env)


_D, _R = Scope.DEFAULTS, Scope.REGISTRY
SETTINGS: tuple[Setting, ...] = (
    Setting("host", parse.text, "", "address to listen on; empty means all addresses, IPv4 and IPv6", live=False),
    Setting("port", parse.integer(1, 65535), 3000, "port to listen on", env=("PORT",), live=False),
    Setting(
        "cache_dir", parse.directory, "/tmp/cacheyd", "directory of the cache; created if missing", env=("CACHE_DIR",), live=False
    ),
    Setting("debug", parse.switch, False, "log more; never credentials", env=("DEBUG",)),
    Setting("max_size", parse.size, "", "most bytes that cacheyd stores; beyond this size it removes the least recently used objects; empty means no limit"),
    Setting("min_free", parse.size, "5%", "bytes that stay free on the disk; with less free space, cacheyd removes the least recently used objects"),
    Setting("low_watermark", parse.share, "90%", "where a removal ends: at this share of max_size, and as far above min_free (90% means 110% of min_free)"),
    Setting("max_age", parse.duration, "0s", "cacheyd removes images that no client used for this time; 0s means never"),
    Setting("pin", parse_pins, "", "images that cacheyd never evicts, as patterns of registry/repository:tag"),
    Setting("durability", parse.choice("fast", "fsync"), "fast", "fsync: cacheyd writes an object to the disk itself before the object counts as stored; slower", live=False),
    Setting("scrub_every", parse.duration, "7d", "how often cacheyd reads and checks all stored objects in the background; 0s means never"),
    Setting("scrub_rate", parse.byte_count, "16MiB", "how many bytes per second this check reads"),
    Setting("default_registry", parse.registry_name, "", "registry for clients that send no ns and no host in the path"),
    Setting("allow", parse_rules, "", "what clients can ask for, as patterns of registries or of registry/repository:tag; empty means everything"),
    Setting("deny", parse_rules, "", "what clients cannot ask for, as patterns like those of allow; the most specific pattern of both lists decides; deny wins a tie"),
    Setting("min_ages", parse_ages, "", "min_age by pattern, with patterns as in allow; the most specific pattern counts, and it overrides min_age"),
    Setting("connect_timeout", parse.duration, "10s", "deadline for connecting to an upstream"),
    Setting("head_timeout", parse.duration, "20s", "deadline for the head of an upstream's response"),
    Setting("progress_timeout", parse.duration, "30s", "a body, from upstream or to a client, is broken if no byte moves for this time"),
    Setting("min_rate", parse.byte_count, "1KiB", "a body, from upstream or to a client, is broken if fewer bytes per second move over progress_timeout"),
    Setting("retries", parse.integer(0, 100), 5, "how many times cacheyd resumes a broken upstream body"),
    Setting("grace", parse.duration, "20s", "time for running transfers after SIGTERM"),
    Setting("max_connections", parse.integer(1, 1_000_000), 4096, "most connections of clients; cacheyd refuses further connections"),
    Setting("max_flights", parse.integer(1, 100_000), 256, "most objects that cacheyd fetches at once; further fetches wait for a turn", live=False),
    Setting("flight_memory", parse.byte_count, "128MiB", "memory for the bodies of all fetches; with less memory, many fetches at once are slower"),
    Setting("finish_abandoned", parse.duration, "10m", "how long a fetch goes on after its last client has left"),
    Setting("max_waiting", parse.integer(1, 1_000_000), 4096, "most clients that wait for upstreams; further clients get 503"),
    Setting("tls_cert", parse.readable_file, "", "PEM file with the listener's certificate chain; with it, the listener speaks TLS", live=False),
    Setting("tls_key", parse.readable_file, "", "PEM file with the key of tls_cert, if tls_cert does not hold the key itself", live=False),
    Setting("client_ca", parse.readable_file, "", "PEM file of authorities; each client must have a certificate of one of them", live=False),
    Setting("tag_ttl", parse.duration, "5m", "how long cacheyd serves a tag before it asks upstream again", _D),
    Setting("tag_ttls", parse.ttls, "latest=0s", "tag_ttl by pattern of tag; the first pattern that matches counts; cacheyd appends latest=0s", _D),
    Setting("stale_if_error", parse.duration, "7d", "how long cacheyd serves the last known tag while upstream fails", _D),
    Setting("min_age", parse.duration, "0s", "how old an image must be before a tag leads to it; until then the tag leads to its earlier image; 0s means at once", _D),
    Setting("min_age_action", parse.choice("refuse", "allow", "audit"), "refuse", "what cacheyd does if it knows no earlier image: refuse (403) or allow; audit: cacheyd holds no tag and only reports it", _D),
    Setting("min_age_evidence", parse.choice("any", "seen"), "any", "what proves the age: any (how long cacheyd has known the image, or the image's own created date) or seen (only the first)", _D),
    Setting("access", parse.choice("open", "verify"), "open", "verify: cacheyd asks upstream whether this client may read the object, on hits too", _D),
    Setting("access_ttl", parse.duration, "5m", "how long the upstream's answer to the question of access holds", _D),
    Setting(
        "auth", parse.choice("passthrough", "credentials", "anonymous"), "passthrough",
        "the login that upstream sees: the client's login, the stored login, or an anonymous token", _D,
    ),
    Setting("ratelimit_floor", parse.integer(0, 1_000_000), 0, "with fewer pulls left at the registry than this, cacheyd serves stale tags first", _D),
    Setting("retry_after_max", parse.duration, "5s", "how long one request waits, in all, for rate limits (429 with Retry-After)", _D),
    Setting("max_fetches", parse.integer(1, 100_000), 64, "most requests to one registry at once; further requests wait for a turn", _D),
    Setting("proxy", parse.proxy_url, "", "HTTP(S) proxy through which cacheyd reaches upstreams", _D, secret=True),
    Setting("ca_file", parse.readable_file, "", "PEM file of authorities that cacheyd trusts besides the public ones", _D),
    Setting("insecure_skip_verify", parse.switch, False, "do not check the upstream's certificate", _D),
    Setting("upstream", parse.base_urls, "", "base URL of the origin, or several URLs, which cacheyd tries in order; default https://<registry>", _R),
    Setting("client_cert", parse.readable_file, "", "PEM file with a client certificate for upstream", _R),
    Setting("client_key", parse.readable_file, "", "PEM file with the key of client_cert, if client_cert does not hold the key itself", _R),
    Setting("username", parse.text, "", "login for auth = credentials", _R),
    Setting("password", parse.text, "", "password or token of the login; better in password_file or password_env", _R, secret=True),
    Setting("password_file", parse.readable_file, "", "file that holds the password", _R),
    Setting("password_env", parse.text, "", "environment variable that holds the password", _R),
    Setting("credential_helper", parse.helper_name, "", "docker credential helper that has the login, such as ecr-login", _R),
    Setting(
        "credential_command", parse.command, "", "kubelet credential provider that has the login: program and arguments", _R,
        secret=True,
    ),
    Setting("auth_file", parse.readable_file, "", "docker's config.json with the login, or with the name of the helper that has the login", _R),
    Setting("token_realms", parse.base_urls, "", "token services that may see the stored login, besides the upstream's own host", _R),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """The settings of one registry. `configured`: the operator named the registry, so cacheyd trusts its address."""

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
    """All settings. Durations are in seconds. `origins` holds the source of each value, by the key in the file's notation;
    `warnings` are lines about values that the operator can hardly mean.
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
        """The settings of registry `name` (canonical): its own, or the defaults if it has none."""
        return self.registries.get(name) or self.defaults

    @property
    def has_min_age(self) -> bool:
        """Whether some setting holds tags until their image has an age."""
        rows = (self.defaults, *self.registries.values())
        return any(age for _, age in self.min_ages) or any(row.min_age for row in rows)

    def upstreams(self, name: str) -> tuple[str, ...]:
        """The base URLs of a registry, in the order in which they are tried."""
        if name == DOCKER_HUB:
            return self.registry(name).upstream or ("https://registry-1.docker.io",)
        return self.registry(name).upstream or (f"https://{name}",)


def _with_field(row: Setting) -> bool:
    """Whether the row has its field. A row without a field cannot be set; a test reports it, and all other rows work."""
    return row.name in {f.name for f in fields(Settings if row.scope is Scope.GLOBAL else RegistrySettings)}


ROWS = tuple(filter(_with_field, SETTINGS))
GLOBAL = tuple(s for s in ROWS if s.scope is Scope.GLOBAL)
PER_REGISTRY = tuple(s for s in ROWS if s.scope is not Scope.GLOBAL)
DEFAULTS = tuple(s for s in ROWS if s.scope is Scope.DEFAULTS)
BY_NAME = {s.name: s for s in ROWS}


def not_live(old: Settings, new: Settings) -> list[str]:
    """The names of the settings that differ but need a restart to change."""
    return [s.name for s in GLOBAL if not s.live and getattr(old, s.name) != getattr(new, s.name)]
