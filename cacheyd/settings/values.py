"""Parsers of single setting values. Each raises ValueError; its message is what to read after the word "expected"."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.registries import canonical_registry
from cacheyd.protocol.urls import parse_url

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*(%|b?|[kmgt](?:i?b)?)", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True, slots=True)
class Size:
    """A number of bytes, or a share of a disk (0 to 1)."""

    bytes: int = 0
    share: float = 0.0

    def of(self, total: int) -> int:
        """The size in bytes, on a disk of `total` bytes."""
        return self.bytes or int(total * self.share)


def duration(value: object) -> float:
    """Seconds from `"90s"`, `"5m"`, `"1h30m"`, `"7d"` or a number of seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e10:
        return float(value)
    if isinstance(value, str) and re.fullmatch(r"\d{1,10}(\.\d+)?", value):
        return float(value)
    if isinstance(value, str) and len(value) < 50 and _DURATION.fullmatch(value):
        return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(value))
    raise ValueError('a duration such as "90s", "5m", "1h30m" or "7d"')


def size(value: object) -> Size:
    """Bytes from `"50GiB"` (binary) or `"50GB"` (decimal); a share of the disk from `"5%"`; size 0 from `""`."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return Size(value)
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip()) if value.strip() else None
        if not value.strip():
            return Size()
        if match and match[2] == "%" and float(match[1]) < 100:
            return Size(share=float(match[1]) / 100)
        if match and match[2] != "%":
            unit = match[2].lower()
            base = 1000 if unit.endswith("b") and "i" not in unit and len(unit) == 2 else 1024
            return Size(int(float(match[1]) * base ** _POWERS[unit[:1].strip("b")]))
    raise ValueError('a size such as "50GiB", "500GB" or "5%"')


def share(value: object) -> Size:
    """A share from `"1%"` to `"100%"`."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?)\s*%", value.strip()) if isinstance(value, str) else None
    if match and 1 <= float(match[1]) <= 100:
        return Size(share=float(match[1]) / 100)
    raise ValueError('a share such as "90%"')


def byte_count(value: object) -> int:
    """Bytes from `"16MiB"` or a number; 0 from `""`. Refuses a share: there is no disk size to take the share of."""
    found = size(value)
    if found.share:
        raise ValueError('a size such as "16MiB"')
    return found.bytes


def integer(low: int, high: int) -> Callable[[object], int]:
    """Makes a parser of whole numbers in a range."""

    def parse(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"\d{1,18}", value):
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise ValueError(f"a whole number from {low} to {high}")

    return parse


def text(value: object) -> str:
    """A single line of printable text."""
    if isinstance(value, str) and value.isprintable():
        return value
    raise ValueError("a text")


def choice(*values: str) -> Callable[[object], str]:
    """Makes a parser that accepts one of the given words."""

    def parse(value: object) -> str:
        if isinstance(value, str) and value in values:
            return value
        raise ValueError(" or ".join(f'"{v}"' for v in values))

    return parse


def switch(value: object) -> bool:
    """True or false, also from the words that people write in environment variables (`1`, `yes`, `off`)."""
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError("true or false")


def directory(value: object) -> Path:
    """The path of a directory, which does not need to exist."""
    if isinstance(value, str) and value and value.isprintable():
        return _path(value)
    raise ValueError("a directory")


def _path(value: str) -> Path:
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError:
        raise ValueError("a path; the home directory in it does not exist") from None


def readable_file(value: object) -> Path | None:
    """The path of a file that cacheyd can read now; None from an empty text."""
    if value == "":
        return None
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("a file")
    path = _path(value)
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ValueError(f"a file that can be read ({error.strerror})") from None
    return path


def command(value: object) -> tuple[str, ...]:
    """A program and its arguments, from a list; empty from an empty text or list."""
    if value in ("", []):
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) and "\0" not in item for item in value) or not value[0]:
        raise ValueError('a program and its arguments, as a list such as ["/usr/bin/tool", "get"]')
    return tuple(value)


def helper_name(value: object) -> str:
    """The name of a docker credential helper, without `docker-credential-`; or an empty text."""
    if value == "":
        return ""
    name = text(value)
    if len(name) > 100 or not all(char.isascii() and (char.isalnum() or char in "._-") for char in name):
        raise ValueError("the name of a credential helper, such as ecr-login")
    return name.removeprefix("docker-credential-")


def registry_name(value: object) -> str:
    """The canonical name of a registry, from `host` or `host:port`; or an empty text."""
    if value == "":
        return ""
    try:
        return canonical_registry(text(value))
    except RequestError:
        raise ValueError("a registry: host or host:port") from None


def base_url(value: object) -> str:
    """An http or https URL with a host, optional port and path, and nothing else. The result has no slash at its end."""
    try:
        url = urlsplit(text(value))
        parse_url(text(value))
    except ValueError:
        raise ValueError("a URL such as https://registry.example or http://host:5000/path") from None
    if " " in url.geturl() or url.username or url.password or url.query or url.fragment:
        raise ValueError("a URL such as https://registry.example or http://host:5000/path")
    return text(value).rstrip("/")


def base_urls(value: object) -> tuple[str, ...]:
    """One URL or a list of URLs; in a text, commas separate them."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list) or not items:
        raise ValueError("a URL such as https://registry.example, or a list of them")
    return tuple(base_url(item.strip() if isinstance(item, str) else item) for item in items)


def proxy_url(value: object) -> str:
    """The URL of an HTTP(S) proxy, which can have user and password; or an empty text."""
    if value == "":
        return ""
    try:
        url = urlsplit(text(value))
        ok = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        ok = False
    if not ok or url.path.strip("/") or url.query or url.fragment:
        raise ValueError("the URL of a proxy such as http://proxy.corp:3128")
    return text(value).rstrip("/")


def patterns(value: object) -> tuple[str, ...]:
    """A list of shell patterns; in a text, commas separate them."""
    items = [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value
    if isinstance(items, list) and all(isinstance(item, str) and item and item.isprintable() for item in items):
        return tuple(items)
    raise ValueError('a list of patterns such as ["docker.io", "*.corp.example"]')


def ttls(value: object) -> tuple[tuple[str, float], ...]:
    """Durations (seconds) by tag pattern, from a table or a text such as `latest=0s,v*=24h`."""
    return durations(value, '{ "latest" = "0s", "v*" = "24h" }')


def durations(value: object, example: str) -> tuple[tuple[str, float], ...]:
    """Durations (seconds) by pattern, from a table or a text such as `name=1d,other=2h`. `example` is a correct table."""
    if isinstance(value, str):
        parts = [part.partition("=") for part in value.split(",") if part.strip()]
        value = {name.strip(): found.strip() for name, _, found in parts}
    if not isinstance(value, dict) or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"a table such as {example}")
    return tuple((name, _duration_of(name, found, example)) for name, found in value.items())


def _duration_of(name: str, value: object, example: str) -> float:
    try:
        return duration(value)
    except ValueError as error:
        raise ValueError(f"a table such as {example}; {name[:200]!r} = {repr(value)[:50]} is not {error}") from None


def matches(name: str, wanted: tuple[str, ...]) -> bool:
    """Whether a name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in wanted)
