"""The names that a user gives to a tool, and the stored images that they mean."""

import re
from dataclasses import dataclass
from fnmatch import translate
from typing import NamedTuple

from cacheyd.protocol.images import ImageName, parse_image

_SHORT_DIGEST = re.compile(r"(?:sha256|sha512):[a-f0-9]{12,128}")


class Root(NamedTuple):
    """The root of an image: its manifest or index. `repository` is `registry/repository`, empty if unknown."""

    repository: str
    tag: str
    digest: str

    @property
    def name(self) -> str:
        """The image's name as people write it, with its tag if it has one."""
        return f"{self.repository}:{self.tag}" if self.tag else self.by_digest

    @property
    def by_digest(self) -> str:
        """The image's name with its digest."""
        return f"{self.repository}@{self.digest}"


@dataclass(frozen=True, slots=True)
class Target:
    """What the user named: an image, a digest (or the beginning of one), or a pattern."""

    text: str
    image: ImageName | None = None
    digest: str = ""
    pattern: re.Pattern[str] | None = None

    def covers(self, root: Root) -> bool:
        """Whether the target means this image by name or pattern. A digest does not count here."""
        if self.pattern is not None:
            return bool(self.pattern.fullmatch(root.name) or self.pattern.fullmatch(root.by_digest))
        if self.image is None or self.image.digest or self.image.name != root.repository:
            return False
        return self.image.tag in ("", root.tag)

    def covers_tag(self, name: str) -> bool:
        """Whether the target means this tag (`registry/repository:tag`), also if its image is not stored."""
        repository, _, tag = name.rpartition(":")
        return self.covers(Root(repository, tag, ""))


def parse_target(text: str) -> Target:
    """Parses an image name, `name@digest`, a digest or its first 12 digits, a pattern with `*` or `?`. Raises ValueError."""
    if "*" in text or "?" in text:
        # In these patterns, a bracket is a part of an IPv6 address, not of a character set.
        return Target(text, pattern=re.compile(translate(text.replace("[", "[[]"))))
    if _SHORT_DIGEST.fullmatch(text):
        return Target(text, digest=text)
    image = parse_image(text, default_tag="")
    return Target(text, image, image.digest)
