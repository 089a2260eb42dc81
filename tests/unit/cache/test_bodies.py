"""Bodies of stored objects, in windows and in parts."""

import pytest

from cacheyd.cache.bodies import WINDOW, MappedReader, MultipartReader
from cacheyd.protocol.ranges import Part
from tests.support.flights import LARGE, Growing


@pytest.mark.parametrize(("start", "end"), [(0, len(LARGE)), (5, 10), (WINDOW - 5, WINDOW + 5), (7, 7), (1, len(LARGE) - 1)])
async def test_a_stored_object_goes_out_in_windows_of_its_mapping(growing: Growing, start: int, end: int) -> None:
    growing.land()
    growing.blobs.commit(growing.partial)
    mapped = growing.blobs.map(growing.flight.digest)
    assert mapped is not None

    reader = MappedReader(mapped, start, end)
    pieces = [piece for _ in range(5) if (piece := await reader.read())]

    assert b"".join(pieces) == LARGE[start:end]
    assert all(len(piece) <= WINDOW for piece in pieces)
    reader.close()


async def test_several_parts_go_out_one_after_another_without_a_copy(growing: Growing) -> None:
    growing.land()
    growing.blobs.commit(growing.partial)
    mapped = growing.blobs.map(growing.flight.digest)
    assert mapped is not None
    parts = (Part(5, 10), Part(100, 100 + WINDOW + 1))

    reader = MultipartReader(mapped.view, parts, len(LARGE), "a/b")
    pieces = []
    while piece := await reader.read():
        pieces.append(piece)

    body = b"".join(pieces)
    assert len(body) == reader.length
    assert [len(piece) for piece in pieces if isinstance(piece, memoryview)] == [5, WINDOW, 1]
    for part in parts:
        head = f"Content-Type: a/b\r\nContent-Range: {part.content_range(len(LARGE))}\r\n\r\n".encode()
        assert head + LARGE[part.start : part.end] + b"\r\n--" in body
    assert body.startswith(f"--{reader.boundary}\r\n".encode())
    assert body.endswith(f"--{reader.boundary}--\r\n".encode())
