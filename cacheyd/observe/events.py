"""The one port for what happens in a cache: every part tells it here, and metrics listen."""


class Events:
    """Each method tells of one thing that just happened, on the event loop; none may wait or raise. Here nobody listens: a
    listener overrides what it wants to hear.
    """

    def request(self, registry: str, kind: str, result: str, sent: int) -> None:
        """A request was answered with `sent` bytes of body. `result` is X-Cache, empty for an error."""

    def upstream(self, registry: str, code: str, seconds: float) -> None:
        """An upstream answered after `seconds`, or failed: `error`, `timeout`, `dead` (it was not even asked)."""

    def ratelimit(self, registry: str, remaining: int) -> None:
        """A registry said how many pulls are left."""

    def verify_failure(self, registry: str) -> None:
        """An upstream sent bytes that do not have their digest."""

    def evicted(self, reason: str, count: int) -> None:
        """So many objects were removed: `room`, `size`, `age`, `removed`."""

    def held(self, registry: str, action: str) -> None:
        """A tag leads to something younger than `min_age`: `held`, `refused`, `allowed` or `audited`."""

    def ignored(self) -> None:
        """Somebody asked for a tag that is never answered from the cache (`tag_ttl = 0`)."""
