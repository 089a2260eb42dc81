"""File, environment and flags: what wins, what is refused, and what helps to find the error."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cacheyd.settings.load import load
from cacheyd.settings.settings import Setting
from cacheyd.settings.show import show
from tests.support.settings import FILE, ROWS, SECRET, refusal


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


@pytest.mark.parametrize("line", ['credential_helper = "h"', 'credential_command = ["/bin/h"]', f'auth_file = "{FILE}"'])
def test_one_source_of_the_login_is_enough(write: Callable[[str], str], line: str) -> None:
    file = write(f'[registries."ghcr.io"]\nauth = "credentials"\n{line}\n')
    assert line in show(load(file=file, environ={}))


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
