"""The one port for events in a cache: every part reports its events here, and the metrics listen."""


class Events:
    """Each method reports one event, right after it happened, on the event loop. A method must not wait or raise. This base
    class ignores all events; a listener overrides the methods of the events that it needs.
    """

    def request(self, registry: str, kind: str, result: str, sent: int) -> None:
        """The cache answered a request with `sent` bytes of body. `result` is X-Cache, empty for an error."""

    def upstream(self, registry: str, code: str, seconds: float) -> None:
        """An upstream answered after `seconds`. `code` is its status, or `error`, `timeout`, `dead` (cacheyd did not ask)."""

    def ratelimit(self, registry: str, remaining: int) -> None:
        """A registry's answer said that `remaining` pulls are left."""

    def verify_failure(self, registry: str) -> None:
        """An upstream sent bytes that do not match their digest."""

    def evicted(self, reason: str, count: int) -> None:
        """The store removed `count` objects. `reason` is `room`, `size`, `age`, `io` or `removed`; `io`: the disk did not
        write the object.
        """

    def held(self, registry: str, action: str) -> None:
        """A tag leads to an image younger than `min_age`. `action` is `held`, `refused`, `allowed` or `audited`."""

    def ignored(self) -> None:
        """A client asked for a tag that cacheyd never answers without asking upstream (`tag_ttl = 0`)."""
