"""Layers that are read in pieces: which of them a stopping cache still serves."""

import asyncio

import pytest

from cacheyd.cache.answer import Answer
from cacheyd.cache.request import parse_request
from cacheyd.protocol.reference import Reference
from cacheyd.protocol.targets import parse_target
from cacheyd.service.pieces import QUIET, Pieces
from cacheyd.service.transfers import Transfers
from tests.support.site import nothing
from tests.support.stores import Clock

DIGESTS = ["sha256:" + letter * 64 for letter in "ab"]


def reference(digest: str) -> Reference:
    found = parse_target(f"/v2/lab/app/blobs/{digest}?ns=reg.test", "")
    assert isinstance(found, Reference)
    return found


class Source:
    """A body that nobody reads here."""

    async def read(self) -> bytes:
        return b""

    def close(self) -> None:
        pass


def piece(digest: str, start: int) -> Answer:
    """An answer with a part of a layer."""
    headers = (("Content-Range", f"bytes {start}-{start + 9}/100"),)
    return Answer(206, headers, source=Source(), length=10, ref=reference(digest))


def test_a_layer_that_is_read_is_wanted_until_it_is_quiet(monotonic: Clock) -> None:
    pieces = Pieces(monotonic)
    pieces.begin(piece(DIGESTS[0], 0))
    pieces.end(piece(DIGESTS[0], 0))
    assert pieces.stop() == 1
    assert pieces.wanted
    monotonic.now += QUIET
    assert not pieces.wanted


def test_one_piece_in_the_middle_is_the_rest_of_what_broke_off(monotonic: Clock) -> None:
    pieces = Pieces(monotonic)
    pieces.begin(piece(DIGESTS[0], 50))
    assert pieces.stop() == 0


@pytest.mark.parametrize(("digest", "refused"), [(DIGESTS[0], False), (DIGESTS[1], True)])
async def test_after_the_stop_only_these_go_on(monotonic: Clock, digest: str, refused: bool) -> None:
    transfers = Transfers(monotonic)
    transfers.sending(piece(DIGESTS[0], 0))
    request = parse_request("GET", reference(digest), (("range", "bytes=10-19"),))
    assert not transfers.refuses(request)

    transfers.sent(piece(DIGESTS[0], 0))
    stopping = asyncio.create_task(transfers.wind_down(5.0, nothing))
    await asyncio.sleep(0)
    assert transfers.refuses(request) is refused
    assert transfers.closing(piece(digest, 10)) is refused
    monotonic.now += QUIET
    await stopping
    assert transfers.closing(piece(digest, 10))
