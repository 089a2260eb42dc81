"""Hashes objects that pass through without being kept; a client gets an object's end only if its digest is right."""

import asyncio
import hashlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from cacheyd.cache.bodies import BodyBroken
from cacheyd.cache.growing import HOLD
from cacheyd.protocol.ranges import Part
from cacheyd.upstream.port import Chunk, UpstreamBroken, UpstreamResponse

# The largest chunk that is hashed on the event loop, not in a thread (bytes).
LITTLE = 64 << 10


class VerifiedSource:
    """The bytes `part` (default: all) of a response that has all bytes of an object.

    The last 64 KiB of these bytes follow only when the whole object has come and has its digest. Then `on_verified` gets the
    object's size, in bytes.
    """

    def __init__(
        self,
        response: UpstreamResponse,
        digest: str,
        part: Part | None = None,
        *,
        on_verified: Callable[[int], Awaitable[None]] | None = None,
        on_mismatch: Callable[[], None] = lambda: None,
    ) -> None:
        self._response = response
        self._digest = digest
        self._part = part
        self._on_verified = on_verified
        self._on_mismatch = on_mismatch
        self._hash = hashlib.new(digest.partition(":")[0])
        self._at = 0
        self._held: deque[memoryview] = deque()
        self._held_bytes = 0
        self._verified = False

    async def read(self) -> bytes | memoryview:
        """The next piece; empty at the end. Raises BodyBroken, also if the object does not have its digest."""
        while not self._verified:
            chunks: Sequence[Chunk] = ()
            try:
                chunks = await self._response.read()
            except UpstreamBroken as error:
                if not self._is_whole():
                    raise BodyBroken(str(error)) from error
                # All bytes are there; only the end of the message was missing.
            if not chunks:
                self._verify()
                if self._on_verified is not None:
                    await self._on_verified(self._at)
                break
            for chunk in chunks:
                await self._take(chunk)
            if self._held_bytes > HOLD:
                piece = self._give(self._held_bytes - HOLD)
                # A view would keep its whole block in memory.
                self._held = deque([memoryview(b"".join(self._held))])
                return piece
        return self._give(self._held_bytes)

    def _is_whole(self) -> bool:
        return f"{self._hash.name}:{self._hash.hexdigest()}" == self._digest

    def _verify(self) -> None:
        if not self._is_whole():
            self._on_mismatch()
            raise BodyBroken("upstream sent bytes that do not have this digest")
        self._verified = True

    async def _take(self, chunk: Chunk) -> None:
        if len(chunk) > LITTLE:
            await asyncio.to_thread(self._hash.update, chunk)
        else:
            self._hash.update(chunk)
        start, self._at = self._at, self._at + len(chunk)
        view = memoryview(chunk)
        if self._part is not None:
            view = view[max(0, self._part.start - start) : max(0, self._part.end - start)]
        if view:
            self._held.append(view)
            self._held_bytes += len(view)

    def _give(self, size: int) -> bytes:
        """The first `size` of the held bytes."""
        self._held_bytes -= size
        pieces = []
        while size:
            view = self._held.popleft()
            if len(view) > size:
                self._held.appendleft(view[size:])
            pieces.append(view[:size])
            size -= len(pieces[-1])
        return b"".join(pieces)

    def close(self) -> None:
        """Ends the upstream's response, too."""
        self._held.clear()
        self._response.close()
