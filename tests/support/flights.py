"""Common parts of the tests of flights: a flight, and the steps of a fetch."""

import asyncio
import random
from pathlib import Path

from cacheyd.cache.bodies import WINDOW, MappedReader
from cacheyd.cache.flight import Flight
from cacheyd.cache.flight_reader import FlightReader
from cacheyd.cache.requester import Requester
from cacheyd.protocol.digest import digest_of
from cacheyd.store.blobs import BlobDir
from cacheyd.store.partial_dir import PartialDir

DIGEST = digest_of(b"a")
ASKER = Requester("reg.example", "lab/img", b"alice")
LARGE = random.Random(1).randbytes(WINDOW + WINDOW // 2)


class Growing:
    """A flight, with the steps that a fetch does on it."""

    def __init__(self, root: Path, data: bytes) -> None:
        self.blobs = BlobDir(root)
        self.blobs.prepare()
        self.data = data
        self.flight = Flight(digest_of(data), ASKER)
        self.partial = PartialDir(self.blobs).open(digest_of(data))
        self.flight.body.begin(self.partial)

    def stream(self, size: int | None) -> None:
        if size is not None:
            self.flight.body.measured(size)
        self.flight.answered()

    def grow(self, end: int) -> None:
        piece = self.data[self.partial.size : end]
        self.partial.write([piece])
        self.partial.hash([piece])
        self.flight.body.grew(self.partial.advance(len(piece)), ())

    def land(self) -> None:
        self.grow(len(self.data))
        assert self.partial.verified()
        self.flight.landed()


async def read_to_end(reader: FlightReader | MappedReader) -> bytes:
    data = bytearray()
    while piece := await reader.read():
        data += piece
    return bytes(data)


async def settled() -> None:
    """Lets all tasks run that are ready."""
    for _ in range(5):
        await asyncio.sleep(0)
