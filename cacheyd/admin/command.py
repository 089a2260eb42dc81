"""What a command of the control socket is: its name, the order that it takes, and the replies that it gives."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import batched
from typing import Any

from cacheyd.admin.control import CommandError, Reply, closable
from cacheyd.admin.inventory import Ambiguous
from cacheyd.admin.orders import Order

# Rows in a line.
ROWS = 500


@dataclass(frozen=True, slots=True)
class Command[O]:
    """`run` is an async generator of replies, the last of which has the result; it raises CommandError.

    `parse` makes its order of what came over the socket; it raises what `Order.parse` raises.
    """

    name: str
    parse: Callable[[Mapping[str, Any]], O]
    run: Callable[[O], AsyncIterator[Reply]]


def command[O: Order](order: type[O], run: Callable[[O], AsyncIterator[Reply]]) -> Command[O]:
    """The command that takes such orders."""
    return Command(order.command, order.parse, run)


def telling[O: Order](order: type[O], run: Callable[[O], AsyncIterator[dict[str, Any]]]) -> Command[O]:
    """A command made of a function that yields plain values: each is told as progress, and a ValueError is a refusal."""

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
    """Replies with these rows, some in each."""
    for batch in batched(rows, ROWS):
        yield {"rows": batch}


async def in_thread[T](look: Callable[[], T]) -> T:
    """What looking through an inventory gives; off the event loop. Raises CommandError for a name that is ambiguous."""
    try:
        return await asyncio.to_thread(look)
    except Ambiguous as error:
        raise CommandError(str(error)) from None
