"""What the writing and the reading of a layout have in common: images, failures, a checked file, and their bounds."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, override

from cacheyd.protocol.descriptors import Descriptor
from cacheyd.protocol.images import ImageName

# What containerd and docker call the image, and what the specification calls its tag.
FULL_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"

# The most that a manifest may have (bytes), and how deep indexes may be in indexes.
MANIFEST_MAX, MAX_DEPTH = 4 << 20, 4


class LayoutError(Exception):
    """A tar file that cannot be written or read; the message says why."""


class IncompleteError(LayoutError):
    """What is wanted of the images is not all there."""

    def __init__(self, missing: Sequence[str]) -> None:
        shown = "\n".join(f"  {line}" for line in missing)
        super().__init__(f"not all of it is there:\n{shown}")
        self.missing = missing


@dataclass(frozen=True, slots=True)
class Image:
    """An image by its name, and its manifest or index."""

    name: ImageName
    root: Descriptor


class Checked(io.RawIOBase):
    """A file whose digest is computed while it is read."""

    def __init__(self, file: IO[bytes], digest: str) -> None:
        self._file = file
        self._digest = digest
        self._hash = hashlib.new(digest.partition(":")[0])

    @override
    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        return data

    def verify(self) -> None:
        """Raises LayoutError if what was read does not have the digest."""
        if self._hash.hexdigest() != self._digest.partition(":")[2]:
            raise LayoutError(f"{self._digest} does not hold what its name says")
