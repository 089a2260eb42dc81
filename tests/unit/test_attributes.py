"""Who may set what: an object's attributes are its own, and all of them are there from its construction on.

An assignment that has to break this has a comment on its line that gives the reason.
"""

import ast
import contextlib
import functools
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("cacheyd", "addons") for path in (ROOT / folder).rglob("*.py"))
CONSTRUCTORS = {"__init__", "__new__", "__post_init__"}

type Method = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def tree(path: Path) -> ast.Module:
    """A module."""
    return ast.parse(path.read_text("utf-8"))


def classes(path: Path) -> dict[str, ast.ClassDef]:
    """The classes of a module by name."""
    return {node.name: node for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)}


def methods(node: ast.ClassDef) -> Iterator[Method]:
    """Its own methods."""
    yield from (part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef))


def stored(node: ast.AST) -> Iterator[ast.Attribute]:
    """Each attribute that is set below a node."""
    yield from (part for part in ast.walk(node) if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store))


def is_own(attribute: ast.Attribute) -> bool:
    """Whether it is set on `self`."""
    return isinstance(attribute.value, ast.Name) and attribute.value.id in ("self", "cls")


def declared(node: ast.ClassDef) -> set[str]:
    """What a class has from its construction on: its fields, what its constructor sets, its setters."""
    found = {part.target.id for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)}
    for part in node.body:
        if isinstance(part, ast.Assign):
            found |= {name.id for name in part.targets if isinstance(name, ast.Name)}
    for method in methods(node):
        if method.name in CONSTRUCTORS:
            found |= {attribute.attr for attribute in stored(method) if is_own(attribute)}
        if any(ast.unparse(decorator).endswith(".setter") for decorator in method.decorator_list):
            found.add(method.name)
    return found


@functools.cache
def inherited(path: Path, name: str) -> set[str]:
    """What its bases have, ours and those of libraries, by their source."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found: set[str] = set()
    for base in getattr(module, name, object).__mro__[1:]:
        if base.__module__ not in ("builtins", "abc", "typing"):
            # Of what is written in C there is no source, nor are there attributes of its own here.
            with contextlib.suppress(OSError, TypeError):
                (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
                assert isinstance(node, ast.ClassDef)
                found |= declared(node)
    return found


def has_reason(path: Path, line: int) -> bool:
    """Whether there is a comment on a line, or right above it."""
    lines = path.read_text("utf-8").splitlines()
    return "#" in lines[line - 1] or lines[line - 2].lstrip().startswith("#")


def annotated(function: Method) -> dict[str, str]:
    """The parameters of a function with the first name in their annotation."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return {part.arg: ast.unparse(part.annotation).strip("\"'").split(" |")[0] for part in arguments if part.annotation}


def foreign(path: Path) -> Iterator[tuple[int, str]]:
    """Each place where an attribute is set on an object whose class is not of this module."""
    own = {name: declared(node) for name, node in classes(path).items()}
    anywhere = set().union(*own.values()) if own else set()
    seen: set[ast.Attribute] = set()
    for function in (n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)):
        parameters = annotated(function)
        for attribute in stored(function):
            if is_own(attribute) or attribute in seen:
                continue
            seen.add(attribute)
            kind = parameters.get(ast.unparse(attribute.value), "")
            ours = attribute.attr in own[kind] if kind in own else not kind and attribute.attr in anywhere
            if not ours:
                yield attribute.lineno, ast.unparse(attribute)


def test_attributes_are_set_by_the_object_that_has_them() -> None:
    found = [f"{path}:{line}: {what}" for path in FILES for line, what in foreign(path) if not has_reason(path, line)]
    assert not found, "\n".join(["set from outside, without a comment that says why:", *found])


def test_attributes_are_born_in_the_constructor() -> None:
    found = [
        f"{path}:{attribute.lineno}: {name}.{attribute.attr} is born in {method.name}()"
        for path in FILES
        for name, node in classes(path).items()
        for method in methods(node)
        for attribute in stored(method)
        if is_own(attribute)
        and attribute.attr not in declared(node) | inherited(path, name)
        and not has_reason(path, attribute.lineno)
    ]
    assert not found, "\n".join(found)
