"""The documentation names what there is: settings, metrics, wings, tests, and each under its own name."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cacheyd import __version__
from cacheyd.settings.settings import SETTINGS, Scope
from cacheyd.terminal.arguments import COMMANDS, Line
from tests.unit.test_imports import FLOORS, WINGS
from tools import docs

ROOT = docs.ROOT
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
# Words of others that look like settings in inline code: of containerd, the tests' own, a part of a name.
NOT_OURS = {"config_path", "override_path", "concurrent_layer_fetch_buffer", "proxy_cache_lock", "tcp_rmem", "close_notify"}
# The tables of the file, and what is a value there.
IN_TOML = {"defaults", "registries", "server", "version", "host", "capabilities"}
CODE = re.compile(r"`([^`\n]+)`")
METRIC = re.compile(r"\bcache(?:yd)?_[a-z_]+\b")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def metrics() -> list[docs.MetricRow]:
    """All of a running cacheyd."""
    return docs.metrics()


@pytest.fixture(scope="module")
def tables(metrics: list[docs.MetricRow]) -> dict[str, str]:
    return {f"settings {scope}": docs.settings_table(scope) for scope in Scope} | {"metrics": docs.metrics_table(metrics)}


# What `make docs` writes


@pytest.mark.parametrize("page", [docs.SETTINGS_PAGE, docs.METRICS_PAGE], ids=lambda page: page.name)
def test_the_page_is_what_make_docs_writes(page: Path, tables: dict[str, str]) -> None:
    text = page.read_text("utf-8")
    assert docs.filled(text, tables) == text, "run make docs"


def test_each_table_stands_once() -> None:
    text = "".join(page.read_text("utf-8") for page in PAGES)
    markers = re.findall(r"<!-- docs: (.+) -->", text)
    assert sorted(markers) == sorted([*(f"settings {scope}" for scope in Scope), "metrics"])


def test_the_page_of_settings_has_every_setting_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", docs.SETTINGS_PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(setting.name for setting in SETTINGS), "run make docs"


def test_the_page_of_metrics_has_every_metric_and_no_other(metrics: list[docs.MetricRow]) -> None:
    rows = re.findall(r"^\| `(cache\w+)` \|", docs.METRICS_PAGE.read_text("utf-8"), re.MULTILINE)
    assert rows == [metric.name for metric in metrics]
    assert {"cacheyd_build_info", "cacheyd_flights", "cacheyd_store_objects", "cacheyd_requests_total", "cache_hits"} <= set(
        rows
    )


def test_a_metric_has_its_labels_also_without_a_sample(metrics: list[docs.MetricRow]) -> None:
    labels = {metric.name: metric.labels for metric in metrics}
    assert labels["cacheyd_requests_total"] == ("registry", "kind", "result")
    assert labels["cacheyd_store_objects"] == ("kind",)
    assert labels["cacheyd_flights"] == ()


def test_a_page_with_an_old_table_gets_the_new_one() -> None:
    page = "a\n<!-- docs: metrics -->\nold\n<!-- end -->\nb\n"
    new = docs.filled(page, {"metrics": "| x |"})
    assert new == "a\n<!-- docs: metrics -->\n\n| x |\n\n<!-- end -->\nb\n"
    assert docs.filled(new, {"metrics": "| x |"}) == new


# What the pages name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_only_metrics_that_exist(page: Path, metrics: list[docs.MetricRow]) -> None:
    known = {metric.name for metric in metrics}
    settings = {setting.name for setting in SETTINGS}
    others = {"cacheyd_inspect"}  # An option of mitmproxy's, in mitmweb.
    named = set(METRIC.findall(page.read_text("utf-8"))) - settings - others
    assert named <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_only_settings_that_exist(page: Path, metrics: list[docs.MetricRow]) -> None:
    """In inline code: `name = value`, `some_name`, and `CACHEYD_NAME`."""
    names = {setting.name for setting in SETTINGS}
    known = names | NOT_OURS | {metric.name for metric in metrics} | {"cacheyd_inspect", "replay_flow"}
    labels = {label for metric in metrics for label in metric.labels}
    text = prose(page)
    for code in CODE.findall(text):
        assigned = re.fullmatch(r"(\w+) = .+", code)
        if assigned:
            assert assigned[1] in names | IN_TOML, code
        elif re.fullmatch(r"[a-z]+(_[a-z]+)+", code) and not code.startswith("test_"):
            assert code in known | labels or _is_code_of_ours(code), code
    variables = {variable for setting in SETTINGS for variable in setting.variables()} | {"CACHEYD_CONFIG", "CACHEYD_"}
    for variable in re.findall(r"\bCACHEYD_[A-Z_]*", text):
        assert variable in variables, variable


def _is_code_of_ours(name: str) -> bool:
    """Pages for contributors name functions, too."""
    return any(re.search(rf"\b(def|class) {name}\b|\.{name}\b", path.read_text("utf-8")) for path in _sources())


def _sources() -> list[Path]:
    return [path for folder in ("cacheyd", "tests") for path in (ROOT / folder).rglob("*.py")]


# The house


def test_the_page_of_the_house_says_what_each_wing_is_for() -> None:
    """A new wing gets its row in the table; what is gone is taken out."""
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rows = re.findall(r"^\| (`cacheyd/[^|]*) \| .+ \|$", section(page, "## The house"), re.MULTILINE)
    named = [name.rstrip("/").rpartition("/")[2] for row in rows for name in re.findall(r"`([^`]+)`", row)]
    wings = {path.stem for path in (ROOT / "cacheyd").iterdir() if path.is_dir() or path.suffix == ".py"}
    assert sorted(named) == sorted(name for name in wings if not name.startswith("__"))


def test_the_page_of_the_house_draws_the_rule_of_imports() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    (drawn,) = re.findall(r"```text\n(protocol.*?)```", section(page, "## The house"), re.DOTALL)
    lines = tuple(tuple(line.split(" | ")) for line in drawn.splitlines())
    assert lines == WINGS[: len(lines)]
    assert set(FLOORS) - {name for line in lines for name in line} == {"__main__"}


def section(page: str, title: str) -> str:
    """The text under a heading, up to the next one of its level."""
    (found,) = re.findall(rf"^{title}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    return str(found)


def commands(table: Mapping[str, Line], before: str = "cacheyd") -> Iterator[str]:
    """Each command of a table as it is typed, with its subcommand."""
    for name, line in table.items():
        yield from commands(line.actions, f"{before} {name}") if line.actions else [f"{before} {name}"]


def test_the_page_of_tools_has_every_command() -> None:
    text = (ROOT / "docs" / "tools.md").read_text("utf-8")
    missing = [command for command in commands(COMMANDS) if not re.search(rf"(?:`|^){command}\b", text, re.MULTILINE)]
    assert not missing, f"document it in docs/tools.md: {', '.join(missing)}"


def test_each_test_that_a_page_names_exists() -> None:
    tests = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for page in PAGES:
        for name in re.findall(r"`(test_\w+)`", page.read_text("utf-8")):
            assert f"def {name}(" in tests, (page.name, name)


def test_each_walk_has_its_place() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    found = re.findall(r"^<!-- walk: (\w+) -->\n(?:(?!<!--).*\n)*<!-- end -->$", page, re.MULTILINE)
    assert found == ["hit", "miss", "revalidation", "eviction"]


def test_the_recipe_to_replay_a_bug_is_a_test_that_runs() -> None:
    (recipe,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL)
    assert (ROOT / "tests" / "hostile" / "test_replay.py").read_text("utf-8").endswith(recipe)


# Figures that stand in two places


def test_the_newest_release_is_the_version_that_runs() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert titles[0] == "[Unreleased]"
    released = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d", title) for title in titles[1:]]
    assert released[0] is not None
    assert all(released)
    assert released[0][1] == __version__ == tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def test_the_memory_of_a_pod_is_what_the_page_says() -> None:
    said = [number for page in PAGES for number in re.findall(r"A pod needs (\d+) MiB", page.read_text("utf-8"))]
    manifest = (ROOT / "configs" / "kubernetes" / "cacheyd.yaml").read_text("utf-8")
    assert len(said) == 1
    assert re.findall(r"requests:\n(?: +\w[^\n]*\n)*? +memory: (\d+)Mi", manifest) == said
