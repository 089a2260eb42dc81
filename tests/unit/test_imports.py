"""The rules of imports: they point down only, and each foreign library stays behind one door."""

import ast
import functools
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The wings, from the bottom up: a module may import modules of its own wing and of those that stand below it. Wings of one
# line do not know each other.
WINGS = (
    ("protocol", "observe", "singleflight"),
    ("resources",),
    ("settings",),
    ("store", "upstream"),
    ("cache",),
    ("admin",),
    ("service",),
    ("proxy",),
    ("terminal",),
    ("cli",),
    ("__main__",),
)
FLOORS = {wing: floor for floor, wings in enumerate(WINGS) for wing in wings}

# Who may import what is not ours. Prefixes of module names.
DOORS = {
    "mitmproxy": ("cacheyd.proxy", "addons"),
    "h11": ("cacheyd.proxy",),
    "OpenSSL": ("cacheyd.proxy",),
    "aiohappyeyeballs": ("cacheyd.proxy",),
    "certifi": ("cacheyd.proxy",),
    "zstandard": ("cacheyd.protocol.codings",),
    "diskcache": ("cacheyd.store.index",),
    "sqlite3": ("cacheyd.store.index",),
    "prometheus_client": ("cacheyd.observe.metrics",),
    "idna": ("cacheyd.protocol.hosts",),
    "rich": ("cacheyd.terminal.tables", "cacheyd.terminal.progress", "cacheyd.terminal.displays"),
    "yaml": ("cacheyd.terminal.documents",),
}


def sources() -> dict[str, Path]:
    """Each module's name and file."""
    found = {}
    for folder in ("cacheyd", "addons"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


SOURCES = sources()


@functools.cache
def imports(module: str) -> tuple[tuple[str, int], ...]:
    """What a module imports, anywhere in it, with the line; of ours always modules, never names in them."""
    return tuple(_imports(module))


def _imports(module: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(SOURCES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are absolute"
            assert node.module
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in SOURCES or full == "mitmproxy.ctx" else node.module), node.lineno


def wing_of(module: str) -> str:
    """`cacheyd.store.index` is of `store`; the package itself, which has the version, is of none."""
    return module.partition(".")[2].partition(".")[0]


@pytest.mark.parametrize("module", [name for name in SOURCES if wing_of(name) and name.startswith("cacheyd.")])
def test_imports_point_down_only(module: str) -> None:
    own = wing_of(module)
    for name, line in imports(module):
        wing = wing_of(name) if name.startswith("cacheyd.") else ""
        if wing and wing != own:
            assert FLOORS[wing] < FLOORS[own], f"{module}:{line} imports {name}, which stands above it or beside it"


def test_there_is_no_cycle() -> None:
    graph = {module: {name for name, _ in imports(module) if name in SOURCES} for module in SOURCES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) >= len(SOURCES)


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_one_door(library: str) -> None:
    for module in SOURCES:
        for name, line in imports(module):
            if name.partition(".")[0] == library:
                allowed = any(module == door or module.startswith(f"{door}.") for door in DOORS[library])
                assert allowed, f"{module}:{line} imports {name}"


def test_the_global_context_of_mitmproxy_stays_where_it_is_set() -> None:
    """`ctx` is global state: only the parts that mitmproxy itself starts hang on it."""
    users = {module for module in SOURCES for name, _ in imports(module) if name == "mitmproxy.ctx"}
    assert users <= {"cacheyd.proxy.addon", "cacheyd.proxy.daemon", "cacheyd.proxy.outbound.connection"}


def test_the_script_hides_no_package() -> None:
    """mitmproxy puts a script's folder on sys.path."""
    names = {path.stem for path in (ROOT / "addons").glob("*.py")}
    assert not names & ({"cacheyd"} | set(sys.stdlib_module_names) | set(DOORS))


@pytest.mark.parametrize("typed", [[], ["--help"], ["--version"], ["serve", "--help"], ["nonsense"], ["ls", "a b"], ["rm"]])
def test_the_command_line_starts_without_what_only_its_work_needs(typed: list[str]) -> None:
    """mitmproxy takes most of a second to import: not for --help, --version and wrong input."""
    heavy = {"mitmproxy", "prometheus_client", "diskcache", "rich", "yaml", "hypothesis", "pytest"}
    program = f"""
import contextlib, sys, cacheyd.cli
with contextlib.suppress(SystemExit):
    {f"cacheyd.cli.main({typed})" if typed else ""}
    pass
sys.exit(" ".join({heavy} & set(sys.modules)) or 0)
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=20, check=False)
    assert result.returncode == 0, result.stderr.decode()
