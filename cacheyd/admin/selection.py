"""What somebody names at a tool, and whether a stored image is meant by it."""

import re
from dataclasses import dataclass
from fnmatch import translate
from typing import NamedTuple

from cacheyd.protocol.images import ImageName, parse_image

_SHORT_DIGEST = re.compile(r"(?:sha256|sha512):[a-f0-9]{12,128}")


class Root(NamedTuple):
    """Where an image begins: `repository` is `registry/repository`, empty where that is not known."""

    repository: str
    tag: str
    digest: str

    @property
    def name(self) -> str:
        """As people write it."""
        return f"{self.repository}:{self.tag}" if self.tag else self.by_digest

    @property
    def by_digest(self) -> str:
        """The same by digest."""
        return f"{self.repository}@{self.digest}"


@dataclass(frozen=True, slots=True)
class Target:
    """What somebody named: an image, a digest (or its beginning), or a pattern."""

    text: str
    image: ImageName | None = None
    digest: str = ""
    pattern: re.Pattern[str] | None = None

    def covers(self, root: Root) -> bool:
        """Whether an image is meant; one that is named by a digest alone is not."""
        if self.pattern is not None:
            return bool(self.pattern.fullmatch(root.name) or self.pattern.fullmatch(root.by_digest))
        if self.image is None or self.image.digest or self.image.name != root.repository:
            return False
        return self.image.tag in ("", root.tag)

    def covers_tag(self, name: str) -> bool:
        """Whether a tag (`registry/repository:tag`) is meant, stored or not."""
        repository, _, tag = name.rpartition(":")
        return self.covers(Root(repository, tag, ""))


def parse_target(text: str) -> Target:
    """An image name, `name@digest`, a digest or 12 digits of one, or a pattern with `*` or `?`; raises ValueError."""
    if "*" in text or "?" in text:
        # Brackets are part of IPv6 addresses here.
        return Target(text, pattern=re.compile(translate(text.replace("[", "[[]"))))
    if _SHORT_DIGEST.fullmatch(text):
        return Target(text, digest=text)
    image = parse_image(text, default_tag="")
    return Target(text, image, image.digest)
