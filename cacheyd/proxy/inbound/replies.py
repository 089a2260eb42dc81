"""Answers hits before a flow exists: with a small whole response that was kept for less than a second, else from the store."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from mitmproxy import connection

from cacheyd.cache.answer import Answer
from cacheyd.proxy.inbound.head import Head
from cacheyd.service.service import Service

# How often the file behind a kept reply is looked for (seconds): somebody can wipe the directory at any time.
LOOK_EVERY = 0.05
# The most bytes of all kept replies, of one kept reply, and of Python's own memory for an entry. Each reply counts with its
# request.
KEPT_TOTAL = 16 << 20
KEPT_BYTES = 16 << 10
KEPT_ENTRY = 2 << 10


@dataclass(slots=True)
class _Reply:
    """A whole response that is valid to the end of the clock's second, as long as the object's file exists."""

    until: float
    second: int
    look_again: float
    reply: bytes
    digest: str
    method: str
    answer: Answer
    uses: int = 0


class Replies:
    """Answers hits from memory and disk; implements `Hits` of `server`.

    `clock` gives the time that clients and people see. `monotonic`, which nobody can set, measures how long a reply is valid.
    """

    def __init__(
        self,
        service: Service,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._live = service.live
        self._store = service.components.store
        self._answering = service.answering
        self._transfers = service.transfers
        self._accounting = service.accounting
        self._clock = clock
        self._monotonic = monotonic
        # The key is the whole request head.
        self._kept: dict[bytes, _Reply] = {}
        self._size = 0
        # The clock's time of the last hit: `remember` keeps its answer only in the same second.
        self._hit_at = 0.0
        self._inspected = False
        service.live.listen(lambda settings: self._clear())

    def inspect(self) -> None:
        """From now on, hits also become flows, so that other addons see them."""
        self._inspected = True

    def kept(self, raw: bytes, client: connection.Client) -> bytes | None:
        """The kept response to the same head, in the same second and while the object exists: so Age and Date are right.

        None if there is none.
        """
        known = self._kept.get(raw)
        if known is None:
            return None
        now = self._monotonic()
        if now >= known.until or not 0 <= self._clock() - known.second < 1 or self._transfers.stopping:
            self._store.objects.touch(known.digest, known.uses)
            self._forget(raw)
            return None
        known.uses += 1
        if now >= known.look_again:
            if self._store.objects.find(known.digest) is None:
                self._forget(raw)
                return None
            self._store.objects.touch(known.digest, known.uses)
            known.look_again, known.uses = now + LOOK_EVERY, 0
        self._accounting.answered(known.method, known.answer, len(known.answer.body), now, client.peername)
        return known.reply

    def _forget(self, raw: bytes) -> None:
        if (known := self._kept.pop(raw, None)) is not None:
            self._size -= len(raw) + len(known.reply) + KEPT_ENTRY

    def _clear(self) -> None:
        self._kept.clear()
        self._size = 0

    def hit(self, head: Head) -> Answer | None:
        """The answer from disk; None if the request must become a flow."""
        if self._inspected:
            return None
        self._hit_at = self._clock()
        return self._answering.hit(head.method, head.target, head.headers)

    def remember(self, raw: bytes, head: Head, answer: Answer, reply: bytes) -> None:
        """Keeps a small whole response for `kept`. Never keeps a response to a head with credentials."""
        if answer.stored is None or answer.status != 200 or len(raw) + len(reply) > KEPT_BYTES or head.get("authorization"):
            return
        if answer.ref is None or self._live.settings.registry(answer.ref.registry).access != "open":
            return
        now, clock = self._monotonic(), self._clock()
        if int(clock) != int(self._hit_at):
            return
        self._forget(raw)
        self._size += len(raw) + len(reply) + KEPT_ENTRY
        while self._size > KEPT_TOTAL:
            self._forget(next(iter(self._kept)))
        # The reply is valid to the end of the clock's second, also if somebody sets the clock during this second.
        until, second = now + 1.0 - clock % 1.0, int(clock)
        self._kept[raw] = _Reply(until, second, now + LOOK_EVERY, reply, answer.stored.digest, head.method, answer)

    def sent(
        self, client: connection.Client, head: Head, answer: Answer, sent: int, started: float, error: str | None
    ) -> None:
        """Accounts for a hit that was answered, or that broke off after `sent` bytes of its body."""
        if answer.source is not None:
            self._transfers.end()
            self._transfers.sent(answer)
        self._accounting.answered(head.method, answer, sent, started, client.peername, error or "")

    def closing(self, answer: Answer) -> bool:
        """Whether the client's connection must end with this response."""
        return self._transfers.closing(answer)
