"""Counts the clients that want a flight, and measures how long no client has wanted it."""

from collections.abc import Iterator
from contextlib import contextmanager

from cacheyd.cache.requester import Requester


class Demand:
    """Counts all clients that want a flight: they read its body, or wait for its head or its end.

    `contested` says that several logins, other than the login that started the flight, wait for it: these clients need not
    share the flight's failure.
    """

    def __init__(self, requester: Requester) -> None:
        self.audience = 0
        self.contested = False
        self._requester = requester
        # Another requester that waits for the flight.
        self._other: Requester | None = None
        # The time since which no client wants the flight (seconds of a monotonic clock).
        self._alone_since: float | None = None

    def joined(self, who: Requester) -> None:
        """Notes a requester that waits for the flight."""
        if who != self._requester:
            self.contested = self.contested or self._other not in (None, who)
            self._other = who

    def enter(self) -> None:
        """Counts one more client; `leave` must follow."""
        self.audience += 1

    def leave(self) -> None:
        """Counts one client less."""
        self.audience -= 1

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """Counts one more client while the block runs."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def is_over(self, now: float, patience: float) -> bool:
        """Whether no client has wanted the flight for `patience` seconds. Counts from the first call that found no client."""
        if self.audience:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        else:
            return now - self._alone_since >= patience
        return False
