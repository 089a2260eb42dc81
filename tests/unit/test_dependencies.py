"""What pyproject.toml declares, what the code imports and what is locked are the same."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support import outdated

ROOT = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PRODUCT = [Requirement(text) for text in PYPROJECT["project"]["dependencies"]]
TEST, DEV = (
    [Requirement(text) for text in PYPROJECT["dependency-groups"][name] if isinstance(text, str)] for name in ("test", "dev")
)
# What pytest loads by itself.
PLUGINS = {"pytest-asyncio", "pytest-timeout", "pytest-xdist"}
LOCKED = re.compile(r"^([a-z0-9-]+)==([^ ]+)", re.MULTILINE)


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


@cache
def imported(*folders: str) -> frozenset[str]:
    """The distributions that the code in these folders imports, anywhere in it."""
    modules = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    modules |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    modules.add(node.module)
    tops = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"cacheyd", "addons", "tests", "tools"}
    owners = importlib.metadata.packages_distributions()
    return frozenset(canonicalize_name(owner) for top in tops for owner in owners.get(top, [top]))


@cache
def locked(file: str) -> dict[str, set[Version]]:
    """Each package of a lock file; several versions where they depend on the platform."""
    found: dict[str, set[Version]] = {}
    for name, version in LOCKED.findall((ROOT / file).read_text("utf-8")):
        found.setdefault(name, set()).add(Version(version))
    return found


def test_the_product_imports_what_it_declares_and_declares_what_it_imports() -> None:
    assert imported("cacheyd", "addons") == names(PRODUCT)


def test_the_tests_import_what_is_declared_for_them() -> None:
    assert names(TEST) - PLUGINS <= imported("tests")
    assert imported("tests") <= names(PRODUCT) | names(TEST)


@pytest.mark.parametrize(
    ("file", "requirements"),
    [
        ("requirements.lock", PRODUCT),
        ("requirements-dev.lock", PRODUCT + TEST + DEV),
        ("requirements-lowest.lock", PRODUCT + TEST),
    ],
)
def test_what_is_declared_is_locked(file: str, requirements: list[Requirement]) -> None:
    """If not: make lock."""
    for requirement in requirements:
        versions = locked(file).get(canonicalize_name(requirement.name), set())
        assert versions, requirement
        assert all(version in requirement.specifier for version in versions), requirement


def test_the_tests_run_with_what_the_image_has() -> None:
    image, dev = locked("requirements.lock"), locked("requirements-dev.lock")
    assert {name: dev.get(name) for name in image} == image


def test_the_lowest_is_the_lowest() -> None:
    for requirement in PRODUCT:
        (lowest,) = (Version(spec.version) for spec in requirement.specifier if spec.operator == ">=")
        (version,) = locked("requirements-lowest.lock")[canonicalize_name(requirement.name)]
        # An end such as 2025.11 names no release, but the first one after it.
        assert version.release[: len(lowest.release)] == lowest.release


def test_who_holds_a_package_back_is_named() -> None:
    asked = [("a 1", Requirement("Some_Lib<=2.0,>=1")), ("b 1", Requirement("some-lib>=1")), ("c 1", Requirement("other<2"))]
    assert outdated.holders("some-lib", "2.1", asked) == ["a 1 (<=2.0,>=1)"]
    assert outdated.holders("some-lib", "2.0", asked) == []


def test_what_is_behind_is_a_plain_table() -> None:
    assert outdated.table([("h2", "4.3.0", "4.4.1", "x 1 (<=4.3)")]).splitlines() == [
        "package  locked  newest  held back by",
        "h2       4.3.0   4.4.1   x 1 (<=4.3)",
    ]
