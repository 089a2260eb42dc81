"""What passes through is hashed, and its end held back."""

from collections.abc import Sequence

import pytest

from cacheyd.cache.bodies import BodyBroken
from cacheyd.cache.growing import HOLD
from cacheyd.cache.verified import VerifiedSource
from cacheyd.protocol.headers import HeaderList
from cacheyd.protocol.ranges import Part
from cacheyd.upstream.port import Chunk, UpstreamBroken
from tests.support.images import digest_of, random_bytes

DATA = random_bytes(300_000, 1)


class Response:
    """Chunks of a size; broken at the end if that is wanted."""

    status = 200
    by_other_host = False
    headers: HeaderList = ()

    def __init__(self, data: bytes, size: int, *, broken: bool = False) -> None:
        self.chunks = [data[at : at + size] for at in range(0, len(data), size)]
        self.broken = broken
        self.closed = False

    async def read(self) -> Sequence[Chunk]:
        if not self.chunks and self.broken:
            raise UpstreamBroken("cut")
        return [self.chunks.pop(0)] if self.chunks else []

    def close(self) -> None:
        self.closed = True


async def received(source: VerifiedSource) -> tuple[bytes, bool]:
    """What came, and whether it ended well."""
    data = b""
    try:
        while piece := await source.read():
            data += piece
    except BodyBroken:
        return data, False
    finally:
        source.close()
    return data, True


@pytest.mark.parametrize("size", [1000, 64 << 10, 1 << 20])
async def test_right_bytes(size: int) -> None:
    seen = []

    async def verified(length: int) -> None:
        seen.append(length)

    response = Response(DATA, size)
    assert await received(VerifiedSource(response, digest_of(DATA), on_verified=verified)) == (DATA, True)
    assert (seen, response.closed) == ([len(DATA)], True)


@pytest.mark.parametrize("size", [1000, 1 << 20])
@pytest.mark.parametrize("at", [0, 150_000, 299_999])
async def test_wrong_bytes_never_end(size: int, at: int) -> None:
    wrong = bytearray(DATA)
    wrong[at] ^= 1
    mismatches = []
    source = VerifiedSource(Response(bytes(wrong), size), digest_of(DATA), on_mismatch=lambda: mismatches.append(1))
    data, complete = await received(source)
    assert (complete, mismatches) == (False, [1])
    assert len(data) <= len(DATA) - HOLD


@pytest.mark.parametrize(
    "part", [Part(0, 10), Part(0, 300_000), Part(100_000, 200_000), Part(299_999, 300_000), Part(1, 299_999)]
)
@pytest.mark.parametrize("right", [True, False])
async def test_a_part_waits_for_the_whole(part: Part, right: bool) -> None:
    data = DATA if right else DATA[:-1] + b"?"
    if not right and data == DATA:
        data = DATA[:-1] + b"!"
    got, complete = await received(VerifiedSource(Response(data, 7_001), digest_of(DATA), part))
    assert complete == right
    if right:
        assert got == DATA[part.start : part.end]
    else:
        assert len(got) <= max(0, part.length - HOLD)


async def test_a_cut_is_no_end() -> None:
    data, complete = await received(VerifiedSource(Response(DATA[:200_000], 50_000, broken=True), digest_of(DATA)))
    assert (data, complete) == (DATA[: 200_000 - HOLD], False)


async def test_a_short_body_that_ends_well_is_wrong() -> None:
    assert not (await received(VerifiedSource(Response(DATA[:200_000], 50_000), digest_of(DATA))))[1]


async def test_an_empty_object() -> None:
    assert await received(VerifiedSource(Response(b"", 1), digest_of(b""))) == (b"", True)
