"""Reservations for objects on their way in: room that is made for their bytes, and objects that must not be evicted."""

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager


class Reservations:
    """Reserves room for running fetches, and protects the objects that they bring and the images with these objects."""

    def __init__(self) -> None:
        # Bytes that have not come yet, for which room was made beforehand.
        self.promised = 0
        # Bytes that are being written to partial files.
        self.being_written = 0
        # How many fetches there are, by digest. The cache can fetch the same object from several registries.
        self._expected: Counter[str] = Counter()

    def promise(self, size: int) -> None:
        """Reserves `size` bytes of room that was made for bytes to come: no other fetch gets it. Negative: gives it back."""
        self.promised += size

    @contextmanager
    def writing(self, size: int) -> Iterator[None]:
        """Counts `size` bytes while they are written to a partial file, so that other fetches find only the room left."""
        self.being_written += size
        try:
            yield
        finally:
            self.being_written -= size

    def expect(self, digest: str) -> None:
        """Notes that a fetch of the object has begun: neither the object nor an image that it is part of is evicted."""
        self._expected[digest] += 1

    def expect_no_more(self, digest: str) -> None:
        """Notes that a fetch of the object, for which `expect` was called, has ended."""
        self._expected[digest] -= 1
        if self._expected[digest] <= 0:
            del self._expected[digest]

    def expected(self) -> Collection[str]:
        """The digests of all objects that are on their way in, as they are now."""
        return frozenset(self._expected)
