"""Warnings about settings that work, but that the operator can hardly mean."""

from collections.abc import Iterator, Mapping
from typing import Any

from cacheyd.settings.environment import PREFIX, is_of_service
from cacheyd.settings.hints import PLACES, nearest_of, printable
from cacheyd.settings.pins import meant_image
from cacheyd.settings.settings import BY_NAME, ROWS, RegistrySettings, Scope
from cacheyd.settings.show import quoted
from cacheyd.settings.values import Size


def unknown_variables(environ: Mapping[str, str], registries: Mapping[str, RegistrySettings]) -> Iterator[str]:
    """A line for each variable that looks like a setting but is not a setting."""
    shared = [s.name for s in ROWS if s.scope is not Scope.REGISTRY]
    known = {"CACHEYD_CONFIG", *(f"{PREFIX}{name.upper()}" for name in shared)}
    known.update(row.password_env for row in registries.values())
    for name, value in sorted(environ.items()):
        if not value or not name.startswith(PREFIX) or name in known or is_of_service(name, value):
            continue
        nearest = nearest_of(name.removeprefix(PREFIX), ["config", *BY_NAME])
        hint = f"; did you mean {PREFIX}{nearest.upper()}?" if nearest else ""
        if nearest in BY_NAME and BY_NAME[nearest].scope is Scope.REGISTRY:
            hint = f"; {nearest} can only stand in the file, {PLACES[Scope.REGISTRY]}"
        yield f"environment: {printable(name)}: there is no such setting, so it changes nothing{hint}"


def doubts(values: Mapping[str, Any], environ: Mapping[str, str], registries: Mapping[str, RegistrySettings]) -> Iterator[str]:
    """A line for each doubt. `values` are the values of the global rows; `environ` is the environment that they came from."""
    yield from unknown_variables(environ, registries)
    known = [*registries, values["default_registry"]]
    for name in ("allow", "deny", "pin", "min_ages"):
        for pattern in (item if isinstance(item, str) else item[0] for item in values[name]):
            if image := meant_image(pattern, known):
                what = "images of a" if "/" in pattern else "a"
                yield (
                    f"{name}: {quoted(pattern)} means {what} registry called {pattern.partition('/')[0]};"
                    f" the image of Docker Hub is {quoted(image)}"
                )
    if values["max_size"] == values["min_free"] == Size():
        yield "neither max_size nor min_free is set: the cache grows until its disk is full"
