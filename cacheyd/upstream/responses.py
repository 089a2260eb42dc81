"""Responses that hold a turn at their registry."""

import logging
from collections.abc import Callable, Sequence

from cacheyd.protocol.errors import explain
from cacheyd.upstream.port import Chunk, UpstreamBroken, UpstreamResponse

log = logging.getLogger(__name__)


class ResponseInTurn:
    """A response that gives its turn back when its body ends, and when somebody closes it."""

    def __init__(self, response: UpstreamResponse, leave: Callable[[], None]) -> None:
        self._response = response
        self._leave: Callable[[], None] | None = leave
        self.status = response.status
        self.headers = response.headers
        self.by_other_host = response.by_other_host

    async def read(self) -> Sequence[Chunk]:
        """Reads from the response; gives the turn back at the end. Raises UpstreamBroken."""
        try:
            chunks = await self._response.read()
        except UpstreamBroken:
            self.close()
            raise
        except Exception as error:
            self.close()
            log.error("reading an upstream's answer failed: %s", explain(error))
            raise UpstreamBroken(f"fetching failed: {type(error).__name__}") from error
        if not chunks:
            self.close()
        return chunks

    def close(self) -> None:
        """Closes the response and gives the turn back; safe to call at any time."""
        leave, self._leave = self._leave, None
        if leave is not None:
            self._response.close()
            leave()
