"""The one table of settings: each row from default, file, environment and flag; wrong input is one line that helps."""

import itertools
import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheyd.settings import values as parse
from cacheyd.settings.load import load
from cacheyd.settings.settings import SETTINGS, ConfigError, RegistrySettings, Scope, Setting, Settings, not_live
from cacheyd.settings.show import show
from cacheyd.settings.values import Size
from cacheyd.upstream.login_sources import password

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

BY_NAME = {setting.name: setting for setting in SETTINGS}
ROWS = [pytest.param(setting, id=setting.name) for setting in SETTINGS]
SHARED_ROWS = [pytest.param(setting, id=setting.name) for setting in SETTINGS if setting.scope is not Scope.REGISTRY]


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def text(value: object) -> str:
    """A value as environment and flags have it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return str(value)


def place(setting: Setting, value: object) -> str:
    """The setting in a file, where it belongs."""
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


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    names = (tmp_path / f"cacheyd{n}.toml" for n in itertools.count())

    def write(content: str) -> str:
        path = next(names)
        path.write_text(content, "utf-8")
        return str(path)

    return write


def refusal(**sources: Any) -> str:
    """The one line."""
    with pytest.raises(ConfigError) as caught:
        load(**({"environ": {}} | sources))
    line = str(caught.value)
    assert line
    assert "\n" not in line
    return line


# Every row of the table


def test_every_row_has_a_sample() -> None:
    """A new setting is put into SAMPLES."""
    assert set(SAMPLES) == set(BY_NAME)
    assert len(BY_NAME) == len(SETTINGS)


def test_no_two_rows_share_a_variable() -> None:
    variables = [variable for setting in SETTINGS for variable in setting.variables()]
    assert len(variables) == len(set(variables))


def test_the_defaults_are_those_of_the_values() -> None:
    settings = load(environ={})
    plain = Settings()
    for setting in SETTINGS:
        if setting.scope is Scope.GLOBAL:
            assert getattr(settings, setting.name) == getattr(plain, setting.name), setting.name
    assert settings.defaults == plain.defaults == RegistrySettings()
    assert settings.registries == {}


@pytest.mark.parametrize("setting", ROWS)
def test_a_file_sets_it(setting: Setting, write: Callable[[str], str]) -> None:
    for value, meaning in SAMPLES[setting.name][:2]:
        assert found(load(file=write(place(setting, value)), environ={}), setting) == meaning


@pytest.mark.parametrize("setting", SHARED_ROWS)
def test_each_of_its_variables_sets_it(setting: Setting) -> None:
    (value, meaning), *_ = SAMPLES[setting.name]
    for variable in setting.variables():
        environ = {variable: text(value)} | {f"CACHEYD_{k.upper()}": str(v) for k, v in beside(setting).items()}
        assert found(load(environ=environ), setting) == meaning


@pytest.mark.parametrize("setting", SHARED_ROWS)
def test_a_flag_sets_it(setting: Setting) -> None:
    (value, meaning), *_ = SAMPLES[setting.name]
    assert found(load(environ={}, flags=beside(setting) | {setting.name: text(value)}), setting) == meaning


@pytest.mark.parametrize("setting", SHARED_ROWS)
def test_later_wins(setting: Setting, write: Callable[[str], str]) -> None:
    (one, one_means), (two, two_means), _ = SAMPLES[setting.name]
    file = write(place(setting, one))
    variable, *_ = setting.variables()

    assert found(load(file=file, environ={variable: text(two)}), setting) == two_means, "environment over file"
    assert found(load(file=file, environ={variable: text(two)}, flags={setting.name: text(one)}), setting) == one_means
    assert found(load(file=file, environ={}, flags={setting.name: None}), setting) == one_means, "a flag that is not given"
    assert found(load(file=file, environ={variable: ""}), setting) == one_means, "an empty variable is not set"


@pytest.mark.parametrize("setting", ROWS)
def test_a_wrong_value_in_a_file(setting: Setting, write: Callable[[str], str]) -> None:
    wrong = SAMPLES[setting.name][2]
    file = write(place(setting, wrong))
    line = refusal(file=file)

    assert line.startswith(f"{file}: ")
    assert setting.name in line
    assert "expected" in line
    assert repr(wrong) in line or setting.secret


@pytest.mark.parametrize("setting", SHARED_ROWS)
def test_a_wrong_value_in_the_environment_and_in_a_flag(setting: Setting) -> None:
    wrong = SAMPLES[setting.name][2]
    as_text = "\x00" if isinstance(wrong, list | dict | int) else text(wrong)
    if as_text == "":
        as_text = "?"
    for variable in setting.variables():
        line = refusal(environ={variable: as_text})
        assert line.startswith("environment: ")
        assert variable in line
        assert "expected" in line
    line = refusal(flags={setting.name: as_text})
    assert line.startswith("flag: ")
    assert f"--{setting.name.replace('_', '-')}" in line


@pytest.mark.parametrize("setting", ROWS)
def test_every_row_is_explained(setting: Setting) -> None:
    assert setting.help
    assert "\n" not in setting.help


# Values

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["~", "~x/y", "[::1", "1e9", "%"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def refused(setting: Setting, value: object) -> str | None:
    """What was expected instead, if the value is refused."""
    try:
        setting.parse(value)
    except ValueError as error:
        return str(error)
    return None


@given(value=ANYTHING)
def test_any_value_is_taken_or_refused_with_what_was_expected(value: object) -> None:
    for setting in SETTINGS:
        expectation = refused(setting, value)
        assert expectation is None or expectation.isprintable(), setting.name
        assert expectation != "", setting.name


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("90s", 90.0), ("5m", 300.0), ("1h30m", 5400.0), ("7d", 604800.0), ("250ms", 0.25), ("1.5h", 5400.0), ("30", 30.0),
     (30, 30.0), (0.5, 0.5), ("0", 0.0)],
)  # fmt: skip
def test_durations(value: object, seconds: float) -> None:
    assert parse.duration(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", "5 ", -1, "-5s", "5x", "s", "5 m", "5M", True, None, [], float("nan"), float("inf"), "1e3s"]
)
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse.duration(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("50GiB", Size(50 << 30)),
        ("50GB", Size(50 * 10**9)),
        ("50G", Size(50 << 30)),
        ("1.5 MiB", Size(3 << 19)),
        ("512", Size(512)),
        ("512B", Size(512)),
        (512, Size(512)),
        ("1TiB", Size(1 << 40)),
        ("20g", Size(20 << 30)),
        ("5%", Size(share=0.05)),
        ("", Size()),
    ],
)
def test_sizes(value: object, size: Size) -> None:
    assert parse.size(value) == size


@pytest.mark.parametrize("value", ["-1", -1, "5 apples", "GiB", "100%", "1PiB", "1ib", "5i", True, None, 1.5, "1e9", "%"])
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(ValueError, match="size"):
        parse.size(value)


def test_a_size_on_a_disk() -> None:
    assert Size(100).of(1000) == 100
    assert Size(share=0.05).of(1000) == 50
    assert Size().of(1000) == 0


@pytest.mark.parametrize("value", ["http://", "ftp://a", "https://u:p@a", "https://a?x", "https://a#x", "https://a:0", "https://a:b",
                                   "https://[::1", "a", "https://a b"])  # fmt: skip
def test_what_is_no_base_url(value: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        parse.base_url(value)


@pytest.mark.parametrize("value", ["~", "~/cache"])
def test_a_home_directory(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    assert str(parse.directory(value)).startswith("/home/u")


def test_the_home_of_nobody_is_wrong_input_too() -> None:
    line = refusal(environ={"CACHE_DIR": "~no-such-user/cache"})
    assert "expected" in line


def test_a_relative_path_becomes_absolute() -> None:
    assert load(environ={"CACHE_DIR": "cache"}).cache_dir == Path.cwd() / "cache"


# Files


def test_the_file_is_named_by_flag_or_environment(write: Callable[[str], str]) -> None:
    one, two = write("port = 1"), write("port = 2")
    assert load(environ={"CACHEYD_CONFIG": one}).port == 1
    assert load(file=two, environ={"CACHEYD_CONFIG": one}).port == 2
    assert load(environ={"CACHEYD_CONFIG": ""}).port == 3000


def test_an_empty_file(write: Callable[[str], str]) -> None:
    assert load(file=write(""), environ={}).port == 3000


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("prot = 1", "prot"),
        ("[defaults]\ntag_tll = 1", "defaults.tag_tll"),
        ("[defaults]\nport = 1", "defaults.port"),
        ("[defaults]\nupstream = 'https://a'", "defaults.upstream"),
        ('[registries."a.b"]\nupstram = "https://x"', 'registries."a.b".upstram'),
        ('[registries."a.b"]\nport = 1', 'registries."a.b".port'),
        ("[server]\nport = 1", "server"),
    ],
)
def test_unknown_keys(write: Callable[[str], str], content: str, key: str) -> None:
    file = write(content)
    line = refusal(file=file)
    assert line.startswith(f"{file}: {key}: ")


def test_a_key_in_the_wrong_place_is_told_the_right_one(write: Callable[[str], str]) -> None:
    assert "[defaults]" in refusal(file=write('tag_ttl = "5m"'))


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("prot = 1", "did you mean port?"),
        ("Port = 1", "did you mean port?"),
        ("cacheDir = 1", "did you mean cache_dir?"),
        ("[defaults]\ntag_tll = 1", "did you mean tag_ttl?"),
        ("tag-ttl = 1", "did you mean tag_ttl? it belongs in [defaults]"),
        ("tag_ttl = 1", "it belongs in [defaults]"),
        ("upstraem = 1", 'did you mean upstream? it belongs in [registries."…"]'),
        ("[defaults]\nupstream = 1", 'it belongs in [registries."…"]'),
        ("[defaults]\ngrace = 1", "it belongs at the top of the file"),
        ('[registries."a.b"]\nuser_name = 1', "did you mean username?"),
        ('[registries."a.b"]\nmaxsize = 1', "did you mean max_size? it belongs at the top of the file"),
        ("[default]\nx = 1", "did you mean [defaults]?"),
        ("[registry.x]\nx = 1", "did you mean [registries]?"),
        ("[registries.ghcr.io]\nx = 1", 'the name of a registry is written in quotes: [registries."ghcr.io"]'),
        ("[defaults]\nzzz = 1", "known: access, "),
        ('"a\\nb" = 1', "known: allow, "),
    ],
)
def test_a_typo_gets_the_nearest_key(write: Callable[[str], str], content: str, hint: str) -> None:
    line = refusal(file=write(content)).partition("there is no such setting here; ")[2]
    assert line.startswith(hint) if hint.startswith("known") else line == hint


@pytest.mark.parametrize("setting", ROWS)
def test_each_key_is_found_behind_a_slip(setting: Setting, write: Callable[[str], str]) -> None:
    slip = setting.name[0] + setting.name
    assert f"did you mean {setting.name}?" in refusal(file=write(f"{slip} = 1"))


# What is taken, and can hardly be meant


def unknown(name: str, hint: str = "") -> str:
    return f"environment: {name}: there is no such setting, so it changes nothing{hint}"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("CACHEYD_TAG_TLL", "; did you mean CACHEYD_TAG_TTL?"),
        ("CACHEYD_tag_ttl", "; did you mean CACHEYD_TAG_TTL?"),
        ("CACHEYD_CACHEDIR", "; did you mean CACHEYD_CACHE_DIR?"),
        ("CACHEYD_CONFG", "; did you mean CACHEYD_CONFIG?"),
        ("CACHEYD_PROT", "; did you mean CACHEYD_PORT?"),
        ("CACHEYD_UPSTREAM", '; upstream can only stand in the file, in [registries."…"]'),
        ("CACHEYD_PASWORD", '; password can only stand in the file, in [registries."…"]'),
        ("CACHEYD_ZZZZZ", ""),
        ("CACHEYD_", ""),
    ],
)
def test_a_variable_that_is_no_setting_is_warned_about(name: str, hint: str) -> None:
    settings = load(environ={name: "a-secret"})
    assert settings.warnings == (unknown(name, hint),)
    assert load(environ={name: ""}).warnings == ()


def test_a_warning_is_one_line() -> None:
    (line,) = load(environ={"CACHEYD_A\nB\udcff": "x"}).warnings
    assert line.isprintable()


def test_variables_that_are_right_are_not_warned_about(write: Callable[[str], str]) -> None:
    file = write('[registries."a.b"]\nauth = "credentials"\nusername = "u"\npassword_env = "CACHEYD_HUB_TOKEN"\n')
    names = [name for setting in SETTINGS for name in setting.variables()]
    samples = {name: text(SAMPLES[setting.name][0][0]) for setting in SETTINGS for name in setting.variables()}
    del samples["CACHEYD_AUTH"]
    assert set(samples) <= set(names)
    environ = samples | {
        "CACHEYD_CONFIG": file,
        "CACHEYD_HUB_TOKEN": "x",
        "CACHED_TAG_TTL": "1",
        "HOME": "/",
        "cacheyd_x": "1",
    }
    assert load(environ=environ).warnings == ()


# What the kubelet sets beside the Services cacheyd (two ports) and cacheyd-metrics.
LINKS = {
    "CACHEYD_SERVICE_HOST": "10.0.0.1", "CACHEYD_SERVICE_PORT": "3000", "CACHEYD_SERVICE_PORT_HTTP": "3000",
    "CACHEYD_SERVICE_PORT_METRICS": "3001", "CACHEYD_PORT": "tcp://10.0.0.1:3000",
    "CACHEYD_PORT_3000_TCP": "tcp://10.0.0.1:3000", "CACHEYD_PORT_3000_TCP_PROTO": "tcp", "CACHEYD_PORT_3000_TCP_PORT": "3000",
    "CACHEYD_PORT_3000_TCP_ADDR": "10.0.0.1", "CACHEYD_METRICS_SERVICE_HOST": "10.0.0.2",
    "CACHEYD_METRICS_SERVICE_PORT": "80", "CACHEYD_METRICS_SERVICE_PORT_HTTP": "80",
    "CACHEYD_METRICS_PORT": "udp://10.0.0.2:80", "CACHEYD_METRICS_PORT_80_UDP": "udp://10.0.0.2:80",
    "CACHEYD_METRICS_PORT_80_UDP_ADDR": "10.0.0.2",
}  # fmt: skip


@pytest.mark.parametrize("scheme", ["tcp", "udp", "sctp"])
def test_the_variables_of_services_are_no_settings(scheme: str) -> None:
    settings = load(environ=LINKS | {"CACHEYD_PORT": f"{scheme}://10.0.0.1:3000"})
    assert (settings.warnings, settings.port) == ((), 3000)
    assert load(environ={"CACHEYD_METRICS_PORT": "80"}).warnings == (unknown("CACHEYD_METRICS_PORT"),)


NO_BOUND = "neither max_size nor min_free is set: the cache grows until its disk is full"


@pytest.mark.parametrize(
    ("values", "warned"),
    [
        ({"CACHEYD_MIN_FREE": "0"}, True),
        ({"CACHEYD_MIN_FREE": "0%"}, True),
        ({"CACHEYD_MIN_FREE": "0GiB", "CACHEYD_MAX_SIZE": "0"}, True),
        ({"CACHEYD_MIN_FREE": "1"}, False),
        ({"CACHEYD_MIN_FREE": "0", "CACHEYD_MAX_SIZE": "50%"}, False),
        ({"CACHEYD_MIN_FREE": "0", "CACHEYD_MAX_SIZE": "5GiB"}, False),
        ({}, False),
    ],
)
def test_no_bound_at_all_is_said(values: dict[str, str], warned: bool, write: Callable[[str], str]) -> None:
    assert load(environ=values).warnings == ((NO_BOUND,) if warned else ())
    content = "".join(f'{name.removeprefix("CACHEYD_").lower()} = "{value}"\n' for name, value in values.items())
    assert load(file=write(content), environ={}).warnings == ((NO_BOUND,) if warned else ())


@pytest.mark.parametrize(
    "content", ["registries = 1", "registries = []", 'registries."a.b" = 1', "defaults = 'x'", "defaults = []"]
)
def test_what_should_be_a_table(write: Callable[[str], str], content: str) -> None:
    assert "expected" in refusal(file=write(content))


@pytest.mark.parametrize("content", ["port =", "port = 1\nport = 2", "[", "port = 1 x", "'", "\x00"])
def test_what_is_not_toml(write: Callable[[str], str], content: str) -> None:
    file = write(content)
    line = refusal(file=file)
    assert line.startswith(f"{file}: ")
    assert "TOML" in line


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"host = '\xff'")
    for path in (tmp_path / "none.toml", tmp_path, tmp_path / "latin"):
        assert refusal(file=str(path)).startswith(f"{path}: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_a_file_without_permission(write: Callable[[str], str]) -> None:
    file = write("")
    Path(file).chmod(0)
    assert refusal(file=file).startswith(f"{file}: ")


# Kubernetes


def test_the_service_link_of_kubernetes_is_no_port() -> None:
    """A pod beside a Service called cacheyd has CACHEYD_PORT=tcp://10.0.0.1:3000."""
    link = {"CACHEYD_PORT": "tcp://10.0.0.1:3000", "CACHEYD_SERVICE_HOST": "10.0.0.1", "CACHEYD_PORT_3000_TCP_PORT": "3000"}
    assert load(environ=link).port == 3000
    assert load(environ=link | {"PORT": "8080"}).port == 8080
    assert load(environ={"CACHEYD_PORT": "8081", "PORT": "8080"}).port == 8081
    assert "CACHEYD_PORT" in refusal(environ={"CACHEYD_PORT": "http://x"})


# Registries


def test_a_registry_has_the_defaults_and_its_own(write: Callable[[str], str]) -> None:
    file = write(
        """
        [defaults]
        tag_ttl = "1h"
        access = "verify"
        [registries."ghcr.io"]
        tag_ttl = "2h"
        """
    )
    settings = load(file=file, environ={"CACHEYD_ACCESS_TTL": "1m"}, flags={"max_fetches": "7"})

    own, other = settings.registry("ghcr.io"), settings.registry("quay.io")
    assert (own.tag_ttl, own.access, own.access_ttl, own.max_fetches, own.configured) == (7200.0, "verify", 60.0, 7, True)
    assert (other.tag_ttl, other.access, other.access_ttl, other.max_fetches, other.configured) == (
        3600.0, "verify", 60.0, 7, False,
    )  # fmt: skip


def test_where_registries_are(write: Callable[[str], str]) -> None:
    settings = load(environ={})
    assert settings.upstreams("docker.io") == ("https://registry-1.docker.io",)
    assert settings.upstreams("reg.example:5000") == ("https://reg.example:5000",)

    settings = load(file=write('[registries."docker.io"]\nupstream = ["http://a/", "http://b"]'), environ={})
    assert settings.upstreams("docker.io") == ("http://a", "http://b")


@pytest.mark.parametrize("alias", ["docker.io", "index.docker.io", "registry-1.docker.io", "DOCKER.IO"])
def test_docker_hub_by_any_name(write: Callable[[str], str], alias: str) -> None:
    settings = load(file=write(f'[registries."{alias}"]\nusername = "u"'), environ={})
    assert set(settings.registries) == {"docker.io"}
    assert settings.registry("docker.io").username == "u"
    assert settings.upstreams("docker.io") == ("https://registry-1.docker.io",)


def test_one_registry_by_two_names(write: Callable[[str], str]) -> None:
    line = refusal(file=write('[registries."docker.io"]\n[registries."index.docker.io"]\n'))
    assert "index.docker.io" in line
    assert "twice" in line


@pytest.mark.parametrize("name", ["https://ghcr.io", "ghcr.io/path", "u@ghcr.io", "", "a b", "ghcr.io:0"])
def test_what_is_no_registry(write: Callable[[str], str], name: str) -> None:
    assert "expected a registry" in refusal(file=write(f'[registries."{name}"]\n'))


# Settings that need each other


@pytest.mark.parametrize(
    "content",
    [
        'auth = "credentials"',
        'auth = "credentials"\nusername = "u"',
        'auth = "credentials"\npassword = "p"',
        'auth = "credentials"\nusername = "u"\npassword = "p"\npassword_env = "P"',
        'auth = "credentials"\nusername = "u"\npassword = "p"\ncredential_helper = "h"',
        'auth = "credentials"\nusername = "u"\ncredential_helper = "h"',
        'auth = "credentials"\npassword_env = "P"\ncredential_command = ["/bin/tool"]',
        'auth = "credentials"\ncredential_helper = "h"\ncredential_command = ["/bin/tool"]',
        f'auth = "credentials"\ncredential_helper = "h"\nauth_file = "{FILE}"',
        f'client_key = "{FILE}"',
    ],
)
def test_a_registry_whose_settings_do_not_go_together(write: Callable[[str], str], content: str) -> None:
    file = write(f'[registries."ghcr.io"]\n{content}\n')
    line = refusal(file=file)
    assert line.startswith(f'{file}: registries."ghcr.io".')
    assert "expected" in line


def test_a_login_is_for_one_registry(write: Callable[[str], str]) -> None:
    """As a default it would be sent to any registry that a client names."""
    for source in ({"file": write('[defaults]\nauth = "credentials"')}, {"environ": {"CACHEYD_AUTH": "credentials"}}):
        assert "registries" in refusal(**source)


@pytest.mark.parametrize("name", ["tls_key", "client_ca"])
def test_tls_settings_without_a_certificate(name: str) -> None:
    assert "tls_cert" in refusal(flags={name: str(FILE)})


# Secrets

SECRET = "hunter2"


def test_secrets_are_never_shown(write: Callable[[str], str]) -> None:
    file = write(
        f"""
        [defaults]
        proxy = "http://user:{SECRET}@proxy.corp:3128"
        [registries."docker.io"]
        auth = "credentials"
        username = "u"
        password = "{SECRET}"
        """
    )
    settings = load(file=file, environ={})
    assert password(settings.registry("docker.io")) == SECRET
    assert SECRET not in show(settings)


@pytest.mark.parametrize("line", ['credential_helper = "h"', 'credential_command = ["/bin/h"]', f'auth_file = "{FILE}"'])
def test_one_source_of_the_login_is_enough(write: Callable[[str], str], line: str) -> None:
    file = write(f'[registries."ghcr.io"]\nauth = "credentials"\n{line}\n')
    assert line in show(load(file=file, environ={}))


def test_arguments_of_a_command_are_never_shown(write: Callable[[str], str]) -> None:
    settings = load(file=write(f'[registries."a.b"]\ncredential_command = ["/bin/tool", "{SECRET}"]'), environ={})
    assert settings.registry("a.b").credential_command == ("/bin/tool", SECRET)
    assert 'credential_command = ["/bin/tool", "…"]' in show(settings)
    assert SECRET not in show(settings) + repr(settings)
    assert SECRET not in refusal(file=write(f'[registries."a.b"]\ncredential_command = "tool {SECRET}"'))


def test_secrets_are_not_in_a_traceback(write: Callable[[str], str]) -> None:
    proxy = f"http://user:{SECRET}@proxy.corp:3128"
    settings = load(file=write(f'[registries."a.b"]\npassword = "{SECRET}"'), environ={}, flags={"proxy": proxy})
    assert SECRET not in repr(settings)


@pytest.mark.parametrize(
    "content",
    [
        f'[defaults]\nproxy = "socks5://user:{SECRET}@proxy"',
        f'[registries."a.b"]\npassword = ["{SECRET}"]',
        f'[registries."a.b"]\nupstream = "https://user:{SECRET}@a.b"',
    ],
)
def test_a_wrong_value_does_not_give_a_secret_away(write: Callable[[str], str], content: str) -> None:
    assert SECRET not in refusal(file=write(content))


def test_a_password_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("one\n")
    registry = RegistrySettings(username="u", password_file=file)
    assert password(registry) == "one"
    file.write_text("two")
    assert password(registry) == "two"
    file.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        password(registry)


def test_a_password_from_the_environment() -> None:
    registry = RegistrySettings(username="u", password_env="HUB")
    assert password(registry, {"HUB": "p"}) == "p"
    with pytest.raises(ConfigError, match="HUB"):
        password(registry, {})


# Showing and reloading


def everything() -> str:
    """A file with every setting."""
    lines: dict[Scope, list[str]] = {scope: [] for scope in Scope}
    for setting in SETTINGS:
        if setting.name not in ("password_file", "password_env"):
            lines[setting.scope].append(f"{setting.name} = {toml(SAMPLES[setting.name][0][0])}")
    table = f'[registries."{REGISTRY}"]'
    return "\n".join([*lines[Scope.GLOBAL], "[defaults]", *lines[Scope.DEFAULTS], table, *lines[Scope.REGISTRY]])


def test_what_is_shown_is_toml_that_means_the_same(write: Callable[[str], str]) -> None:
    settings = load(file=write(everything()), environ={})
    shown = show(settings)
    again = load(file=write(shown.replace('"…"', '""')), environ={})

    assert tomllib.loads(shown)
    for setting in SETTINGS:
        if not setting.secret:
            assert found(again, setting) == found(settings, setting), setting.name


@pytest.mark.parametrize("odd", ['a"b', "a\\b", "#", "'", "[x]"])
def test_what_is_shown_is_toml_whatever_it_holds(write: Callable[[str], str], odd: str) -> None:
    settings = load(file=write(f'[registries."a.b"]\nusername = {json.dumps(odd)}'), environ={})
    assert tomllib.loads(show(settings))["registries"]["a.b"]["username"] == odd


def test_what_is_shown_says_where_it_came_from(write: Callable[[str], str]) -> None:
    file = write('grace = "5s"\n[defaults]\ntag_ttl = "1h"\n[registries."ghcr.io"]\naccess = "verify"')
    shown = show(load(file=file, environ={"PORT": "8080"}, flags={"retries": "1"})).splitlines()

    assert "port = 8080  # environment" in shown
    assert "retries = 1  # flag" in shown
    assert f"grace = 5  # {file}" in shown
    assert shown.count(f"tag_ttl = 3600  # {file}") == 2, "inherited by the registry"
    assert f'access = "verify"  # {file}' in shown
    assert 'access = "open"  # default' in shown


def test_what_takes_a_restart(write: Callable[[str], str]) -> None:
    old = load(environ={})
    assert not_live(old, load(environ={})) == []
    assert not_live(old, load(environ={"PORT": "1", "CACHE_DIR": "/x", "CACHEYD_RETRIES": "1"})) == ["port", "cache_dir"]
