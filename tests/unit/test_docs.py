"""The README says what the table of settings and the metrics say."""

import re
from pathlib import Path

from cacheyd.observe.metrics import Metrics
from cacheyd.settings.settings import SETTINGS, Scope, Setting

README = Path(__file__).parents[2] / "README.md"


def _row(setting: Setting) -> str:
    environment = ", ".join(f"`{v}`" for v in reversed(setting.variables()))
    default = "off" if setting.default is False else f"`{setting.default}`" if setting.default != "" else ""
    return f"| `{setting.name}` | {environment} | {default} | {setting.help}{'' if setting.live else ' (takes a restart)'} |"


def expected_table(scope: Scope) -> str:
    """The settings of a scope as README.md has them."""
    rows = [_row(setting) for setting in SETTINGS if setting.scope is scope]
    return "\n".join(["| setting | environment | default | what |", "| --- | --- | --- | --- |", *rows])


def test_the_readme_has_every_setting() -> None:
    for scope in Scope:
        assert expected_table(scope) in README.read_text(), scope


def test_the_readme_names_only_metrics_that_exist() -> None:
    named = set(re.findall(r"`(cache(?:yd)?_[a-z_]+)(?:\{[a-z,]+\})?`", README.read_text())) - {"cache_dir"}
    source = "\n".join(path.read_text() for path in Path("cacheyd").rglob("*.py"))
    for name in named:
        assert name.removesuffix("_total") in source or name in Metrics().render().decode(), name


def test_contributing_says_what_each_wing_is_for() -> None:
    """A new wing gets its row in the table; what is gone is taken out."""
    root = README.parent
    rows = re.findall(r"^\| (`cacheyd/[^|]*) \| .+ \|$", (root / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    named = [name.rstrip("/").rpartition("/")[2] for row in rows for name in re.findall(r"`([^`]+)`", row)]
    wings = [path.stem for path in (root / "cacheyd").iterdir() if path.is_dir() or path.suffix == ".py"]
    assert sorted(named) == sorted(name for name in wings if not name.startswith("__"))


def test_the_memory_of_a_pod_is_what_the_readme_says() -> None:
    (said,) = re.findall(r"A pod needs (\d+) MiB", README.read_text())
    manifest = (README.parent / "configs" / "kubernetes" / "cacheyd.yaml").read_text()
    assert re.findall(r"requests:\n(?: +\w[^\n]*\n)*? +memory: (\d+)Mi", manifest) == [said]
