"""The common parts of writing and reading a layout: images, errors, a checked file, and bounds."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, override

from cacheyd.protocol.descriptors import Descriptor
from cacheyd.protocol.images import ImageName

# The annotation in which containerd and docker write the image's name, and the specification's annotation for its tag.
FULL_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"

# The longest manifest (bytes), and the most levels of indexes in indexes.
MANIFEST_MAX, MAX_DEPTH = 4 << 20, 4


class LayoutError(Exception):
    """A tar file that cannot be written or read; the message says why."""


class IncompleteError(LayoutError):
    """Some of the wanted objects of the images are missing."""

    def __init__(self, missing: Sequence[str]) -> None:
        shown = "\n".join(f"  {line}" for line in missing)
        super().__init__(f"these objects are missing:\n{shown}")
        self.missing = missing


@dataclass(frozen=True, slots=True)
class Image:
    """An image: its name, and the descriptor of its manifest or index."""

    name: ImageName
    root: Descriptor


class Checked(io.RawIOBase):
    """A file that computes its digest while it is read."""

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
        """Raises LayoutError if the bytes that were read do not have the digest."""
        if self._hash.hexdigest() != self._digest.partition(":")[2]:
            raise LayoutError(f"{self._digest} does not hold what its name says")
