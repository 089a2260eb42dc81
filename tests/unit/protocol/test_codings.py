"""Content codings, undone piece by piece."""

import gzip
import zlib
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheyd.protocol.codings import EXPANSION, PIECE, SLACK, BadCoding, Decoder, UnknownCoding, codings_of, decode

LIMIT = 8 << 20


def bare(data: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return engine.compress(data) + engine.flush()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def streamed_zstd(data: bytes) -> bytes:
    """Without the size in its head, and in several blocks."""
    engine = zstandard.ZstdCompressor(level=1).compressobj()
    half = len(data) // 2
    return (
        engine.compress(data[:half])
        + engine.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        + engine.compress(data[half:])
        + engine.flush()
    )


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "bare deflate": ("deflate", bare),
    "zstd": ("zstd", zstd),
    "streamed zstd": ("zstd", streamed_zstd),
}
ENCODER = pytest.mark.parametrize("name", ENCODERS)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((), ()),
        (("",), ()),
        (("identity",), ()),
        (("gzip",), ("gzip",)),
        (("X-GZip",), ("gzip",)),
        ((" gzip ,\tzstd",), ("gzip", "zstd")),
        (("gzip", "zstd"), ("gzip", "zstd")),
        ((", ,identity, br",), ("br",)),
    ],
)
def test_the_names_of_codings(values: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert codings_of((("Content-Type", "a/b"), *(("content-ENCODING", value) for value in values))) == expected


@pytest.mark.parametrize("codings", [("br",), ("gzip", "compress"), ("gzip", "zstd"), ("gzip",) * 3, (), ("",), ("é" * 9000,)])
def test_what_is_not_known(codings: tuple[str, ...]) -> None:
    with pytest.raises(UnknownCoding) as caught:
        Decoder(codings)
    assert len(str(caught.value)) < 200


@ENCODER
@pytest.mark.parametrize("size", [0, 1, 100, PIECE - 1, PIECE, PIECE + 1, 1_000_000])
def test_it_comes_out_as_it_went_in(name: str, size: int) -> None:
    coding, encode = ENCODERS[name]
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert decode(encode(data), [coding], LIMIT) == data


@ENCODER
@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=3000), cuts=st.lists(st.integers(0, 3000), max_size=20))
def test_it_does_not_matter_where_it_is_cut(name: str, data: bytes, cuts: list[int]) -> None:
    coding, encode = ENCODERS[name]
    encoded = encode(data)
    places = sorted({min(cut, len(encoded)) for cut in cuts} | {0, len(encoded)})
    decoder = Decoder([coding])
    found = b"".join(piece for a, b in pairwise(places) for piece in decoder.feed(encoded[a:b]))
    decoder.finish()
    assert found == data


@ENCODER
def test_what_ends_too_early_is_no_body(name: str) -> None:
    coding, encode = ENCODERS[name]
    encoded = encode(b"some text, some text" * 20)
    for end in range(1, len(encoded)):
        with pytest.raises(BadCoding):
            decode(encoded[:end], [coding], LIMIT)


@pytest.mark.parametrize("name", ["gzip", "zstd", "streamed zstd"])
def test_members_and_frames_follow_each_other(name: str) -> None:
    coding, encode = ENCODERS[name]
    skipped = b"\x5f\x2a\x4d\x18\x05\0\0\0hello" if coding == "zstd" else b""
    assert decode(skipped + encode(b"a") + skipped + encode(b"b"), [coding], LIMIT) == b"ab"
    with pytest.raises(BadCoding):
        decode(encode(b"a") + b"garbage", [coding], LIMIT)


def test_nothing_follows_deflate() -> None:
    for encode in (zlib.compress, bare):
        with pytest.raises(BadCoding):
            decode(encode(b"a") + encode(b"b"), ["deflate"], LIMIT)


@given(data=st.binary(max_size=300), coding=st.sampled_from(["gzip", "deflate", "zstd"]))
def test_any_bytes_decode_or_are_refused(data: bytes, coding: str) -> None:
    for start in (b"", b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08\0\0\0\0\0\0\x03", b"\x78\x9c", b"\x50\x2a\x4d\x18"):
        try:
            found = decode(start + data, [coding], LIMIT)
        except BadCoding:
            continue
        assert len(found) <= LIMIT


@given(at=st.integers(0, 10_000), flip=st.integers(1, 255), name=st.sampled_from(["gzip", "zstd"]))
def test_a_damaged_body_is_not_taken_for_another_one(at: int, flip: int, name: str) -> None:
    """Both have a checksum; what is behind a header's flags may change without a trace."""
    coding, encode = ENCODERS[name]
    data = bytes(range(256)) * 20
    encoded = bytearray(encode(data))
    encoded[at % len(encoded)] ^= flip
    with suppress(BadCoding):
        assert decode(encoded, [coding], LIMIT) == data or name == "zstd"


@pytest.mark.parametrize(
    ("coding", "bomb"),
    [
        ("gzip", gzip.compress(bytes(64 << 20))),
        ("zstd", b"\x28\xb5\x2f\xfd\x00\x58" + b"\x02\x00\x10\x00" * 10_000),
        ("gzip", gzip.compress(b"") * 50_000),
        ("zstd", zstd(b"") * 50_000),
        ("zstd", b"\x50\x2a\x4d\x18\0\0\0\0" * 100_000),
        ("zstd", b"\x28\xb5\x2f\xfd\x00\x58" + bytes(300_000)),
    ],
    ids=["zeros", "blocks", "members", "frames", "skipped", "empty blocks"],
)
def test_bombs_are_bounded_by_what_came(coding: str, bomb: bytes) -> None:
    decoder, made, came, ended = Decoder([coding]), 0, 0, False
    with suppress(BadCoding):
        for at in range(0, len(bomb), 4096):
            came += 4096
            for piece in decoder.feed(bomb[at : at + 4096]):
                made += len(piece)
                assert len(piece) <= PIECE
        ended = True
    assert not ended
    assert made <= SLACK + EXPANSION * came


def test_a_window_is_bounded() -> None:
    """RFC 9659: 8 MiB."""
    encoder = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=25)).compressobj()
    encoded = encoder.compress(bytes(range(256)) * 200_000) + encoder.flush()
    with pytest.raises(BadCoding):
        decode(encoded, ["zstd"], 1 << 30)


def test_the_limit_is_one_of_what_comes_out() -> None:
    assert len(decode(gzip.compress(bytes(1000)), ["gzip"], 1000)) == 1000
    with pytest.raises(BadCoding):
        decode(gzip.compress(bytes(1001)), ["gzip"], 1000)
