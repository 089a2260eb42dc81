"""JSON from anybody: read only where that takes no longer than the event loop may stand."""

import json
from typing import Any

# What a JSON object may have in it (objects, lists, members, escapes): index and manifest, 1,024 entries each, have 20,000.
# 50,000 take 15 ms.
MAX_VALUES, MAX_DIGITS = 50_000, 40


def parse_object(data: bytes | bytearray) -> dict[str, Any]:
    """A JSON object. Raises ValueError, also for one that would take long: the parser lets no other thread run."""
    # The parser's time and memory grow with these. Counting them takes a hundredth of its time.
    if sum(map(data.count, (b"{", b"[", b",", b"\\"))) > MAX_VALUES:
        raise ValueError("not looked into: too much in one JSON object")
    try:
        content = json.loads(data, parse_int=_integer, parse_float=_fraction)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def _integer(text: str) -> int:
    # Long ones take quadratic time.
    if len(text) > MAX_DIGITS:
        raise ValueError("too many digits")
    return int(text)


def _fraction(text: str) -> float:
    if len(text) > MAX_DIGITS:
        raise ValueError("too many digits")
    return float(text)
