"""Parses JSON from untrusted peers, but only if this takes no longer than the event loop can stand still."""

import json
from typing import Any

# The most values of one JSON object (objects, lists, members, escapes), and the most digits of a number. An index or a
# manifest with 1,024 entries has 20,000 values. Parsing 50,000 values takes 15 ms.
MAX_VALUES, MAX_DIGITS = 50_000, 40


def parse_object(data: bytes | bytearray) -> dict[str, Any]:
    """A JSON object. Raises ValueError, also if parsing would take long: no other thread runs while the parser runs."""
    # The parser's time and memory grow with these characters. Counting them takes a hundredth of the parser's time.
    if sum(map(data.count, (b"{", b"[", b",", b"\\"))) > MAX_VALUES:
        raise ValueError("not parsed: too many values in one JSON object")
    try:
        content = json.loads(data, parse_int=_integer, parse_float=_fraction)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def _integer(text: str) -> int:
    # The time for a number grows with the square of its digits.
    if len(text) > MAX_DIGITS:
        raise ValueError("too many digits")
    return int(text)


def _fraction(text: str) -> float:
    if len(text) > MAX_DIGITS:
        raise ValueError("too many digits")
    return float(text)
