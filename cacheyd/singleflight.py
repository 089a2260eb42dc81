"""Does work once for several waiters: the single flight of small answers.

The work belongs to none of the waiters: the waiter that started it can leave, and the others still get the result.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any


class SingleFlight[Key: Hashable, Who, Result]:
    """Running tasks by key, each with its starter. There is no await between the lookup and the start of a task."""

    def __init__(self) -> None:
        self._running: dict[Key, tuple[Who, asyncio.Task[Result]]] = {}

    def join(self, key: Key, who: Who, start: Callable[[], Coroutine[Any, Any, Result]]) -> tuple[Who, asyncio.Future[Result]]:
        """The starter and the result of the task that runs for this key; starts a task for `who` if none runs."""
        running = self._running.get(key)
        if running is None or _has_failed(running[1]):
            task = asyncio.create_task(start())
            running = (who, task)
            if not task.done():
                self._running[key] = running
                task.add_done_callback(partial(self._done, key))
        theirs, task = running
        return theirs, asyncio.shield(task)

    def _done(self, key: Key, task: asyncio.Task[Result]) -> None:
        running = self._running.get(key)
        if running is not None and running[1] is task:
            del self._running[key]
        if not task.cancelled():
            task.exception()  # Marks the exception as seen, in case all waiters have left.

    def tasks(self) -> list[asyncio.Task[Result]]:
        """The tasks that run now."""
        return [task for _, task in self._running.values()]


def _has_failed(task: asyncio.Task[Any]) -> bool:
    """Whether the task has ended without a result. asyncio runs its callbacks, `_done` among them, only a moment later: who
    comes in this moment must not get a failure that is over.
    """
    return task.done() and (task.cancelled() or task.exception() is not None)
