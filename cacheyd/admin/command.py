"""A command of the control socket: its name, the order that it takes, and the replies that it gives."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import batched
from typing import Any

from cacheyd.admin.control import CommandError, Reply, closable
from cacheyd.admin.inventory import Ambiguous
from cacheyd.admin.orders import Order

# The most rows in one reply.
ROWS = 500


@dataclass(frozen=True, slots=True)
class Command[O]:
    """A command. `run` is an async generator of replies, the last of which has the result; it raises CommandError.

    `parse` makes the order from the arguments that came over the socket; it raises the same errors as `Order.parse`.
    """

    name: str
    parse: Callable[[Mapping[str, Any]], O]
    run: Callable[[O], AsyncIterator[Reply]]


def command[O: Order](order: type[O], run: Callable[[O], AsyncIterator[Reply]]) -> Command[O]:
    """Makes the command that takes orders of this type."""
    return Command(order.command, order.parse, run)


def telling[O: Order](order: type[O], run: Callable[[O], AsyncIterator[dict[str, Any]]]) -> Command[O]:
    """Makes a command from a function that yields plain values: each value is sent as progress, a ValueError as an error."""

    async def replies(given: O) -> AsyncIterator[Reply]:
        try:
            async with contextlib.aclosing(closable(run(given))) as values:
                async for value in values:
                    yield {"progress": value}
        except ValueError as error:
            raise CommandError(str(error)) from error
        yield {"result": {}}

    return command(order, replies)


def in_rows(rows: Iterable[object]) -> Iterator[Reply]:
    """Replies with these rows, up to ROWS in each reply."""
    for batch in batched(rows, ROWS):
        yield {"rows": batch}


async def in_thread[T](look: Callable[[], T]) -> T:
    """Runs `look`, which looks through an inventory, in a thread. Raises CommandError for an ambiguous name."""
    try:
        return await asyncio.to_thread(look)
    except Ambiguous as error:
        raise CommandError(str(error)) from None
