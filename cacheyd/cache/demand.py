"""Who wants a flight, and for how long nobody did."""

from collections.abc import Iterator
from contextlib import contextmanager

from cacheyd.cache.requester import Requester


class Demand:
    """Counts all who want a flight: those who read its body, and those who wait for its head or its end.

    `contested` says that several logins other than the one that started it wait for it, and need not share its failure.
    """

    def __init__(self, requester: Requester) -> None:
        self.audience = 0
        self.contested = False
        self._requester = requester
        # Another login that waits for it.
        self._other: Requester | None = None
        # Since when nobody wants it (seconds of a monotonic clock).
        self._alone_since: float | None = None

    def joined(self, who: Requester) -> None:
        """Notes who waits for it."""
        if who != self._requester:
            self.contested = self.contested or self._other not in (None, who)
            self._other = who

    def enter(self) -> None:
        """One more wants it; `leave` is to follow."""
        self.audience += 1

    def leave(self) -> None:
        """One wants it no more."""
        self.audience -= 1

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """Somebody wants it while the block runs."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def is_over(self, now: float, patience: float) -> bool:
        """Whether nobody has wanted it for `patience` seconds. Counts from the first look at which nobody did."""
        if self.audience:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        else:
            return now - self._alone_since >= patience
        return False
