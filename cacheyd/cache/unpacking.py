"""Decodes blobs that came encoded, from one file on disk into another, a few blobs at once."""

from collections.abc import Callable, Iterator, Sequence

from cacheyd.cache.decoded import WRONG
from cacheyd.cache.flight_turns import LOOK_FOR_WAY
from cacheyd.cache.incoming import Incoming
from cacheyd.protocol.codings import (
    BLOB_SECONDS,
    SECONDS_OF_MIB,
    WINDOW,
    BadCoding,
    Decoder,
    UnknownCoding,
    check_known,
)
from cacheyd.resources.budget import Budget
from cacheyd.resources.decoding import BLOBS, next_slice
from cacheyd.resources.slots import Slots
from cacheyd.store.partial import Partial
from cacheyd.store.partials import LARGE_CHUNK
from cacheyd.store.store import Store


class Unpacking:
    """Undoes the codings of blobs, each in its turn. `check_wanted` raises if no client wants the blob any more."""

    def __init__(self, store: Store, budget: Budget) -> None:
        self._store = store
        self._budget = budget
        self._turns = Slots(BLOBS)

    async def unpack(
        self, incoming: Incoming, registry: str, codings: Sequence[str], check_wanted: Callable[[], None]
    ) -> None:
        """Decodes a body that came encoded and does not have the digest as it is. It is on disk, and no client has any of it.

        Raises RequestError for bytes that cannot be decoded, NotKept.
        """
        try:
            check_known(codings)
        except UnknownCoding as error:
            raise await incoming.mismatch(f"{WRONG}, and cannot be decoded: {error}") from None
        encoded = await incoming.begin_decoding()
        await self._turns.enter_looking(registry, check_wanted, LOOK_FOR_WAY)
        self._budget.take(WINDOW)
        try:
            await self._decode(incoming, encoded, codings, check_wanted)
        except BadCoding as error:
            raise await incoming.mismatch(f"{WRONG}: {error}") from None
        finally:
            self._budget.give(WINDOW)
            self._turns.leave(registry)

    async def _decode(
        self, incoming: Incoming, encoded: Partial, codings: Sequence[str], check_wanted: Callable[[], None]
    ) -> None:
        decoder, at = Decoder(codings, BLOB_SECONDS, SECONDS_OF_MIB), 0
        pieces: Iterator[bytes] = iter(())
        try:
            while data := await self._store.upkeep.threads.run(encoded.read, at, at + LARGE_CHUNK):
                at += len(data)
                pieces, is_all = decoder.feed(data), False
                while not is_all:
                    check_wanted()
                    batch, is_all = await next_slice(pieces)
                    if batch:
                        await incoming.keep(batch)
            decoder.finish()
        finally:
            # An error keeps this frame, and the decoder and its pieces keep the window.
            del decoder, pieces
