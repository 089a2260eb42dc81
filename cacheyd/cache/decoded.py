"""Small answers that came encoded: their bodies in memory, without the coding."""

from collections.abc import Sequence

from cacheyd.protocol.headers import HeaderList, without
from cacheyd.resources.budget import Budget, Held
from cacheyd.upstream.port import Chunk, UpstreamBroken, UpstreamResponse

# Where what a client would get does not fit into the budget.
NO_ROOM = "too much waits in memory for clients that read slowly"


class Whole:
    """A response whose body is in memory, decoded, and counts until it is closed; without a body it breaks when it is read."""

    def __init__(self, response: UpstreamResponse, body: bytes | None, budget: Budget) -> None:
        self.status = response.status
        length = () if body is None else (("Content-Length", str(len(body))),)
        self.headers: HeaderList = (*without(response.headers, "content-encoding", "content-length"), *length)
        self.elsewhere = response.elsewhere
        self._held = None if body is None else Held(body, budget)

    async def read(self) -> Sequence[Chunk]:
        """As the response's own, up to 64 KiB at once. Raises UpstreamBroken."""
        if self._held is None:
            raise UpstreamBroken("its body cannot be decoded")
        piece = await self._held.read()
        return [piece] if piece else []

    def close(self) -> None:
        """As the response's own."""
        if self._held is not None:
            self._held.close()
