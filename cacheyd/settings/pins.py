"""Patterns of images by their whole names (`pin`), and the image that a useless pattern probably means."""

import re
from collections.abc import Iterable
from string import ascii_lowercase, ascii_uppercase, digits

from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.registries import DOCKER_HUB, canonical_registry
from cacheyd.settings import values as parse
from cacheyd.settings.patterns import PART, glob, parse_pattern, quoted


def parse_pins(value: object) -> tuple[str, ...]:
    """The patterns of `pin`: whole names, `registry/repository:tag` or `registry/repository@digest`.

    The result has canonical registries. Raises ValueError, also for a pattern that can never match: it would pin no image.
    """
    pins = tuple(map(_with_one_registry, parse.patterns(value)))
    for pin in pins:
        if not _names_something(pin) or _is_tag_alone(pin):
            wanted = "patterns of registry/repository:tag"
            raise ValueError(f"{wanted}; {quoted(pin)} can never match: {_why_nothing(pin)}")
    return pins


def _with_one_registry(pin: str) -> str:
    first, slash, path = pin.partition("/")
    try:
        registry = canonical_registry(first) if slash else first
    except RequestError:
        return pin
    repository = re.split("[:@]", path, maxsplit=1)[0]
    short = registry == DOCKER_HUB and bool(slash) and bool(repository) and not set(repository) & set("/*?[")
    return f"{registry}{slash}{'library/' if short else ''}{path}"


def _is_tag_alone(pin: str) -> bool:
    """Whether this is a pattern such as `nginx:*`. By its characters, it could be a registry at any port, with all images."""
    host, colon, _ = pin.partition(":")
    return bool(colon) and "/" not in pin and _is_label(host)


def _is_label(host: str) -> bool:
    """Whether a host has only one part. Images of Docker Hub have such names, but hardly any registry has."""
    return host != "localhost" and not set(host) & set(".*?[")


def meant_image(pattern: str, registries: Iterable[str]) -> str:
    """The whole name of the image that a pattern such as `nginx` or `acme/app` means: as a registry, it does not exist.

    Empty if the pattern can really mean a registry: its host has a dot, a port or a wildcard, or is one of `registries`.
    """
    registry, slash, _ = pattern.lower().partition("/")
    host, colon, port = registry.partition(":")
    if not _is_label(host) or any(host == known.partition(":")[0] for known in registries):
        return ""
    if colon and (slash or (port.isdecimal() and (int(port) >= 1024 or port == "80"))):
        return ""
    return f"{DOCKER_HUB}/{'' if slash else 'library/'}{pattern}"


def _why_nothing(pin: str) -> str:
    if "/" not in pin and "." not in pin.partition(":")[0]:
        for name in (f"{DOCKER_HUB}/library/{pin}", f"{DOCKER_HUB}/library/{pin}:*"):
            if _names_something(name):
                return f"it names no registry, as {quoted(name)} does"
    if "/" in pin and "@" not in pin and _names_something(f"{pin}:*"):
        return f"for all tags, write {quoted(f'{pin}:*')}"
    if "/" not in pin and _names_something(f"{pin}/*"):
        return f"for all images of a registry, write {quoted(f'{pin}/*')}"
    try:
        parse_pattern(pin)
    except ValueError as error:
        return str(error)
    return "images are named like ghcr.io/acme/app:1.0"


# The grammar of image names: for each part, the characters that can follow it, and the part that these characters belong to.
_ALNUM = ascii_lowercase + digits
_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "": ((f"{_ALNUM}[", "registry"),),
    "registry": ((f"{_ALNUM}.-_:[]", "registry"), ("/", "slash")),
    "slash": ((_ALNUM, "repository"),),
    "repository": ((_ALNUM, "repository"), ("._-", "separator"), ("/", "slash"), (":", "colon"), ("@", "at")),
    "separator": ((_ALNUM, "repository"), ("._-", "separator")),
    "colon": ((f"{_ALNUM}{ascii_uppercase}_", "tag"),),
    "tag": ((f"{_ALNUM}{ascii_uppercase}_.-", "tag"),),
    "at": ((_ALNUM, "at"), (":", "algorithm")),
    "algorithm": (("abcdef" + digits, "digest"),),
    "digest": (("abcdef" + digits, "digest"),),
}


def _names_something(pattern: str) -> bool:
    """Whether the name of some image matches the pattern; does not check lengths."""
    read = {""}
    for part in PART.findall(pattern):
        if part != "*":
            read = _read(read, part)
            continue
        while not (further := _read(read, "?")) <= read:
            read |= further
    return not read.isdisjoint({"tag", "digest"})


def _read(states: set[str], part: str) -> set[str]:
    """The states after one more character, for each character that this part of a pattern stands for."""
    fits = glob(part).fullmatch if part != "[" else re.compile(r"\[").fullmatch
    return {after for state in states for chars, after in _NAMES[state] if any(map(fits, chars))}
