"""The figures of the code: sizes of modules, functions and classes, imports between rooms, missing docstrings.

python tools/figures.py             prints the table, and everything that is over a limit
python tools/figures.py store       prints the modules of one wing, too
"""

import ast
import functools
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "cacheyd"
# The limits: lines of a module, lines of a function, methods and attributes of a class, arrows between rooms. An arrow is an
# import of one room from another.
MODULE_MEDIAN, MODULE_MAX = 150, 350
FUNCTION_MEDIAN, FUNCTION_P90, FUNCTION_MAX = 7, 19, 40
METHODS, ATTRIBUTES, ARROWS = 20, 12, 60

type Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def sources() -> dict[str, ast.Module]:
    """The syntax tree of each module, by its path below the package. Leaves out package files that have only a docstring."""
    found = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    return {name: tree for name, tree in found.items() if not (name.endswith("__init__.py") and len(tree.body) == 1)}


def lines(name: str) -> int:
    """The number of lines of a module."""
    return len((PACKAGE / name).read_text("utf-8").splitlines())


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The name of each function, and its number of lines with its docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or 0) - node.lineno + 1


def classes(tree: ast.AST) -> Iterator[tuple[str, int, int]]:
    """The name of each class, its number of methods, and its number of attributes (of `self`, and declared fields)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
            fields = {p.target.id for p in node.body if isinstance(p, ast.AnnAssign) and isinstance(p.target, ast.Name)}
            own = fields | {name for method in methods for name in _assigned(method)}
            yield node.name, len(methods), 0 if _is_value(node) else len(own)


def _assigned(method: Function) -> Iterator[str]:
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def _is_value(node: ast.ClassDef) -> bool:
    """Whether a class is a frozen dataclass, a named tuple, a typed dictionary or a protocol: its fields have no limit."""
    said = " ".join(map(ast.unparse, [*node.decorator_list, *node.bases]))
    return "frozen=True" in said or "NamedTuple" in said or "TypedDict" in said or "Protocol" in said


def room(module: str) -> str:
    """The room of a module: its wing, or the module itself if it is beside the wings."""
    return module.split("/", maxsplit=1)[0].removesuffix(".py")


def arrows() -> set[tuple[str, str]]:
    """The pairs of rooms of which the first imports from the second."""
    found = set()
    for name, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cacheyd."):
                found.add((room(name), node.module.split(".")[1]))
            elif isinstance(node, ast.ImportFrom) and node.module == "cacheyd":
                found |= {(room(name), alias.name) for alias in node.names if alias.name != "__version__"}
    return {(start, end) for start, end in found if start != end}


def undocumented() -> list[str]:
    """The public modules, classes, functions and methods without a docstring. An override needs none."""
    found = []
    for name, tree in sources().items():
        if ast.get_docstring(tree) is None:
            found.append(name)
        found += [f"{name}:{line}: {what}" for what, line in _without_docstring(tree.body)]
    return found


def _without_docstring(body: list[ast.stmt], within: str = "") -> Iterator[tuple[str, int]]:
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        overrides = any("override" in ast.unparse(decorator) for decorator in node.decorator_list)
        if ast.get_docstring(node) is None and not overrides:
            yield f"{within}{node.name}", node.lineno
        if isinstance(node, ast.ClassDef):
            yield from _without_docstring(node.body, f"{node.name}.")


def public() -> int:
    """The number of public names."""
    count = 0
    for tree in sources().values():
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                count += 1
                if isinstance(node, ast.ClassDef):
                    count += sum(1 for p in node.body if isinstance(p, Function.__value__) and not p.name.startswith("_"))
    return count


def over() -> list[str]:
    """A line for each module, function or class that is over a limit."""
    found = []
    for name, tree in sources().items():
        if lines(name) > MODULE_MAX:
            found.append(f"{name}: {lines(name)} lines, over {MODULE_MAX}")
        found += [
            f"{name}: {what}() has {size} lines, over {FUNCTION_MAX}" for what, size in functions(tree) if size > FUNCTION_MAX
        ]
        for what, methods, attributes in classes(tree):
            if methods > METHODS:
                found.append(f"{name}: {what} has {methods} methods, over {METHODS}")
            if attributes > ATTRIBUTES:
                found.append(f"{name}: {what} has {attributes} attributes, over {ATTRIBUTES}")
    return found


@functools.cache
def summary() -> dict[str, float]:
    """The figures by name."""
    sizes = [lines(name) for name in sources()]
    long = [size for tree in sources().values() for _, size in functions(tree)]
    return {
        "modules": len(sizes),
        "lines": sum(sizes),
        "module, median": statistics.median(sizes),
        "module, longest": max(sizes),
        "functions": len(long),
        "function, median": statistics.median(long),
        "function, 90th percentile": statistics.quantiles(long, n=10)[-1],
        "function, longest": max(long),
        "class, most methods": max(m for tree in sources().values() for _, m, _ in classes(tree)),
        "class, most attributes": max(a for tree in sources().values() for _, _, a in classes(tree)),
        "arrows between rooms": len(arrows()),
        "public names": public(),
        "without a docstring": len(undocumented()),
    }


def main() -> None:
    """Prints the table."""
    for name, value in summary().items():
        print(f"{name:28}{value:>8g}")
    wings = sys.argv[1:]
    for name in sources():
        if room(name) in wings:
            print(f"{lines(name):6} {name}")
    print(*over(), *(f"{name} has no docstring" for name in undocumented()), sep="\n")


if __name__ == "__main__":
    main()
