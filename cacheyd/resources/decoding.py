"""Decodes bodies in one thread, so that decoding takes at most one processor and never the event loop.

The thread decodes bodies in memory one at a time, registries in turn; between them, it decodes a few blobs slice by slice.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

from cacheyd.protocol.codings import WINDOW, BadCoding, decode
from cacheyd.resources.budget import Budget

# The most bodies in memory of one registry that wait for a turn, and how long each waits (seconds).
MAX_WAITING, WAIT = 16, 10.0
# The most blobs that are decoded at once; a registry has at most two of them.
BLOBS = 4
# A slice of a blob ends after this many decoded bytes, or after this much processor time (seconds).
SLICE, SLICE_SECONDS = 512 << 10, 0.05


class NoTurn(Exception):
    """Too many bodies wait for decoding."""


class DecodingQueue:
    """Gives one turn at a time. Waiting registries take turns, each with its oldest request."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, registry: str) -> AsyncIterator[None]:
        """Waits for a turn and holds it while the block runs. Raises NoTurn if no turn comes in time."""
        await self._enter(registry)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, registry: str) -> None:
        if not self._taken:
            self._taken = True
            return
        queue = deque(turn for turn in self._waiting.get(registry, ()) if not turn.done())
        if len(queue) >= MAX_WAITING:
            raise NoTurn
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        self._waiting[registry] = queue
        try:
            async with asyncio.timeout(WAIT):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._leave()
            if isinstance(error, TimeoutError):
                raise NoTurn from None
            raise

    def _leave(self) -> None:
        while self._waiting:
            registry = next(iter(self._waiting))
            queue = self._waiting.pop(registry)
            turn = queue.popleft()
            if queue:
                self._waiting[registry] = queue
            if not turn.done():
                turn.set_result(None)
                return
        self._taken = False


_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cacheyd-decoding")
_turns = DecodingQueue()


async def undo(
    registry: str,
    data: bytes | bytearray,
    codings: Sequence[str],
    limit: int,
    budget: Budget | None = None,
    *,
    is_right: Callable[[bytes | bytearray], bool] = lambda data: False,
) -> bytes | bytearray:
    """Decodes a body in memory to at most `limit` bytes; if `is_right` accepts the undecoded bytes, returns these.

    Raises BadCoding and NoTurn.
    """
    with _counted(budget, len(data)):
        async with _turns.turn(registry):
            with _counted(budget, WINDOW + limit):
                return await _run(lambda: data if is_right(data) else decode(data, codings, limit))


@contextmanager
def _counted(budget: Budget | None, size: int) -> Iterator[None]:
    if budget is not None:
        budget.take(size)
    try:
        yield
    finally:
        if budget is not None:
            budget.give(size)


async def _run[T](function: Callable[[], T]) -> T:
    result = await asyncio.get_running_loop().run_in_executor(_thread, _try, function)
    if isinstance(result, BadCoding):
        raise result
    return result


def _try[T](function: Callable[[], T]) -> T | BadCoding:
    try:
        return function()
    except BadCoding as error:
        # Makes a new error: the frames of `error` would keep the decoded bytes and the window in memory as long as the error.
        return type(error)(str(error))


async def next_slice(pieces: Iterator[bytes]) -> tuple[list[bytes], bool]:
    """Decodes the next slice: its pieces, and whether the body ends with it. Raises BadCoding."""
    return await _run(lambda: _slice(pieces))


def _slice(pieces: Iterator[bytes]) -> tuple[list[bytes], bool]:
    found, size, began = list[bytes](), 0, time.thread_time()
    for piece in pieces:
        if piece:
            found.append(piece)
            size += len(piece)
        if size >= SLICE or time.thread_time() - began >= SLICE_SECONDS:
            return found, False
    return found, True
