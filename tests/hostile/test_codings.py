"""Bodies that come encoded although identity was asked for: decoded by the header's name, and never more than is bounded."""

import gzip
import itertools
import threading
import zlib
from collections.abc import Callable, Iterator

import pytest
import zstandard

from tests.faults.client import Reply, Stopwatch
from tests.faults.scene import STREAMED, eventually
from tests.hostile.peers import MIB, Watch, head
from tests.hostile.test_raw_answers import assert_refused, assert_right
from tests.hostile.written import KINDS, Thing, Written, written
from tests.policy.conftest import Starter
from tests.support.images import random_bytes

type Encode = Callable[[bytes], bytes]


def bare_deflate(data: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return engine.compress(data) + engine.flush()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def same(data: bytes) -> bytes:
    return data


CODINGS: dict[str, tuple[tuple[str, ...], Encode]] = {
    "gzip": (("gzip",), gzip.compress),
    "x-gzip": (("x-gzip",), gzip.compress),
    "GZIP": (("GZIP",), gzip.compress),
    "two members": (("gzip",), lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:])),
    "deflate": (("deflate",), zlib.compress),
    "bare deflate": (("deflate",), bare_deflate),
    "zstd": (("zstd",), zstd),
    "two frames": (("zstd",), lambda data: zstd(data[:50]) + b"\x51\x2a\x4d\x18\x03\0\0\0abc" + zstd(data[50:])),
    "identity": (("identity",), same),
    "identity, gzip": (("identity, gzip",), gzip.compress),
}
OBJECTS = tuple(kind for kind in KINDS if not kind.startswith("HEAD"))


@pytest.fixture(scope="module")
def world(shared: Starter) -> Iterator[Written]:
    with written(shared, settings={"retries": "1", "progress_timeout": "5s"}) as world:
        yield world


@pytest.fixture(scope="module")
def tight(shared: Starter) -> Iterator[Written]:
    """Nothing fits into this cache: all passes through."""
    with written(shared, settings={"max_size": "10KiB", "progress_timeout": "5s"}) as world:
        yield world


def answer(data: bytes, thing: Thing, method: str, codings: tuple[str, ...], *, status: int = 200) -> bytes:
    fields = [f"Content-Type: {thing.media_type}", *(f"Content-Encoding: {coding}" for coding in codings)]
    return head(status, f"Content-Length: {len(data)}", *fields) + (b"" if method == "HEAD" else data)


def encoded(world: Written, thing: Thing, coding: str) -> bytes:
    """Has this thing come encoded; the bytes that come."""
    codings, encode = CODINGS[coding]
    data = encode(thing.data)
    world.script(thing, lambda method: (answer(data, thing, method, codings), False))
    return data


def large(world: Written, data: bytes) -> Thing:
    thing = world.thing("blob")
    thing.set_blob(data)
    return thing


@pytest.mark.parametrize("coding", CODINGS)
def test_what_is_named_is_undone(world: Written, coding: str) -> None:
    for kind in KINDS:
        thing = world.thing(kind)
        encoded(world, thing, coding)
        for _ in range(2):
            assert_right(thing, world.ask(thing))


@pytest.mark.parametrize("coding", ["gzip", "deflate", "bare deflate", "zstd"])
def test_small_blobs_and_large_ones_alike(world: Written, coding: str) -> None:
    """They are kept as what they are, and their length is not that of what came."""
    for data in (b"{}", b"a config" * 2000, random_bytes(3 * STREAMED, len(coding)) + bytes(2 * STREAMED)):
        thing = large(world, data)
        encoded(world, thing, coding)
        reply = world.ask(thing)
        assert_right(thing, reply)
        assert reply.length == len(data)
        eventually(lambda thing=thing: world.ask(thing).cache, "HIT")  # type: ignore[misc]
        assert_right(thing, world.ask(thing))


@pytest.mark.parametrize("coding", ["gzip", "zstd", "br", "aws-chunked"])
def test_a_label_that_is_about_the_blob_itself(world: Written, tight: Written, coding: str) -> None:
    """Object stores keep it with compressed layers: these bytes have the digest."""
    layer = {"zstd": zstd, "gzip": gzip.compress}.get(coding, same)(random_bytes(STREAMED, 7))
    for one in (world, tight):
        thing = large(one, layer + b"%d" % next(one.numbers))
        data = thing.data
        one.script(thing, lambda method: (answer(data, thing, method, (coding,)), False))  # noqa: B023
        assert_right(thing, one.ask(thing))


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_compressed_layer_that_is_compressed_once_more(world: Written, coding: str) -> None:
    thing = large(world, gzip.compress(random_bytes(STREAMED, 8)) + coding.encode())
    encoded(world, thing, coding)
    assert_right(thing, world.ask(thing))


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize(
    "codings", [("br",), ("gzip, br",), ("gzip", "zstd"), ("gzip, gzip",), ("\xff",), ("x" * 3000,)], ids=lambda c: c[0][:9]
)
def test_a_coding_that_is_not_known(world: Written, kind: str, codings: tuple[str, ...]) -> None:
    thing = world.thing(kind)
    data = gzip.compress(thing.data)
    world.script(thing, lambda method: (answer(data, thing, method, codings), False))
    reply = world.ask(thing)
    assert_refused(thing, reply)
    assert reply.status != 200
    assert b"coding" in reply.body or b"decoded" in reply.body
    world.assert_in_order()


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_a_label_that_is_a_lie_and_a_body_that_is_cut(world: Written, kind: str, coding: str) -> None:
    """A length that is kept says that the message is whole; its coding says that it is not."""
    codings, encode = CODINGS[coding]
    for damage in (lambda data: encode(data)[:-3], lambda data: data[:40] + b"x", lambda data: encode(data) + b"?"):
        thing = world.thing(kind)
        data = damage(thing.data)
        world.script(thing, lambda method: (answer(data, thing, method, codings), False))  # noqa: B023
        assert_refused(thing, world.ask(thing))


@pytest.mark.parametrize("kind", ["digest", "tag", "blob", "tags"])
def test_errors_are_decoded(world: Written, kind: str) -> None:
    thing = world.thing(kind)
    body = b'{"errors": [{"code": "DENIED", "message": "no"}]}'
    for codings, data, expected in ((("gzip",), gzip.compress(body), body), (("br",), b"what is it", None)):
        for status in (401, 404, 503):
            world.script(thing, lambda method: (answer(data, thing, method, codings, status=status), False))  # noqa: B023
            reply = world.ask(thing)
            assert (reply.status, reply.end, reply.header("Content-Encoding")) == (status, "complete", None)
            assert reply.length == len(reply.body)
            assert expected in (None, reply.body)


BOMBS = {
    "gzip": gzip.compress(bytes(300 * MIB)),
    "gzip, gzip": gzip.compress(gzip.compress(bytes(300 * MIB))),
    # Each four bytes are a block of 128 KiB.
    "zstd": b"\x28\xb5\x2f\xfd\x00\x58" + b"\x02\x00\x10\x00" * (1 << 16),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_a_bomb_is_no_more_than_its_bytes(world: Written, kind: str) -> None:
    watch = Stopwatch()
    with Watch(world.daemon) as seen:
        for coding, bomb in BOMBS.items():
            thing = world.thing(kind)
            world.script(thing, lambda method: (answer(bomb, thing, method, (coding,)), False))  # noqa: B023
            reply = world.ask(thing)
            assert_refused(thing, reply)
            assert len(reply.body) < 300 * len(bomb) + 2 * MIB
    assert seen.grown < 24 * MIB
    assert seen.stall < 1
    assert watch.seconds < 7


@pytest.mark.parametrize("wanted", ["0-99", "1000-500000", f"{STREAMED - 100}-", "-100"])
def test_a_range_of_what_came_encoded(world: Written, tight: Written, wanted: str) -> None:
    for one, coding in ((world, "gzip"), (world, "zstd"), (tight, "gzip")):
        thing = large(one, random_bytes(STREAMED, next(one.numbers)))
        encoded(one, thing, coding)
        reply = one.ask(thing, headers={"Range": f"bytes={wanted}"})
        assert reply.end == "complete"
        if reply.status == 206:
            start, _, end = (reply.header("Content-Range") or "").removeprefix("bytes ").partition("/")[0].partition("-")
            assert reply.body == thing.data[int(start) : int(end) + 1]
        else:
            assert_right(thing, reply)


def test_a_part_of_something_encoded_is_nobodys(world: Written) -> None:
    """An upstream that answers each Range with these bytes of what it sends: nothing wrong comes of it."""
    thing = large(world, random_bytes(STREAMED, next(world.numbers)))
    data = gzip.compress(thing.data)
    part = head(206, "Content-Length: 100", "Content-Encoding: gzip", f"Content-Range: bytes 0-99/{len(data)}") + data[:100]
    world.script(thing, lambda method: (part, False))
    assert_refused(thing, world.ask(thing, headers={"Range": "bytes=0-99"}))


def test_an_encoded_body_that_breaks_begins_anew(world: Written) -> None:
    """Its bytes are at other places each time, perhaps."""
    for coding in ("gzip", "zstd"):
        thing = large(world, random_bytes(STREAMED, next(world.numbers)))
        codings, encode = CODINGS[coding]
        whole = answer(encode(thing.data), thing, "GET", codings)
        answers = [(whole[: len(whole) // 2], True), (whole, False)]
        world.script(thing, lambda method: answers.pop(0))  # noqa: B023
        assert_right(thing, world.ask(thing))
        assert not any("\r\nrange:" in request.lower() for request in world.requests if thing.repo in request)


def test_what_is_gone_on_with_is_not_encoded(world: Written) -> None:
    """A client has bytes of it already: it gets no others."""
    thing = large(world, random_bytes(STREAMED, next(world.numbers)))
    plain = answer(thing.data, thing, "GET", ())
    answers = [(plain[: len(plain) // 2], True), (answer(gzip.compress(thing.data), thing, "GET", ("gzip",)), False)]
    world.script(thing, lambda method: answers.pop(0) if answers else (plain, False))
    reply = world.ask(thing)
    assert thing.data.startswith(reply.body)
    assert (reply.status, reply.end) == (200, "fin")
    thing_again = world.ask(thing)
    assert_right(thing, thing_again)


@pytest.mark.parametrize("kind", OBJECTS)
def test_what_passes_through_is_decoded(tight: Written, kind: str) -> None:
    for coding in ("gzip", "zstd", "identity"):
        thing = tight.thing(kind)
        encoded(tight, thing, coding)
        assert_right(thing, tight.ask(thing))


def test_what_passes_through_and_is_large(tight: Written) -> None:
    """Which bytes it is would be known at its end only."""
    thing = large(tight, random_bytes(5 * MIB, next(tight.numbers)))
    encoded(tight, thing, "gzip")
    with Watch(tight.daemon) as seen:
        reply: Reply = tight.ask(thing)
    assert reply.status == 502
    assert seen.grown < 24 * MIB


def empty_blocks(size: int) -> bytes:
    """A gzip that decodes to nothing for as long as it comes: blocks that each have a code, and no text in it."""
    bits: list[int] = []

    def put(value: int, width: int) -> None:
        bits.extend(value >> bit & 1 for bit in range(width))

    for _ in range(4):
        for value, width in ((0, 1), (2, 2), (0, 5), (0, 5), (14, 4)):
            put(value, width)
        for place in range(18):
            put(int(place in (2, 17)), 3)
        for value, width in ((1, 1), (127, 7), (1, 1), (107, 7), (0, 1), (0, 1), (0, 1)):
            put(value, width)
    unit = bytes(sum(bit << n for n, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8))
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + unit * (size // len(unit))


@pytest.mark.parametrize("kind", OBJECTS)
def test_what_decodes_to_nothing_stalls_nobody(world: Written, kind: str) -> None:
    """One answer kept the event loop for seconds."""
    slow = empty_blocks(60 << 10 if kind == "token" else 3 * MIB)
    things = [world.thing(kind) for _ in range(3)]
    for thing in things:
        world.script(thing, lambda method: (answer(slow, thing, method, ("gzip",)), False))  # noqa: B023
    watch = Stopwatch()
    with Watch(world.daemon) as seen:
        for thing in things:
            reply = world.ask(thing)
            assert_refused(thing, reply)
            assert reply.status != 200
    assert seen.stall < 0.5
    assert seen.grown < 24 * MIB
    assert watch.seconds < 6


def test_a_blob_that_decodes_to_nothing_is_given_up(world: Written) -> None:
    """It took a thread of the disk for as long as it pleased: now it ends by the processor's time that it takes."""
    slow = empty_blocks(100 * MIB)
    thing = world.thing("blob")
    world.script(thing, lambda method: (answer(slow, thing, method, ("gzip",)), False))
    reply = world.ask(thing)
    assert (reply.status, reply.end) == (502, "complete")
    assert b"absurdly long" in reply.body


def test_blobs_that_are_decoded_leave_the_others_alone(own: Starter) -> None:
    """Four of them took all threads of the disk, and the daemon outlived its grace."""
    with written(own, settings={"grace": "1s"}) as world:
        slow = empty_blocks(30 * MIB)
        for _ in range(6):
            thing = world.thing("blob")
            world.script(thing, lambda method: (answer(slow, thing, method, ("gzip",)), False))  # noqa: B023
            threading.Thread(target=world.ask, args=(thing,), daemon=True).start()
        eventually(lambda: len(world.requests) >= 6, expected=True)
        good, large_one = world.thing("digest"), large(world, random_bytes(3 * MIB, 5))
        encoded(world, good, "gzip")
        world.script(large_one, lambda method: (answer(large_one.data, large_one, method, ()), False))
        watch = Stopwatch()
        assert_right(large_one, world.ask(large_one))
        assert_right(good, world.ask(good))
        assert watch.seconds < 3
        watch = Stopwatch()
        world.daemon.stop()
        assert watch.seconds < 4


def test_what_begins_anew_each_time_ends(own: Starter) -> None:
    """An upstream with another size each time was asked hundreds of times a second, also when its client had left."""
    with written(own, settings={"retries": "2"}) as world:
        thing = world.thing("blob")
        sizes = itertools.count(100_000)
        said = [head(200, "Content-Length: 1000", "Content-Encoding: gzip") + b"x" * 10]

        def script(method: str) -> tuple[bytes, bool]:
            return (said.pop() if said else head(200, f"Content-Length: {next(sizes)}") + b"x" * 10), True

        world.script(thing, script)
        assert world.ask(thing).status == 502
        assert len(world.requests) <= 4
