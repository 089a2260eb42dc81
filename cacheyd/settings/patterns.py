"""Patterns of registries and of registry/repository:tag, for `allow`, `deny` and `min_ages`."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import translate
from string import ascii_lowercase, ascii_uppercase, digits

from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.reference import MAX_NAME, NAME, TAG
from cacheyd.protocol.registries import DOCKER_HUB, canonical_registry

# The most decisions that each list remembers, each about a registry, a repository and a tag: hits must not wait for patterns.
MAX_DECIDED = 1024
# A part of a shell pattern: a class of characters, which can begin with "]", or one character.
PART = re.compile(r"\[!?\]?[^]]*\]|.", re.DOTALL)
_REGISTRY_CHARS = frozenset(f"{ascii_lowercase}{digits}.-_:[]")
_NAME_CHARS, _TAG_CHARS = f"{ascii_lowercase}{digits}._-/", f"{ascii_lowercase}{ascii_uppercase}{digits}_.-"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern of images; without `repository`, a pattern of registries.

    `weight` is the number of characters that stand for themselves; it is 0 for a pattern of registries.
    """

    text: str
    registry: re.Pattern[str]
    repository: re.Pattern[str] | None
    tag: re.Pattern[str] | None
    weight: int

    def covers(self, registry: str, repository: str, tag: str | None, *, untagged: bool) -> bool:
        """Whether the pattern matches. `untagged` is the answer if the pattern has a tag and the request has none (None)."""
        if self.registry.fullmatch(registry) is None:
            return False
        if self.repository is None:
            return True
        if self.repository.fullmatch(repository) is None:
            return False
        if self.tag is None:
            return True
        return untagged if tag is None else self.tag.fullmatch(tag) is not None


def parse_pattern(text: str) -> Pattern:
    """A pattern from its text. Raises ValueError, with the reason, if the pattern can never match."""
    if set(text) & set("\"'"):
        # A list in another form, as `["a"]` in the environment, would be a class of characters that matches no name.
        raise ValueError("no name has quotes: write the name alone, and several names as a,b")
    registry, slash, path = text.partition("/")
    registry, host, weight = _registry(registry)
    if not slash:
        return Pattern(text, host, None, None, 0)
    repository, colon, tag = path.partition(":")
    if registry == DOCKER_HUB and repository.isprintable() and not set(repository) & set("/*?["):
        # Images have names like this: Docker Hub has no other repositories with one part.
        repository = f"library/{repository}"
    if not any(len(name) <= MAX_NAME and NAME.fullmatch(name) for name in _fillings(repository, _NAME_CHARS)):
        raise ValueError("no repository can have this name (lower case, like acme/app or acme/*)")
    if colon and not any(TAG.fullmatch(name) for name in _fillings(tag, _TAG_CHARS)):
        raise ValueError("no tag can have this name")
    if tag and set(tag) == {"*"}:
        # The pattern means every tag, and so also requests without a tag.
        colon = tag = ""
    weight += literals(f"/{repository}{colon}{tag}")
    return Pattern(text, host, glob(repository), glob(tag) if tag else None, weight)


def literals(pattern: str) -> int:
    """How many characters of a pattern stand for themselves."""
    return sum(len(part) == 1 and part not in "*?" for part in PART.findall(pattern))


def _registry(text: str) -> tuple[str, re.Pattern[str], int]:
    """A canonical registry or a pattern of registries; its regular expression; how many characters stand for themselves."""
    try:
        name = canonical_registry(text)
    except RequestError:
        parts = PART.findall(text)
        if not any(part in "*?" or len(part) > 1 for part in parts):
            raise ValueError("no registry can have this name: it must be host or host:port") from None
        if not all(len(part) > 1 or part in "*?" or part in _REGISTRY_CHARS for part in parts):
            raise ValueError("no registry can have such a name: registries are in lower case, as host or host:port") from None
        if text.endswith(":443"):
            raise ValueError("write a registry at port 443 without its port") from None
        return text, glob(text), literals(text)
    return name, re.compile(re.escape(name)), len(name)


def glob(pattern: str) -> re.Pattern[str]:
    """The regular expression of a shell pattern."""
    return re.compile(translate(pattern))


def _fillings(pattern: str, alphabet: str) -> Iterator[str]:
    """Names that a pattern covers. If the pattern covers any valid name, one of these is valid: a letter fits in any place."""
    parts = PART.findall(pattern)
    for star in ("a", ""):
        filled = [star if part == "*" else "a" if part == "?" else _member(part, alphabet) for part in parts]
        yield "".join(filled)


def _member(part: str, alphabet: str) -> str:
    """The character itself, or the first character of a class; from an empty class, a character that no name has."""
    if len(part) == 1:
        return part
    found = glob(part)
    return next((char for char in alphabet if found.fullmatch(char)), "\0")


def image_repository(registry: str, repository: str) -> str:
    """A repository with the `library/` of Docker Hub's short names, as in the names of images and in patterns."""
    return f"library/{repository}" if registry == DOCKER_HUB and "/" not in repository else repository


def quoted(text: str) -> str:
    """A pattern in quotes, for a message."""
    return json.dumps(text, ensure_ascii=False)
