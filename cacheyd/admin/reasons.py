"""Why parts of an image are not in the cache, told in one line."""

from collections.abc import Iterable
from typing import NamedTuple

from cacheyd.observe.wording import counted

# So many different reasons are told in one line; each has at most 300 characters of a registry's.
MAX_REASONS = 4


class Reason(NamedTuple):
    """Why something of an image is not there: what it is (empty for the image itself), and why."""

    what: str
    why: str


def told(reasons: Iterable[Reason]) -> str:
    """Reasons in one line of bounded length: what is alike is told once, with a count."""
    groups: dict[str, dict[str, None]] = {}
    for what, why in reasons:
        groups.setdefault(why, {})[what] = None
    lines = []
    for why, names in list(groups.items())[:MAX_REASONS]:
        first, more = next(iter(names)), len(names) - 1
        lines.append(f"{f'{first}: ' if first else ''}{why}{f' (and for {more} more)' if more else ''}")
    rest = len(groups) - len(lines)
    return "; ".join([*lines, *([f"and {counted(rest, 'other reason')}"] if rest else [])])
