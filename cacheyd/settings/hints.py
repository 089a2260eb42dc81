"""Hints for a name that is not a setting, or is in the wrong place: the setting that the operator probably means."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from cacheyd.settings.settings import BY_NAME, Scope, Setting

# The tables of the file.
TABLES = ("defaults", "registries")
PLACES = {Scope.GLOBAL: "at the top of the file", Scope.DEFAULTS: "in [defaults]", Scope.REGISTRY: 'in [registries."…"]'}


def printable(name: str) -> str:
    """A name without characters that a line of text cannot show."""
    return name if name.isprintable() else ascii(name)


def nearest_of(name: str, names: Iterable[str]) -> str:
    """The name that is most similar to `name`; empty if none is similar."""
    return next(iter(get_close_matches(name.lower(), list(names), 1)), "")


def hint_for(key: str, known: Mapping[str, Setting], *, top: bool) -> str:
    """A hint for a key that its table does not know: the probable setting and its place."""
    nearest = nearest_of(key, [*known, *BY_NAME, *(TABLES if top else ())])
    if not nearest:
        return "known: " + ", ".join(sorted(known))
    if nearest in TABLES:
        return f"did you mean [{nearest}]?"
    question = "" if nearest == key else f"did you mean {nearest}? "
    return f"{question}it belongs {PLACES[BY_NAME[nearest].scope]}" if nearest not in known else question.rstrip()
