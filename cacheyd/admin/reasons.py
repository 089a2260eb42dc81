"""The reasons why parts of an image are not in the cache, in one line."""

from collections.abc import Iterable
from typing import NamedTuple

from cacheyd.observe.wording import counted

# The most different reasons in one line. Each reason has 300 characters of a registry's text at most.
MAX_REASONS = 4


class Reason(NamedTuple):
    """Why a part of an image is missing: `what` is the part (empty for the image itself), `why` is the reason."""

    what: str
    why: str


def told(reasons: Iterable[Reason]) -> str:
    """The reasons in one line of bounded length. Equal reasons are told once, with a count."""
    groups: dict[str, dict[str, None]] = {}
    for what, why in reasons:
        groups.setdefault(why, {})[what] = None
    lines = []
    for why, names in list(groups.items())[:MAX_REASONS]:
        first, more = next(iter(names)), len(names) - 1
        lines.append(f"{f'{first}: ' if first else ''}{why}{f' (and for {more} more)' if more else ''}")
    rest = len(groups) - len(lines)
    return "; ".join([*lines, *([f"and {counted(rest, 'other reason')}"] if rest else [])])
