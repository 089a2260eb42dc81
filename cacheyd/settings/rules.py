"""What may be asked for: the rules of `allow` and `deny`, as patterns of registries and of registry/repository:tag."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from string import ascii_lowercase, ascii_uppercase, digits

from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.reference import MAX_NAME, NAME, TAG, Kind, Reference
from cacheyd.protocol.registries import DOCKER_HUB, canonical_registry, names_of
from cacheyd.settings import values as parse

# So many decisions are remembered, each about a registry, a repository and a tag: hits must not wait for patterns.
MAX_DECIDED = 1024
# What a shell pattern is made of; a class may begin with "]".
_PART = re.compile(r"\[!?\]?[^]]*\]|.", re.DOTALL)
_REGISTRY_CHARS = frozenset(f"{ascii_lowercase}{digits}.-_:[]")
_NAME_CHARS, _TAG_CHARS = f"{ascii_lowercase}{digits}._-/", f"{ascii_lowercase}{ascii_uppercase}{digits}_.-"


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern. Without `repository` it is one of registries, whose `weight` is 0; else that is the number of characters
    that stand for themselves.
    """

    text: str
    registry: re.Pattern[str]
    repository: re.Pattern[str] | None
    tag: re.Pattern[str] | None
    weight: int

    def covers(self, registry: str, repository: str, tag: str | None, *, untagged: bool) -> bool:
        """Whether this is meant. `untagged` is the answer where the rule has a tag and the request (None) has none."""
        if self.registry.fullmatch(registry) is None:
            return False
        if self.repository is None:
            return True
        if self.repository.fullmatch(repository) is None:
            return False
        if self.tag is None:
            return True
        return untagged if tag is None else self.tag.fullmatch(tag) is not None


def parse_rule(text: str) -> Rule:
    """A rule from its pattern; raises ValueError, with the reason, for one that can never match."""
    registry, slash, path = text.partition("/")
    registry, host, weight = _registry(registry)
    if not slash:
        return Rule(text, host, None, None, 0)
    repository, colon, tag = path.partition(":")
    if registry == DOCKER_HUB and repository.isprintable() and not set(repository) & set("/*?["):
        # As images are named; Docker Hub has no others of one part.
        repository = f"library/{repository}"
    if not any(len(name) <= MAX_NAME and NAME.fullmatch(name) for name in _fillings(repository, _NAME_CHARS)):
        raise ValueError("no repository can have this name (lower case, like acme/app or acme/*)")
    if colon and not any(TAG.fullmatch(name) for name in _fillings(tag, _TAG_CHARS)):
        raise ValueError("no tag can have this name")
    if tag and set(tag) == {"*"}:
        # Any tag at all, and so what is asked for without one.
        colon = tag = ""
    weight += _literals(f"/{repository}{colon}{tag}")
    return Rule(text, host, _glob(repository), _glob(tag) if tag else None, weight)


def _literals(pattern: str) -> int:
    """How many characters stand for themselves."""
    return sum(len(part) == 1 and part not in "*?" for part in _PART.findall(pattern))


def _registry(text: str) -> tuple[str, re.Pattern[str], int]:
    """A registry in its one form, or a pattern of some; how many characters stand for themselves."""
    try:
        name = canonical_registry(text)
    except RequestError:
        parts = _PART.findall(text)
        if not any(part in "*?" or len(part) > 1 for part in parts):
            raise ValueError("no registry can have this name: it must be host or host:port") from None
        if not all(len(part) > 1 or part in "*?" or part in _REGISTRY_CHARS for part in parts):
            raise ValueError("no registry can have such a name: they are in lower case, as host or host:port") from None
        if text.endswith(":443"):
            raise ValueError("a registry at port 443 is called without its port") from None
        return text, _glob(text), _literals(text)
    return name, re.compile(re.escape(name)), len(name)


def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))


def _fillings(pattern: str, alphabet: str) -> Iterator[str]:
    """Names that a pattern stands for, one of them right if any is: letters may stand wherever something must."""
    parts = _PART.findall(pattern)
    for star in ("a", ""):
        filled = [star if part == "*" else "a" if part == "?" else _member(part, alphabet) for part in parts]
        yield "".join(filled)


def _member(part: str, alphabet: str) -> str:
    """A character itself, or the first one of a class; a class without any gives what is in no name."""
    if len(part) == 1:
        return part
    found = _glob(part)
    return next((char for char in alphabet if found.fullmatch(char)), "\0")


def parse_rules(value: object) -> tuple[str, ...]:
    """A list of patterns; in a text they are separated by commas. Raises ValueError with what was expected."""
    texts = parse.patterns(value)
    for text in texts:
        try:
            parse_rule(text)
        except ValueError as error:
            message = f"patterns of registries or of registry/repository:tag; {_quoted(text)} can never match: {error}"
            raise ValueError(message) from None
    return texts


def parse_ages(value: object) -> tuple[tuple[str, float], ...]:
    """Durations by pattern; in a text as `ghcr.io=1d,docker.io/*:latest=7d`. Raises ValueError with what was expected."""
    found = parse.durations(value, '{ "docker.io/library/*" = "3d", "*/*:latest" = "7d" }')
    parse_rules([text for text, _ in found])
    return found


class Ages:
    """The durations of `min_ages`. The most specific pattern that covers a tag counts; the longest one, if they are alike."""

    def __init__(self, ages: tuple[tuple[str, float], ...] = ()) -> None:
        rules = [(parse_rule(text), age) for text, age in ages]
        # Between registries, too, the one with more characters that stand for themselves.
        self._rules = sorted(rules, key=lambda r: (r[0].repository is None, -(r[0].weight or _literals(r[0].text)), -r[1]))
        self._found = lru_cache(maxsize=MAX_DECIDED)(self._find)

    def find(self, ref: Reference) -> float | None:
        """The seconds for a tag; None if no pattern covers it."""
        return self._found(ref.registry, ref.repository, ref.reference) if self._rules else None

    def _find(self, registry: str, repository: str, tag: str) -> float | None:
        names, repository = names_of(registry), _named(registry, repository)
        found = (age for rule, age in self._rules if any(rule.covers(one, repository, tag, untagged=False) for one in names))
        return next(found, None)


def _named(registry: str, repository: str) -> str:
    """A repository as images are named, and so patterns."""
    return f"library/{repository}" if registry == DOCKER_HUB and "/" not in repository else repository


def parse_pins(value: object) -> tuple[str, ...]:
    """Patterns of images by their whole names, `registry/repository:tag` or `registry/repository@digest`, for `pin`.

    Registries in their one form. Raises ValueError, also for a pattern that can never match: it would keep nothing.
    """
    pins = tuple(map(_with_one_registry, parse.patterns(value)))
    for pin in pins:
        if not _names_something(pin) or _is_tag_alone(pin):
            wanted = "patterns of registry/repository:tag"
            raise ValueError(f"{wanted}; {_quoted(pin)} can never match: {_why_nothing(pin)}")
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
    """Whether this is `nginx:*`: by its characters it could be a registry with any port and all that is in it."""
    host, colon, _ = pin.partition(":")
    return bool(colon) and "/" not in pin and _is_label(host)


def _is_label(host: str) -> bool:
    """Whether a host has one part, as images of Docker Hub do and hardly any registry."""
    return host != "localhost" and not set(host) & set(".*?[")


def meant_image(pattern: str, registries: Iterable[str]) -> str:
    """How the image is written that was meant by a pattern of a registry (as `nginx`) or of images in one (`acme/app`) that
    nobody has; empty where the registry may well be meant: one with a dot, a port or a wildcard, or one of `registries`.
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
                return f"it names no registry, as {_quoted(name)} does"
    if "/" in pin and "@" not in pin and _names_something(f"{pin}:*"):
        return f"all tags are {_quoted(f'{pin}:*')}"
    if "/" not in pin and _names_something(f"{pin}/*"):
        return f"all of a registry is {_quoted(f'{pin}/*')}"
    try:
        parse_rule(pin)
    except ValueError as error:
        return str(error)
    return "images are named like ghcr.io/acme/app:1.0"


# How the name of an image goes on, by what was read of it: which characters, and what was read then.
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
    """Whether the name of some image matches; lengths are not looked at."""
    read = {""}
    for part in _PART.findall(pattern):
        if part != "*":
            read = _read(read, part)
            continue
        while not (further := _read(read, "?")) <= read:
            read |= further
    return not read.isdisjoint({"tag", "digest"})


def _read(states: set[str], part: str) -> set[str]:
    """What may have been read after one more character that the part of a pattern stands for."""
    fits = _glob(part).fullmatch if part != "[" else re.compile(r"\[").fullmatch
    return {after for state in states for chars, after in _NAMES[state] if any(map(fits, chars))}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


class Rules:
    """Both lists. The most specific rule that covers a request decides; `deny` wins a tie, and between registries."""

    def __init__(self, allow: tuple[str, ...] = (), deny: tuple[str, ...] = ()) -> None:
        self._allow = _sorted(allow)
        self._deny = _sorted(deny)
        self._decided = lru_cache(maxsize=MAX_DECIDED)(self._decide)

    def refusal(self, ref: Reference) -> tuple[str, str]:
        """Why this may not be asked for, and the rule that says so; two empty texts if it may.

        What has no tag (blobs, lists, all that is asked for by its digest) may belong to any. So a rule with a tag allows
        it in its repository, as the images that it allows are made of it; and denies only what is asked for by that tag.
        """
        if not self._deny and not self._allow:
            return "", ""
        tag = ref.reference if ref.kind is Kind.MANIFEST and ref.digest is None else None
        return self._decided(ref.registry, ref.repository, tag)

    def _decide(self, registry: str, repository: str, tag: str | None) -> tuple[str, str]:
        # What is denied at an IPv4 address is denied by whatever IPv6 address leads there, too.
        names, repository = names_of(registry), _named(registry, repository)
        covers = (r for r in self._deny if any(r.covers(one, repository, tag, untagged=False) for one in names))
        denied = next(covers, None)
        allowed = next((r for r in self._allow if r.covers(registry, repository, tag, untagged=True)), None)
        if denied is not None and (allowed is None or denied.weight >= allowed.weight):
            what = "registry is" if denied.repository is None else "image is" if denied.tag is None else "tag is"
            rule = f"deny = {_quoted(denied.text)}"
            return f"this {what} denied here, by {rule}", rule
        if self._allow and allowed is None:
            what = "image" if any(rule.registry.fullmatch(registry) for rule in self._allow) else "registry"
            return f"this {what} is not among those allowed here, by any rule of allow", "allow"
        return "", ""


def _sorted(texts: tuple[str, ...]) -> tuple[Rule, ...]:
    return tuple(sorted(map(parse_rule, texts), key=lambda rule: -rule.weight))
