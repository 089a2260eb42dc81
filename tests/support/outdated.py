"""Lists the packages of the lock file that are outdated, and the packages that hold them back: `make outdated`.

It asks the package index for each installed package. The environment must be the locked one.
"""

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
HEAD = ("package", "locked", "newest", "held back by")


def declared(project: dict[str, object], groups: dict[str, list[object]]) -> Iterator[Requirement]:
    """The requirements in pyproject.toml, of the product and of every group."""
    dependencies = project["dependencies"]
    assert isinstance(dependencies, list)
    for entry in [*dependencies, *(entry for group in groups.values() for entry in group)]:
        if isinstance(entry, str):
            yield Requirement(entry)


def holders(name: str, newest: str, asked: Iterable[tuple[str, Requirement]]) -> list[str]:
    """The names that require another version than the newest one, each with its range."""
    return [
        f"{who} ({requirement.specifier})"
        for who, requirement in asked
        if canonicalize_name(requirement.name) == name and not requirement.specifier.contains(newest, prereleases=True)
    ]


def everybody() -> Iterator[tuple[str, Requirement]]:
    """Each requirement that counts in this environment, with the name of the package that has it."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    for requirement in declared(pyproject["project"], pyproject["dependency-groups"]):
        yield "pyproject.toml", requirement
    for installed in importlib.metadata.distributions():
        if canonicalize_name(installed.name) == "cacheyd":
            continue
        for text in installed.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                yield f"{installed.name} {installed.version}", requirement


def table(rows: Iterable[tuple[str, str, str, str]]) -> str:
    """The rows as plain columns."""
    lines = [HEAD, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(size) for cell, size in zip(line, widths, strict=False)), line[3]]) for line in lines
    )


def main() -> None:
    """Prints one line for each outdated package."""
    uv = str(Path(sys.executable).with_name("uv"))
    command = [uv, "pip", "list", "--python", sys.executable, "--outdated", "--format=json", "--quiet"]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    asked = list(everybody())
    rows = []
    for entry in found:
        name, newest = canonicalize_name(entry["name"]), entry["latest_version"]
        if name != "pip":
            held = ", ".join(holders(name, newest, asked))
            rows.append((name, entry["version"], newest, held or "nobody: make upgrade"))
    print(table(sorted(rows)) if rows else "everything is the newest")


if __name__ == "__main__":
    main()
