"""What is shown is TOML that means the same, without secrets."""

import json
import tomllib
from collections.abc import Callable

import pytest

from cacheyd.settings.load import load
from cacheyd.settings.settings import Scope
from cacheyd.settings.show import show
from cacheyd.upstream.login_sources import password
from tests.support.settings import REGISTRY, SAMPLES, SECRET, TRIED, found, refusal, toml


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


def test_arguments_of_a_command_are_never_shown(write: Callable[[str], str]) -> None:
    settings = load(file=write(f'[registries."a.b"]\ncredential_command = ["/bin/tool", "{SECRET}"]'), environ={})
    assert settings.registry("a.b").credential_command == ("/bin/tool", SECRET)
    assert 'credential_command = ["/bin/tool", "…"]' in show(settings)
    assert SECRET not in show(settings) + repr(settings)
    assert SECRET not in refusal(file=write(f'[registries."a.b"]\ncredential_command = "tool {SECRET}"'))


def everything() -> str:
    """A file with every setting."""
    lines: dict[Scope, list[str]] = {scope: [] for scope in Scope}
    for setting in TRIED:
        if setting.name not in ("password_file", "password_env"):
            lines[setting.scope].append(f"{setting.name} = {toml(SAMPLES[setting.name][0][0])}")
    table = f'[registries."{REGISTRY}"]'
    return "\n".join([*lines[Scope.GLOBAL], "[defaults]", *lines[Scope.DEFAULTS], table, *lines[Scope.REGISTRY]])


def test_what_is_shown_is_toml_that_means_the_same(write: Callable[[str], str]) -> None:
    settings = load(file=write(everything()), environ={})
    shown = show(settings)
    again = load(file=write(shown.replace('"…"', '""')), environ={})

    assert tomllib.loads(shown)
    for setting in TRIED:
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
