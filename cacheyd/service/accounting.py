"""Counts each answered request, and writes its line in the access log."""

import time
from collections.abc import Callable

from cacheyd.cache.answer import Answer
from cacheyd.observe.events import Events
from cacheyd.observe.logs import AccessLine, AccessLog


class Accounting:
    """Counts and logs requests about registries. Does not count or log pages and probes."""

    def __init__(
        self,
        events: Events,
        access_log: AccessLog,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._events = events
        self._access_log = access_log
        self._clock = clock
        self._monotonic = monotonic

    def answered(
        self, method: str, answer: Answer, sent: int, started: float, peer: tuple[str, int] | None, note: str = ""
    ) -> None:
        """Counts and logs one request that was answered with `sent` bytes of body. `started` is a monotonic time (seconds)."""
        ref = answer.ref
        if answer.page:
            return
        kind, registry = (ref.kind, ref.registry) if ref is not None else ("", "")
        self._events.request(registry, kind, answer.result, sent)
        self._access_log.write(
            AccessLine(
                self._clock(),
                method,
                registry,
                ref.repository if ref else "",
                (ref.reference or str(ref.kind)) if ref else "",
                answer.status,
                sent,
                answer.result,
                (self._monotonic() - started) * 1000,
                f"{peer[0]}:{peer[1]}" if peer else "",
                note or answer.note,
            )
        )

    def close(self) -> None:
        """Writes the rest of the access log, and closes the log."""
        self._access_log.close()
