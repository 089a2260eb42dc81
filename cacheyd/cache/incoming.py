"""The file of a blob on its way in: opens it, writes it, empties it for a new start, verifies it, makes it an object."""

import logging
from collections.abc import Sequence

from cacheyd.cache.claim import Claim
from cacheyd.cache.flight import Flight, NotKept
from cacheyd.cache.recent_failures import RecentFailures
from cacheyd.observe.events import Events
from cacheyd.protocol.errors import Blame, Code, Failure, RequestError, upstream_error
from cacheyd.protocol.reference import Reference
from cacheyd.store.partial import Partial
from cacheyd.store.partials import LARGE_CHUNK
from cacheyd.store.store import Store
from cacheyd.upstream.port import Chunk

log = logging.getLogger(__name__)


class StartOver(Exception):
    """The fetch must begin again, from the first byte."""


class Incoming:
    """Takes the bytes of a flight to the disk, for its fetch. `claim` is the room for these bytes in the store."""

    def __init__(self, flight: Flight, ref: Reference, store: Store, failures: RecentFailures, events: Events) -> None:
        self.claim = Claim(store, ref.registry)
        self._flight = flight
        self._body = flight.body
        self._ref = ref
        self._store = store
        self._failures = failures
        self._events = events

    @property
    def partial(self) -> Partial:
        """The flight's file, open since `open`."""
        assert self._body.partial is not None
        return self._body.partial

    @property
    def size(self) -> int:
        """How many bytes are in the file."""
        return self.partial.size

    async def open(self) -> None:
        """Opens the file with the bytes that are there already. Raises NotKept if the disk cannot be written."""
        if not self._store.health.writable:
            raise NotKept
        self._body.begin(await self._open_partial())

    async def _open_partial(self) -> Partial:
        try:
            return await self._store.partials.open(self._flight.digest, self._ref.registry)
        except OSError as error:
            self._store.health.report_write_error(error)
            raise NotKept from error

    def is_whole(self) -> bool:
        """Whether the file has bytes, and these are the whole object."""
        return bool(self.partial.size) and self.partial.verified()

    async def restart(self, why: str) -> Exception:
        """Drops a file that cannot be continued; begins again if no client has any byte of it. Gives the error to raise."""
        await self._store.partials.discard(self.partial)
        if self._flight.streaming and not self._body.sealed:
            return upstream_error(502, why, digest=self._flight.digest)
        try:
            partial = await self._open_partial()
        except NotKept as error:
            return error
        self._body.begin_anew(partial)
        self.claim.drop()
        return StartOver()

    async def begin_decoding(self) -> Partial:
        """Opens a new file for the decoded object. Gives the file with the encoded bytes, to be read; raises NotKept."""
        encoded = self.partial
        # The encoded file's descriptor stays open until the last piece is read.
        self._store.partials.release(encoded, close=False, keep=False)
        self._body.rewind()
        self._body.decode_into(await self._open_partial())
        return encoded

    async def keep(self, chunks: Sequence[Chunk]) -> None:
        """Writes the chunks. Raises RequestError for more bytes than upstream announced, NotKept if there is no room."""
        await self._check_length(sum(map(len, chunks)))
        if len(chunks) > 1 and sum(map(len, chunks)) < LARGE_CHUNK * len(chunks):
            chunks = [b"".join(chunks)]
        try:
            with self._store.partials.reservations.writing(sum(map(len, chunks))):
                received = await self._store.partials.append(self.partial, chunks)
        except OSError as error:
            self._store.health.report_write_error(error)
            raise NotKept from error
        self._body.grew(received, chunks)

    async def _check_length(self, more: int) -> None:
        """Raises RequestError for more bytes than upstream announced, NotKept for more than there is room for."""
        if self._body.size is not None and self._body.received + more > self._body.size:
            raise await self.mismatch("upstream sent more bytes than it announced")
        if not await self.claim.use(more):
            raise NotKept

    async def mismatch(self, message: str) -> RequestError:
        """Drops the file, because its bytes are wrong. Gives the error to raise."""
        self._events.verify_failure(self._ref.registry)
        await self._store.partials.discard(self.partial)
        return RequestError(Failure(502, Code.DIGEST_INVALID, message, Blame.UPSTREAM, {"digest": self.partial.digest}))

    async def land(self) -> None:
        """Ends a verified flight: the clients get the rest at once; then this method waits until the disk has the object."""
        self._failures.landed(self._flight)
        self._flight.landed()
        try:
            self._flight.keep(await self._store.commit(self.partial, within=self._ref.name))
        except OSError as error:
            self._store.health.report_write_error(error)
        if self._flight.stored is None:
            self._store.partials.release(self.partial, close=False)
            log.info("%s of %s was served but not kept", self._flight.digest, self._ref.registry)

    def give_up(self, error: Exception) -> None:
        """Ends a failed fetch: the bytes that came stay for the next fetch."""
        if self._body.partial is not None:
            # An object that could not be kept must not fill the disk either.
            self._store.partials.release(self._body.partial, keep=not (self._body.sealed or isinstance(error, NotKept)))
