"""Looks up host names, so that a name server that never answers does not delay requests to other hosts.

getaddrinfo(3) blocks a thread until the name servers answer. So look-ups have threads of their own, only a few for each zone.
All who need the same host share one look-up, and use the earlier addresses while the answer is late.
"""

import asyncio
import ipaddress
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from aiohappyeyeballs import AddrInfoType

from cacheyd.singleflight import SingleFlight

# The most threads for look-ups, and the most of them for the names of one zone (example.com).
THREADS, PER_ZONE = 32, 4
# How long an answer is used without a new look-up, and how long it is used while there is no new answer (seconds).
FRESH, STALE = 5.0, 3600.0
# How long a request waits for a new answer if there is an old one (seconds), and the most answers that are kept.
LATE, MAX_KNOWN = 1.0, 1000

type LookUp = Callable[[str, int], list[AddrInfoType]]


def system_look_up(host: str, port: int) -> list[AddrInfoType]:
    """Looks a host name up with the system's resolver. Blocks. Raises OSError."""
    try:
        return [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except UnicodeError:
        raise OSError(f"{host} is not a host name") from None


@dataclass(slots=True)
class _Zone:
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PER_ZONE))
    users: int = 0


@dataclass(slots=True)
class _Known:
    addresses: list[AddrInfoType]
    at: float


class Names:
    """Host names and the addresses that were looked up lately."""

    def __init__(self, look_up: LookUp = system_look_up, clock: Callable[[], float] = time.monotonic) -> None:
        self._look_up = look_up
        self._clock = clock
        self._known: OrderedDict[tuple[str, int], _Known] = OrderedDict()
        self._asking: SingleFlight[tuple[str, int], None, list[AddrInfoType]] = SingleFlight()
        self._threads = asyncio.Semaphore(THREADS)
        self._zones: dict[str, _Zone] = {}

    async def addresses(self, host: str, port: int) -> list[AddrInfoType]:
        """The addresses of a host. Raises OSError."""
        if _is_address(host):
            return self._look_up(host, port)
        key = host, port
        known = self._known.get(key)
        age = self._clock() - known.at if known is not None else 0.0
        if known is not None and age < FRESH:
            return known.addresses
        _, asking = self._asking.join(key, None, lambda: self._ask(key))
        if known is None or age >= STALE:
            return await asking
        try:
            async with asyncio.timeout(LATE):
                return await asking
        except (OSError, TimeoutError):
            return known.addresses

    async def _ask(self, key: tuple[str, int]) -> list[AddrInfoType]:
        name = zone_of(key[0])
        zone = self._zones.setdefault(name, _Zone())
        zone.users += 1
        try:
            async with zone.turns, self._threads:
                found = await _in_thread(self._look_up, *key)
        finally:
            zone.users -= 1
            if not zone.users:
                del self._zones[name]
        self._known[key] = _Known(found, self._clock())
        self._known.move_to_end(key)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return found

    def forget(self) -> None:
        """Forgets all answers, so that names are looked up anew."""
        self._known.clear()

    def close(self) -> None:
        """Cancels the tasks that wait for answers."""
        for task in self._asking.tasks():
            task.cancel()


async def _in_thread(look_up: LookUp, host: str, port: int) -> list[AddrInfoType]:
    """Looks a name up in a new thread. The end of the process does not wait for the thread. Raises OSError.

    The task in `SingleFlight` awaits this, so the turn of the look-up lasts until the thread ends, also if its askers leave.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[AddrInfoType]] = loop.create_future()

    def settle(found: list[AddrInfoType] | OSError) -> None:
        if answer.done():
            return
        if isinstance(found, OSError):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def work() -> None:
        found: list[AddrInfoType] | OSError
        try:
            found = look_up(host, port)
        except OSError as error:
            found = error
        except Exception as error:
            found = OSError(f"{host} could not be looked up: {type(error).__name__}")
        with suppress(RuntimeError):  # The event loop is closed: nobody waits for the answer.
            loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=work, name="cacheyd-names", daemon=True).start()
    return await answer


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def zone_of(host: str) -> str:
    """The zone of a host: the last two labels of a name, which mostly have one owner. An IPv6 address is its own zone."""
    return host if ":" in host else ".".join(host.rstrip(".").split(".")[-2:])
