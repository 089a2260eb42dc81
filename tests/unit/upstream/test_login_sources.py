"""Passwords of the settings."""

from pathlib import Path

import pytest

from cacheyd.settings.settings import ConfigError, RegistrySettings
from cacheyd.upstream.login_sources import password


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
