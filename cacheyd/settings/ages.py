"""How old images must be, by pattern: `min_ages`."""

from functools import lru_cache

from cacheyd.protocol.reference import Reference
from cacheyd.protocol.registries import names_of
from cacheyd.settings import values as parse
from cacheyd.settings.patterns import MAX_DECIDED, image_repository, literals, parse_pattern
from cacheyd.settings.rules import parse_rules


def parse_ages(value: object) -> tuple[tuple[str, float], ...]:
    """Durations (seconds) by pattern, from a table or a text such as `ghcr.io=1d,docker.io/*:latest=7d`.

    Raises ValueError with the expected form.
    """
    found = parse.durations(value, '{ "docker.io/library/*" = "3d", "*/*:latest" = "7d" }')
    parse_rules([text for text, _ in found])
    return found


class Ages:
    """The durations of `min_ages`. The most specific pattern that covers a tag counts; in a tie, the longest duration."""

    def __init__(self, ages: tuple[tuple[str, float], ...] = ()) -> None:
        rules = [(parse_pattern(text), age) for text, age in ages]
        # Of two patterns of registries, the pattern with more characters that stand for themselves counts.
        self._rules = sorted(rules, key=lambda r: (r[0].repository is None, -(r[0].weight or literals(r[0].text)), -r[1]))
        self._found = lru_cache(maxsize=MAX_DECIDED)(self._find)

    def find(self, ref: Reference) -> float | None:
        """How old the image of a tag must be (seconds); None if no pattern covers the tag."""
        return self._found(ref.registry, ref.repository, ref.reference) if self._rules else None

    def _find(self, registry: str, repository: str, tag: str) -> float | None:
        names, repository = names_of(registry), image_repository(registry, repository)
        found = (age for rule, age in self._rules if any(rule.covers(one, repository, tag, untagged=False) for one in names))
        return next(found, None)
