"""The one table of settings: each row from default, file, environment and flag; wrong input is one line that helps."""

from collections.abc import Callable
from dataclasses import fields

import pytest

from cacheyd.settings.load import load
from cacheyd.settings.settings import GLOBAL, SETTINGS, RegistrySettings, Scope, Setting, Settings, not_live
from tests.support.settings import ROWS, SAMPLES, TRIED, beside, found, place, refusal, text

BY_NAME = {setting.name: setting for setting in SETTINGS}
SHARED_ROWS = [pytest.param(setting, id=setting.name) for setting in TRIED if setting.scope is not Scope.REGISTRY]


# Every row of the table


def test_every_row_has_a_sample() -> None:
    """A new setting is put into SAMPLES, unless its parser is one of BY_PARSER."""
    missing = set(BY_NAME) - set(SAMPLES)
    assert not missing, f"add {', '.join(sorted(missing))} to SAMPLES in tests/support/settings.py"
    assert set(SAMPLES) == set(BY_NAME)
    assert len(BY_NAME) == len(SETTINGS)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_row_has_its_field(setting: Setting) -> None:
    values = Settings if setting.scope is Scope.GLOBAL else RegistrySettings
    names = {field.name for field in fields(values)}
    assert setting.name in names, f"the row {setting.name} has no field in {values.__name__}"


def test_every_field_has_its_row() -> None:
    """But for what is no setting of its own."""
    names = {field.name for values in (Settings, RegistrySettings) for field in fields(values)}
    assert names - set(BY_NAME) == {"defaults", "registries", "origins", "warnings", "configured"}


def test_no_two_rows_share_a_variable() -> None:
    variables = [variable for setting in SETTINGS for variable in setting.variables()]
    assert len(variables) == len(set(variables))


def test_the_defaults_are_those_of_the_values() -> None:
    settings = load(environ={})
    plain = Settings()
    for setting in GLOBAL:
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


# Reloading


def test_what_takes_a_restart(write: Callable[[str], str]) -> None:
    old = load(environ={})
    assert not_live(old, load(environ={})) == []
    assert not_live(old, load(environ={"PORT": "1", "CACHE_DIR": "/x", "CACHEYD_RETRIES": "1"})) == ["port", "cache_dir"]
