"""Whatever an upstream writes: h11 says what is well-formed, and cacheyd gives the right thing or a 502, whatever was asked.

A body that breaks is right all the same where it has the digest that was asked for.
"""

import socket
import struct
from collections.abc import Iterator

import pytest

from tests.faults.client import Reply, Stopwatch
from tests.hostile.peers import MIB, Watch
from tests.hostile.raw_answers import ROWS, Row, verdict
from tests.hostile.written import KINDS, Thing, Written, written
from tests.policy.conftest import Starter
from tests.support.certs import TestCA

QUICK = {"retries": "0"}
# Where nothing but the connection's end ends the body.
TO_THE_END = tuple(row for row in ROWS if "to the end" in row.name and "gzip" not in row.name and "identity" not in row.name)
TIMES = 50


@pytest.fixture(scope="module")
def world(shared: Starter) -> Iterator[Written]:
    with written(shared, settings=QUICK) as world:
        yield world


@pytest.fixture(scope="module")
def over_tls(shared: Starter, ca: TestCA) -> Iterator[Written]:
    with written(shared, settings=QUICK, tls=ca.server_context("127.0.0.1"), ca_file=ca.ca_file) as world:
        yield world


def write(world: Written, thing: Thing, row: Row) -> None:
    world.script(thing, lambda method: (row.answer(thing.data, thing.media_type, method), row.closes))


def assert_right(thing: Thing, reply: Reply, why: str = "") -> None:
    assert (reply.status, reply.end) == (200, "complete"), (thing.kind, reply.status, reply.body[:300], why)
    expected = thing.manifest if thing.kind == "token" else thing.data
    if thing.method == "HEAD":
        assert reply.header("Content-Length") in (None, str(len(expected)))
    else:
        assert reply.body == expected, thing.kind
    assert reply.header("Content-Encoding") is None


def assert_refused(thing: Thing, reply: Reply) -> None:
    """Or, of what has no digest and is passed on as it comes, a body that ends early, too."""
    if thing.kind == "tags" and reply.status == 200:
        assert reply.end == "fin"
    else:
        # A login that cannot be had is 503.
        right = (502, 503) if thing.kind == "token" else (502,)
        assert reply.status in right, (thing.kind, reply.status, reply.body[:300])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_h11_takes_is_right_and_all_else_is_refused(world: Written, row: Row) -> None:
    watch = Stopwatch()
    for kind in KINDS:
        thing = world.thing(kind)
        write(world, thing, row)
        # A HEAD that says too little is followed by a GET.
        said = {verdict(row, thing.data, method) for method in {thing.method, "GET"}}
        reply = world.ask(thing)
        mine = verdict(row, thing.data, thing.method)
        if mine == "right" and (thing.method == "GET" or "right" in said):
            assert said == {"right"} or thing.method == "HEAD"
            if reply.status != 200 and thing.method == "HEAD" and "cut" in said:
                continue
            assert_right(
                thing, reply, "h11 takes this answer; if cacheyd is right to refuse it, say why in the row's `stricter`"
            )
        elif mine == "refused" or not thing.verified:
            assert_refused(thing, reply)
        elif reply.status == 200:
            assert_right(thing, reply)
        else:
            assert_refused(thing, reply)
        world.assert_in_order()
    assert watch.seconds < 6


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_comes_byte_by_byte(world: Written, kind: str) -> None:
    (row,) = (row for row in ROWS if row.name == "several")
    thing = world.thing(kind)

    def slowly(method: str) -> tuple[bytes, bool]:
        return row.answer(thing.data, thing.media_type, method), False

    world.script(thing, slowly)
    world.piecemeal = True
    try:
        assert_right(thing, world.ask(thing))
    finally:
        world.piecemeal = False


@pytest.mark.parametrize("kind", ["digest", "tag", "tags", "token", "blob"])
def test_a_body_that_ends_with_the_connection_is_right_every_time(world: Written, over_tls: Written, kind: str) -> None:
    over_tls.closing = lambda connection: connection.unwrap()  # type: ignore[attr-defined]
    for one in (world, over_tls):
        for number in range(TIMES):
            thing = one.thing(kind)
            write(one, thing, TO_THE_END[number % len(TO_THE_END)])
            assert_right(thing, one.ask(thing))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.closes and verdict(row, b"x", "GET") == "right"], ids=lambda r: r.name
)
def test_tls_that_ends_without_close_notify(over_tls: Written, row: Row, kind: str) -> None:
    """RFC 9112 section 9.8: incomplete, where nothing else says where the end is. A digest does."""
    over_tls.closing = lambda connection: None
    thing = over_tls.thing(kind)
    write(over_tls, thing, row)
    reply = over_tls.ask(thing)
    if thing.verified or row not in TO_THE_END or kind == "HEAD blob":
        assert_right(thing, reply)
    else:
        assert_refused(thing, reply)
    over_tls.assert_in_order()


@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_is_no_end_of_a_body(world: Written, kind: str) -> None:
    """Also where the body would end with the connection: what came may be a part."""

    def reset(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    thing = world.thing(kind)
    half = Row(
        "half", length=False, closes=True, frame=lambda body, method: b"" if method == "HEAD" else body[: len(body) // 2]
    )
    write(world, thing, half)
    world.closing = reset
    try:
        reply = world.ask(thing)
    finally:
        world.closing = lambda connection: None
    if kind == "HEAD blob":
        assert reply.status in (200, 502)
    else:
        assert_refused(thing, reply)


@pytest.mark.parametrize("tls", [False, True])
def test_a_line_of_a_chunked_body_ends(world: Written, over_tls: Written, tls: bool) -> None:
    """A chunk's extension without end must not become memory, whatever lies below HTTP."""
    one = over_tls if tls else world
    thing = one.thing("blob")
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x="
    one.script(thing, lambda method: (start + b"y" * (40 * MIB), True))
    with Watch(one.daemon) as seen:
        reply = one.ask(thing)
    assert reply.status == 502
    assert seen.grown < 16 * MIB
