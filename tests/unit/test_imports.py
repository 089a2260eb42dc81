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

# From the bottom up. A module may import modules that stand below it, and no others.
ORDER = (
    "cacheyd",
    "cacheyd.errors",
    "cacheyd.codings",
    "cacheyd.once",
    "cacheyd.descriptors",
    "cacheyd.budget",
    "cacheyd.slots",
    "cacheyd.decoding",
    "cacheyd.logs",
    "cacheyd.metrics",
    "cacheyd.reference",
    "cacheyd.urls",
    "cacheyd.manifest",
    "cacheyd.store",
    "cacheyd.store.partials",
    "cacheyd.layout",
    "cacheyd.parse",
    "cacheyd.helpers",
    "cacheyd.workloads",
    "cacheyd.images",
    "cacheyd.status",
    "cacheyd.ranges",
    "cacheyd.rules",
    "cacheyd.config",
    "cacheyd.store.blobs",
    "cacheyd.store.index",
    "cacheyd.store.lists",
    "cacheyd.store.rows",
    "cacheyd.store.sights",
    "cacheyd.policy",
    "cacheyd.store.catalog",
    "cacheyd.store.lock",
    "cacheyd.store.check",
    "cacheyd.store.shelf",
    "cacheyd.store.room",
    "cacheyd.store.upkeep",
    "cacheyd.store.store",
    "cacheyd.cooldown",
    "cacheyd.inventory",
    "cacheyd.control",
    "cacheyd.commands",
    "cacheyd.flight",
    "cacheyd.limits",
    "cacheyd.fetch",
    "cacheyd.created",
    "cacheyd.logins",
    "cacheyd.auth",
    "cacheyd.origins",
    "cacheyd.verified",
    "cacheyd.answer",
    "cacheyd.access",
    "cacheyd.listing",
    "cacheyd.cache",
    "cacheyd.tree",
    "cacheyd.warm",
    "cacheyd.transfer",
    "cacheyd.proxy",
    "cacheyd.proxy.head",
    "cacheyd.proxy.layers",
    "cacheyd.proxy.link",
    "cacheyd.proxy.exchange",
    "cacheyd.proxy.wire",
    "cacheyd.proxy.intake",
    "cacheyd.proxy.names",
    "cacheyd.proxy.listener",
    "cacheyd.proxy.trust",
    "cacheyd.proxy.connection",
    "cacheyd.proxy.transport",
    "cacheyd.proxy.server",
    "cacheyd.proxy.stream",
    "cacheyd.proxy.addon",
    "cacheyd.proxy.daemon",
    "cacheyd.tools",
    "cacheyd.session",
    "cacheyd.cli",
    "cacheyd.__main__",
)

# Who may import what is not ours. Prefixes of module names.
DOORS = {
    "mitmproxy": ("cacheyd.proxy", "addons"),
    "h11": ("cacheyd.proxy",),
    "OpenSSL": ("cacheyd.proxy",),
    "aiohappyeyeballs": ("cacheyd.proxy",),
    "certifi": ("cacheyd.proxy",),
    "zstandard": ("cacheyd.codings",),
    "diskcache": ("cacheyd.store.index",),
    "sqlite3": ("cacheyd.store.index",),
    "prometheus_client": ("cacheyd.metrics",),
    "idna": ("cacheyd.reference",),
    "rich": ("cacheyd.tools", "cacheyd.images"),
    "yaml": ("cacheyd.workloads",),
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


def test_every_module_has_its_place() -> None:
    """A new module is put into ORDER above what it imports."""
    assert {name for name in SOURCES if name.startswith("cacheyd")} - set(ORDER) == set()


@pytest.mark.parametrize("module", [name for name in SOURCES if name in ORDER])
def test_imports_point_down_only(module: str) -> None:
    below = set(ORDER[: ORDER.index(module)])
    for name, line in imports(module):
        if name.partition(".")[0] == "cacheyd":
            assert name in below, f"{module}:{line} imports {name}, which stands above it"


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
    assert users <= {"cacheyd.proxy.addon", "cacheyd.proxy.daemon", "cacheyd.proxy.connection"}


def test_the_script_hides_no_package() -> None:
    """mitmproxy puts a script's folder on sys.path."""
    names = {path.stem for path in (ROOT / "addons").glob("*.py")}
    assert not names & ({"cacheyd"} | set(sys.stdlib_module_names) | set(DOORS))


@pytest.mark.parametrize("library", ["mitmproxy", "prometheus_client", "diskcache", "rich", "yaml", "hypothesis", "pytest"])
def test_the_command_line_starts_without(library: str) -> None:
    """mitmproxy takes most of a second to import: not for --help, --version and wrong input."""
    program = f"import sys, cacheyd.cli; sys.exit({library!r} in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=20, check=False)
    assert result.returncode == 0, result.stderr.decode()
