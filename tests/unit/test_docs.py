"""The README says what the table of settings and the metrics say."""

import re
from pathlib import Path

from cacheyd.config import REGISTRY_SETTINGS, SETTINGS, Setting
from cacheyd.metrics import Metrics

README = Path(__file__).parents[2] / "README.md"


def _row(setting: Setting, name: str, variables: bool) -> str:
    environment = ", ".join(f"`{v}`" for v in reversed(setting.variables())) if variables else ""
    default = {False: "off", "": "", None: ""}.get(setting.default, f"`{setting.default}`")  # type: ignore[call-overload]
    return f"| `{name}` | {environment} | {default} | {setting.help} |"


def expected_table() -> str:
    """The settings as README.md has them."""
    rows = [_row(s, s.name, variables=True) for s in SETTINGS]
    rows += [_row(s, f'registries."<ns>".{s.name}', variables=False) for s in REGISTRY_SETTINGS]
    return "\n".join(["| setting | environment | default | what |", "| --- | --- | --- | --- |", *rows])


def test_the_readme_has_every_setting() -> None:
    assert expected_table() in README.read_text()


def test_the_readme_names_only_metrics_that_exist() -> None:
    named = set(re.findall(r"`(cache(?:yd)?_[a-z_]+)(?:\{[a-z,]+\})?`", README.read_text())) - {"cache_dir"}
    source = "\n".join(path.read_text() for path in Path("cacheyd").rglob("*.py"))
    for name in named:
        assert name.removesuffix("_total") in source or name in Metrics().render().decode(), name
