"""Passwords of the settings, and programs that are not there."""

import json
from pathlib import Path

import pytest

from cacheyd.settings.settings import ConfigError, RegistrySettings, Settings
from cacheyd.upstream.login_sources import missing, password
from tests.support.logins import Scene
from tests.support.programs import write_program


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


def test_what_cannot_be_found_is_said(scene: Scene) -> None:
    file = scene.directory / "config.json"
    file.write_text(json.dumps({"credHelpers": {"d.test": "none3"}, "credsStore": "none4"}))
    write_program(scene.directory / "docker-credential-x", "")
    sources = {
        "a.test": RegistrySettings(auth="credentials", credential_helper="none1"),
        "b.test": RegistrySettings(auth="credentials", credential_command=("/none2", "secret")),
        "c.test": RegistrySettings(auth="credentials", credential_helper="x"),
        "d.test": RegistrySettings(auth="credentials", auth_file=file),
        "e.test": RegistrySettings(auth="credentials", auth_file=file),
        "f.test": RegistrySettings(credential_helper="none1"),
    }
    assert missing(Settings(registries=sources)) == [
        'registries."a.test": docker-credential-none1 cannot be found',
        'registries."b.test": /none2 cannot be found',
        'registries."d.test": docker-credential-none3 cannot be found',
        'registries."e.test": docker-credential-none4 cannot be found',
    ]
