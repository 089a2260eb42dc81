"""What is still to come: the room that was made for it, and the objects that must not go meanwhile."""

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager


class Reservations:
    """Room that others do not get, and objects that stay, with the images that they are part of."""

    def __init__(self) -> None:
        # Bytes that are still to come of those for which room was made beforehand.
        self.promised = 0
        # Bytes that are about to be in a file.
        self.being_written = 0
        # By digest: how many fetches there are. Several registries may be asked for the same object.
        self._expected: Counter[str] = Counter()

    def promise(self, size: int) -> None:
        """So many bytes more are to come, for which room was made (fewer, if negative): others do not get it."""
        self.promised += size

    @contextmanager
    def writing(self, size: int) -> Iterator[None]:
        """So many bytes are about to be in a partial file: the room for them is taken, and others find what is left."""
        self.being_written += size
        try:
            yield
        finally:
            self.being_written -= size

    def expect(self, digest: str) -> None:
        """A fetch of the object has begun: neither the object nor an image that it is part of is evicted."""
        self._expected[digest] += 1

    def expect_no_more(self, digest: str) -> None:
        """A fetch of the object, one for which `expect` was called, has ended."""
        self._expected[digest] -= 1
        if self._expected[digest] <= 0:
            del self._expected[digest]

    def expected(self) -> Collection[str]:
        """The digests of all objects that are on their way in, as they are now."""
        return frozenset(self._expected)
