"""Work that several wait for and that is done once: the single flight of small answers.

It belongs to none of them: who started it may leave, and the others still get its result.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any


class SingleFlight[Key: Hashable, Who, Result]:
    """Running tasks by key, each with who started it. No await stands between the look and the start."""

    def __init__(self) -> None:
        self._running: dict[Key, tuple[Who, asyncio.Task[Result]]] = {}

    def join(self, key: Key, who: Who, start: Callable[[], Coroutine[Any, Any, Result]]) -> tuple[Who, asyncio.Future[Result]]:
        """The task that runs for this key, started for `who` if there is none; whose it is, and what to await of it."""
        running = self._running.get(key)
        if running is None:
            task = asyncio.create_task(start())
            running = (who, task)
            if not task.done():
                self._running[key] = running
                task.add_done_callback(partial(self._done, key))
        theirs, task = running
        return theirs, asyncio.shield(task)

    def _done(self, key: Key, task: asyncio.Task[Result]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # Seen, also where everybody has left.

    def tasks(self) -> list[asyncio.Task[Result]]:
        """What runs now."""
        return [task for _, task in self._running.values()]
