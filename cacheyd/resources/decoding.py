"""Decoding of bodies: in one thread, so that it never takes more than one processor, and never the event loop.

Bodies in memory are decoded one at a time, registries in turn; a few blobs are decoded beside them, slice by slice.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

from cacheyd.protocol.codings import WINDOW, BadCoding, decode
from cacheyd.resources.budget import Budget

# Bodies in memory that wait for their turn, of one registry; and for how long (seconds).
MAX_WAITING, WAIT = 16, 10.0
# How many blobs are decoded at once, no registry more than two.
BLOBS = 4
# What a slice of a blob decodes to (bytes), or takes of a processor (seconds).
SLICE, SLICE_SECONDS = 512 << 10, 0.05


class NoTurn(Exception):
    """Too much waits to be decoded."""


class DecodingQueue:
    """One turn at a time. Registries that wait have theirs one after the other, each with its oldest request."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, registry: str) -> AsyncIterator[None]:
        """A turn while the block runs. Raises NoTurn where there is none in time."""
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
    """Decodes a body that is in memory, to `limit` bytes at most; returns it as it came where it `is_right` already.

    Raises BadCoding, and NoTurn.
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
        # A new one: this one's frames keep what is decoded so far, and the window, for as long as somebody keeps the error.
        return type(error)(str(error))


async def next_slice(pieces: Iterator[bytes]) -> tuple[list[bytes], bool]:
    """What is decoded next, as much as is worth it, and whether that is all. Raises BadCoding."""
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
