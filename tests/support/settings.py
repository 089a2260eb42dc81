"""A sample of each setting, and common parts of the tests of settings."""

import json
from pathlib import Path
from typing import Any

import pytest

from cacheyd.settings import values as parse
from cacheyd.settings.load import load
from cacheyd.settings.settings import ROWS as TABLE
from cacheyd.settings.settings import SETTINGS, ConfigError, Scope, Setting, Settings
from cacheyd.settings.values import Size

REGISTRY = "reg.example:5000"
FILE = Path(__file__).absolute()

# For each setting: two values as they stand in TOML, each with what it means, and one that is wrong.
type Sample = tuple[tuple[object, object], tuple[object, object], object]

SAMPLES: dict[str, Sample] = {
    "host": (("127.0.0.1", "127.0.0.1"), ("::1", "::1"), 5),
    "port": ((5000, 5000), (1, 1), 65536),
    "cache_dir": (("/var/lib/cacheyd", Path("/var/lib/cacheyd")), ("/x", Path("/x")), ["/x"]),
    "debug": ((True, True), (False, False), "maybe"),
    "max_size": (("50GiB", Size(50 << 30)), ("10%", Size(share=0.1)), "much"),
    "min_free": (("1GB", Size(10**9)), ("0", Size(0)), "200%"),
    "low_watermark": (("80%", Size(share=0.8)), ("100%", Size(share=1.0)), "0%"),
    "max_age": (("30d", 30 * 86400.0), ("0s", 0.0), "a month"),
    "pin": ((["docker.io/a:*"], ("docker.io/library/a:*",)), (["*", "b.test/*:1"], ("*", "b.test/*:1")), 7),
    "durability": (("fsync", "fsync"), ("fast", "fast"), "slow"),
    "scrub_every": (("1d", 86400.0), ("0s", 0.0), "weekly"),
    "scrub_rate": (("1MiB", 1 << 20), (5000, 5000), "5%"),
    "default_registry": (("index.docker.io", "docker.io"), ("ghcr.io", "ghcr.io"), "https://ghcr.io"),
    "allow": ((["docker.io"], ("docker.io",)), (["*.corp.example", "ghcr.io"], ("*.corp.example", "ghcr.io")), [1]),
    "deny": ((["quay.io"], ("quay.io",)), (["a", "b"], ("a", "b")), [""]),
    "min_ages": (
        (
            {"docker.io/library/*:latest": "7d", "ghcr.io": "0"},
            (("docker.io/library/*:latest", 7 * 86400.0), ("ghcr.io", 0.0)),
        ),
        ({"*/*:v*": "1h"}, (("*/*:v*", 3600.0),)),
        {"ghcr.io/Acme": "1d"},
    ),
    "connect_timeout": (("5s", 5.0), (1.5, 1.5), "soon"),
    "head_timeout": (("1m", 60.0), (10, 10.0), -1),
    "progress_timeout": (("1m30s", 90.0), ("500ms", 0.5), True),
    "min_rate": (("4KiB", 4096), ("0", 0), "5%"),
    "flight_memory": (("64MiB", 64 << 20), (1 << 30, 1 << 30), "much"),
    "finish_abandoned": (("1m", 60.0), ("0s", 0.0), "a while"),
    "retries": ((0, 0), (100, 100), 101),
    "grace": (("0s", 0.0), ("1h", 3600.0), "1 hour"),
    "max_connections": ((10, 10), (20, 20), 0),
    "max_flights": ((10, 10), (20, 20), 0),
    "max_waiting": ((10, 10), (20, 20), 1.5),
    "tls_cert": ((str(FILE), FILE), (str(FILE), FILE), "/none/cert.pem"),
    "tls_key": ((str(FILE), FILE), (str(FILE), FILE), "/none/key.pem"),
    "client_ca": ((str(FILE), FILE), (str(FILE), FILE), "/none/ca.pem"),
    "tag_ttl": (("1h", 3600.0), ("0s", 0.0), "5 minutes"),
    "tag_ttls": (
        ({"v*": "24h", "latest": "0s"}, (("v*", 86400.0), ("latest", 0.0))),
        ({"latest": "0s"}, (("latest", 0.0),)),
        {"v*": "later"},
    ),
    "stale_if_error": (("1d", 86400.0), ("0s", 0.0), "7 days"),
    "min_age": (("3d", 3 * 86400.0), ("0s", 0.0), "a week"),
    "min_age_action": (("allow", "allow"), ("audit", "audit"), "deny"),
    "min_age_evidence": (("seen", "seen"), ("any", "any"), "created"),
    "access": (("verify", "verify"), ("open", "open"), "closed"),
    "access_ttl": (("1m", 60.0), ("10m", 600.0), ""),
    "auth": (("anonymous", "anonymous"), ("passthrough", "passthrough"), "none"),
    "ratelimit_floor": ((10, 10), (0, 0), -1),
    "retry_after_max": (("2s", 2.0), ("0s", 0.0), "5 seconds"),
    "max_fetches": ((1, 1), (8, 8), "many"),
    "proxy": (
        ("http://proxy.corp:3128", "http://proxy.corp:3128"),
        ("http://user:pass@proxy.corp:3128", "http://user:pass@proxy.corp:3128"),
        "socks5://proxy:1080",
    ),
    "ca_file": ((str(FILE), FILE), (str(FILE), FILE), 3),
    "insecure_skip_verify": ((True, True), (False, False), 2),
    "upstream": (
        ("http://origin:5000/", ("http://origin:5000",)),
        (["https://a", "https://b/path/"], ("https://a", "https://b/path")),
        "origin:5000",
    ),
    "client_cert": ((str(FILE), FILE), (str(FILE), FILE), "/none/cert.pem"),
    "client_key": ((str(FILE), FILE), (str(FILE), FILE), "/none/key.pem"),
    "username": (("robot$pull", "robot$pull"), ("u", "u"), "a\nb"),
    "password": (("hunter2", "hunter2"), ("p", "p"), ["hunter2"]),
    "password_file": ((str(FILE), FILE), (str(FILE), FILE), "/none/password"),
    "password_env": (("HUB_PASSWORD", "HUB_PASSWORD"), ("P", "P"), 1),
    "credential_helper": (("ecr-login", "ecr-login"), ("gcloud", "gcloud"), "../gcloud"),
    "credential_command": ((["/bin/tool", "get"], ("/bin/tool", "get")), (["tool"], ("tool",)), "tool get"),
    "auth_file": ((str(FILE), FILE), (str(FILE), FILE), "/none/config.json"),
    "token_realms": (("https://auth.example", ("https://auth.example",)), (["https://a"], ("https://a",)), ["auth"]),
}
# What another setting asks for beside it.
BESIDE = {"tls_key": "tls_cert", "client_ca": "tls_cert", "client_key": "client_cert"}

# A new row needs a sample of its own only where its parser is none of these.
BY_PARSER: dict[object, Sample] = {
    parse.duration: (("1h", 3600.0), ("0s", 0.0), "5 minutes"),
    parse.byte_count: (("1MiB", 1 << 20), ("1KB", 1000), "5%"),
    parse.switch: ((True, True), (False, False), 2),
    parse.text: (("a", "a"), ("b", "b"), 5),
    parse.readable_file: ((str(FILE), FILE), (str(FILE), FILE), "/none/file"),
}
SAMPLES |= {row.name: BY_PARSER[row.parse] for row in SETTINGS if row.name not in SAMPLES and row.parse in BY_PARSER}
# The rows that can be tried; two tests say which others there are.
TRIED = tuple(row for row in TABLE if row.name in SAMPLES)
ROWS = [pytest.param(setting, id=setting.name) for setting in TRIED]
SECRET = "hunter2"


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def text(value: object) -> str:
    """A value as a text, for the environment or a flag."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return str(value)


def place(setting: Setting, value: object) -> str:
    """The text of a file with this setting in its table."""
    table = {Scope.GLOBAL: "", Scope.DEFAULTS: "[defaults]\n", Scope.REGISTRY: f'[registries."{REGISTRY}"]\n'}[setting.scope]
    beside = f"{BESIDE[setting.name]} = {toml(str(FILE))}\n" if setting.name in BESIDE else ""
    return f"{table}{beside}{setting.name} = {toml(value)}\n"


def found(settings: Settings, setting: Setting) -> object:
    holder: Any = {
        Scope.GLOBAL: settings,
        Scope.DEFAULTS: settings.defaults,
        Scope.REGISTRY: settings.registries.get(REGISTRY),
    }[setting.scope]
    return getattr(holder, setting.name)


def beside(setting: Setting) -> dict[str, object]:
    return {BESIDE[setting.name]: str(FILE)} if setting.name in BESIDE else {}


def refusal(**sources: Any) -> str:
    """The message of the ConfigError, which must have one line."""
    with pytest.raises(ConfigError) as caught:
        load(**({"environ": {}} | sources))
    line = str(caught.value)
    assert line
    assert "\n" not in line
    return line


def unknown(name: str, hint: str = "") -> str:
    """The warning about a variable that is not a setting."""
    return f"environment: {name}: there is no such setting, so it changes nothing{hint}"
