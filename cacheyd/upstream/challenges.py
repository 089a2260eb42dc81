"""Parses challenges: the login that a registry wants in Authorization (WWW-Authenticate, RFC 9110 section 11)."""

import re
from dataclasses import dataclass

from cacheyd.protocol.headers import HeaderList

# The most bytes of all challenges of a response. If they are longer, cacheyd answers none of them.
CHALLENGES_MAX = 4 << 10
_WORD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]+=*(?=[ \t]*(?:,|$))")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_UNQUOTED = re.compile(r"[^\s,]+")
_GAP = re.compile(r"[\s,]*")


@dataclass(frozen=True, slots=True)
class Challenge:
    """A WWW-Authenticate challenge: `scheme` in lower case, with its parameters."""

    scheme: str
    params: dict[str, str]


def parse_challenges(headers: HeaderList) -> list[Challenge]:
    """The challenges of a 401, in order, from all lines; a line can have several (RFC 9110 section 11.6.1).

    Empty if the lines have more than 4 KiB together. Skips text that is not a challenge, up to the next comma.
    """
    lines = [value for name, value in headers if name.lower() == "www-authenticate"]
    if sum(map(len, lines)) > CHALLENGES_MAX:
        return []
    return [challenge for line in lines for challenge in _challenges(line)]


def _challenges(line: str) -> list[Challenge]:
    """The challenges of one line. Reads each character at most twice: skips text that does not match, and never goes back."""
    found: list[Challenge] = []
    at, comma = 0, True
    while True:
        gap = _GAP.match(line, at)
        assert gap
        at, comma = gap.end(), comma or "," in gap[0]
        if at == len(line):
            return found
        word = _WORD.match(line, at)
        equals = _EQUALS.match(line, word.end()) if word else None
        if word and equals:
            value = (_QUOTED if line[equals.end() : equals.end() + 1] == '"' else _UNQUOTED).match(line, equals.end())
            if value is None and line[equals.end() : equals.end() + 1] == '"':
                return found  # The rest of the line is in a quoted string without an end.
            if value and found:
                found[-1].params[word[0].lower()] = _value(value)
            at = value.end() if value else equals.end()
        elif word and comma and _SCHEME.fullmatch(word[0]):
            found.append(Challenge(word[0].lower(), {}))
            at = _after_token68(line, word.end())
        else:
            at = _pass_over(line, at)
        comma = False


def _value(match: re.Match[str]) -> str:
    return re.sub(r"\\(.)", r"\1", match[1]) if match.re is _QUOTED else match[0]


def _after_token68(line: str, at: int) -> int:
    """The end of a scheme's token68, if the scheme has a token68 instead of parameters; else `at`."""
    start = at
    while line[start : start + 1] == " ":
        start += 1
    token = _TOKEN68.match(line, start) if start > at else None
    return token.end() if token else at


def _pass_over(line: str, at: int) -> int:
    """The end of a text that is neither a scheme nor a parameter."""
    match = _QUOTED.match(line, at) or _UNQUOTED.match(line, at)
    return match.end() if match else at + 1


def bearer_of(challenges: list[Challenge]) -> Challenge | None:
    """The first challenge that wants a token and names a token service."""
    return next((c for c in challenges if c.scheme == "bearer" and "realm" in c.params), None)
