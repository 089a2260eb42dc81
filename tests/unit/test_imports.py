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
    *(f"cacheyd.{wing}" for wing in ["protocol", "resources", "settings", "upstream", "cache", "admin", "terminal"]),
    "cacheyd.observe",
    "cacheyd.proxy.inbound",
    "cacheyd.proxy.outbound",
    "cacheyd.protocol.errors",
    "cacheyd.protocol.codings",
    "cacheyd.singleflight",
    "cacheyd.resources.open_files",
    "cacheyd.resources.budget",
    "cacheyd.resources.slots",
    "cacheyd.resources.decoding",
    "cacheyd.observe.logs",
    "cacheyd.observe.metrics",
    "cacheyd.protocol.reference",
    "cacheyd.protocol.urls",
    "cacheyd.protocol.manifest",
    "cacheyd.store",
    "cacheyd.store.partials",
    "cacheyd.terminal.layout",
    "cacheyd.settings.values",
    "cacheyd.upstream.helpers",
    "cacheyd.terminal.workloads",
    "cacheyd.terminal.images",
    "cacheyd.admin.status",
    "cacheyd.protocol.ranges",
    "cacheyd.settings.rules",
    "cacheyd.settings.settings",
    "cacheyd.store.blobs",
    "cacheyd.store.index",
    "cacheyd.store.lists",
    "cacheyd.store.rows",
    "cacheyd.store.sights",
    "cacheyd.cache.freshness",
    "cacheyd.store.catalog",
    "cacheyd.store.lock",
    "cacheyd.store.check",
    "cacheyd.store.shelf",
    "cacheyd.store.room",
    "cacheyd.store.upkeep",
    "cacheyd.store.store",
    "cacheyd.cache.cooldown",
    "cacheyd.admin.inventory",
    "cacheyd.admin.control",
    "cacheyd.admin.commands",
    "cacheyd.cache.flight",
    "cacheyd.upstream.ratelimit",
    "cacheyd.cache.fetch",
    "cacheyd.cache.created",
    "cacheyd.upstream.logins",
    "cacheyd.upstream.auth",
    "cacheyd.upstream.origins",
    "cacheyd.cache.verified",
    "cacheyd.cache.answer",
    "cacheyd.cache.access",
    "cacheyd.cache.lists",
    "cacheyd.cache.cache",
    "cacheyd.admin.tree",
    "cacheyd.admin.warm",
    "cacheyd.admin.transfer",
    "cacheyd.proxy",
    "cacheyd.proxy.inbound.head",
    "cacheyd.proxy.inbound.layers",
    "cacheyd.proxy.inbound.link",
    "cacheyd.proxy.outbound.exchange",
    "cacheyd.proxy.outbound.wire",
    "cacheyd.proxy.outbound.intake",
    "cacheyd.proxy.outbound.names",
    "cacheyd.proxy.inbound.listener",
    "cacheyd.proxy.outbound.trust",
    "cacheyd.proxy.outbound.connection",
    "cacheyd.proxy.outbound.transport",
    "cacheyd.proxy.inbound.server",
    "cacheyd.proxy.inbound.stream",
    "cacheyd.proxy.addon",
    "cacheyd.proxy.daemon",
    "cacheyd.terminal.tools",
    "cacheyd.terminal.session",
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
    "zstandard": ("cacheyd.protocol.codings",),
    "diskcache": ("cacheyd.store.index",),
    "sqlite3": ("cacheyd.store.index",),
    "prometheus_client": ("cacheyd.observe.metrics",),
    "idna": ("cacheyd.protocol.reference",),
    "rich": ("cacheyd.terminal.tools", "cacheyd.terminal.images"),
    "yaml": ("cacheyd.terminal.workloads",),
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
    assert users <= {"cacheyd.proxy.addon", "cacheyd.proxy.daemon", "cacheyd.proxy.outbound.connection"}


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
