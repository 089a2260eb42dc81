"""When this cache first saw which digest under which tag's repository, by clocks that nobody can set."""

from cacheyd.protocol.reference import Kind, Reference

# What was seen so much later than now was seen by a clock that was wrong (seconds).
CLOCK_ERROR = 86400.0


def reference_of(name: str) -> Reference:
    """The reference of a tag (`registry/repository:tag`)."""
    rest, _, tag = name.rpartition(":")
    registry, _, repository = rest.partition("/")
    return Reference(registry, repository, Kind.MANIFEST, tag, None, "")


def name_of(ref: Reference) -> str:
    """The name of a tag, as it is kept: what `reference_of` reads."""
    return f"{ref.name}:{ref.reference}"


def key_of(ref: Reference, digest: str) -> str:
    """The name under which it is kept when a repository was seen to have a digest."""
    return f"{ref.name}@{digest}"
