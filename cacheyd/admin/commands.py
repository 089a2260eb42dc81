"""The table of commands, in the process that has the cache directory."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from cacheyd.admin.cleaning import Cleaning
from cacheyd.admin.command import Command
from cacheyd.admin.control import CommandError, Reply, closable
from cacheyd.admin.holds import Holds
from cacheyd.admin.looking import Looking
from cacheyd.store.store import Store

# How long a command waits until a cache that has just started has read its index (seconds).
LOAD_WAIT = 60.0


class Commands:
    """All commands by name: the commands about the store, and the `further` commands.

    `running` gives the counters of the process that serves clients; None if this process serves none.
    """

    def __init__(
        self,
        store: Store,
        further: Iterable[Command[Any]] = (),
        *,
        running: Callable[[], Mapping[str, object]] | None = None,
    ) -> None:
        self._store = store
        looking = Looking(store, running)
        own: tuple[Command[Any], ...] = (*looking.commands(), *Cleaning(store).commands(), *Holds(store).commands())
        self._table: dict[str, Command[Any]] = {command.name: command for command in (*own, *further)}

    async def run(self, name: str, args: Mapping[str, Any]) -> AsyncIterator[Reply]:
        """Runs a command, and gives its replies; the last reply has the result. Raises CommandError."""
        command = self._table.get(name)
        if command is None:
            raise CommandError(f"there is no command {name!r}; known: {', '.join(self._table)}")
        deadline = time.monotonic() + LOAD_WAIT
        while not self._store.loaded and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        try:
            order = command.parse(args)
        except ValueError as error:
            raise CommandError(str(error)) from error
        except (KeyError, TypeError) as error:
            raise CommandError("an argument of the command is missing, or has a wrong type") from error
        async with contextlib.aclosing(closable(command.run(order))) as replies:
            async for reply in replies:
                yield reply
