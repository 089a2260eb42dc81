"""One blob on its way in: resumed, verified, or an answer that is not the blob."""

import asyncio

import pytest

from cacheyd.cache.bodies import BodyBroken
from cacheyd.cache.flight_reader import FlightReader
from cacheyd.cache.growing import HOLD
from cacheyd.cache.recent_failures import FAILURE_PAUSE, MISMATCH_PAUSE
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.errors import Code, RequestError
from cacheyd.protocol.headers import header
from cacheyd.settings.load import load
from cacheyd.upstream.port import Relayed, UpstreamBroken
from tests.support.fetching import (
    ACCEPT,
    ALICE,
    BLOB,
    BREAK,
    BY_DIGEST,
    Reply,
    Scene,
    Script,
    blob_ref,
    landed,
    read,
    refusal,
    rest,
    until,
    whole,
)

# Resume


async def test_a_broken_body_is_resumed_where_it_broke(fetching: Scene) -> None:
    upstream = Script(
        whole(BLOB, BLOB[:100_000], BREAK),
        rest(BLOB, 100_000, BLOB[100_000:150_000], BREAK),
        rest(BLOB, 150_000),
    )
    fetcher = fetching.fetcher(upstream)

    assert await read(fetcher.flight(blob_ref(BLOB), ALICE)) == BLOB
    assert upstream.ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert all(header(request.headers, "authorization") == "Basic alice" for request in upstream.requests)


async def test_a_body_that_ends_early_is_resumed(fetching: Scene) -> None:
    upstream = Script(whole(BLOB, BLOB[:100_000]), rest(BLOB, 100_000))
    assert await read(fetching.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB
    assert upstream.ranges == [None, "bytes=100000-"]


async def test_an_upstream_that_ignores_range_sends_all_of_it_again(fetching: Scene) -> None:
    upstream = Script(whole(BLOB, BLOB[:100_000], BREAK), whole(BLOB, BLOB[:99_999], BLOB[99_999:100_001], BLOB[100_001:]))
    assert await read(fetching.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB


async def test_a_failure_to_connect_while_resuming_is_tried_again(fetching: Scene) -> None:
    upstream = Script(
        whole(BLOB, BLOB[:100_000], BREAK),
        UpstreamBroken("refused", refused=True),
        refusal(503),
        rest(BLOB, 100_000),
    )
    assert await read(fetching.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB


async def test_a_body_without_progress_is_broken(fetching: Scene) -> None:
    fetching.settings = load(environ={}, flags={"progress_timeout": "20ms"})
    upstream = Script(whole(BLOB, BLOB[:100_000], asyncio.Event()), rest(BLOB, 100_000))
    assert await read(fetching.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB


async def test_after_so_many_retries_the_clients_are_let_go(fetching: Scene) -> None:
    upstream = Script(whole(BLOB, BLOB[:100_000], BREAK), BREAK, BREAK, BREAK)
    fetcher = fetching.fetcher(upstream)
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)

    with pytest.raises(BodyBroken):
        await read(flight)

    assert len(upstream.requests) == 1 + fetching.settings.retries
    assert isinstance(flight.error, RequestError)
    assert flight.error.failure.status == 502
    assert fetching.on_disk(BLOB) is None


async def test_progress_makes_the_next_break_a_first_one(fetching: Scene) -> None:
    step = 70_000
    upstream = Script(whole(BLOB, BLOB[:step], BREAK))
    for at in range(step, len(BLOB), step):
        upstream.replies += [BREAK, BREAK, rest(BLOB, at, BLOB[at : at + step], BREAK)]
    upstream.replies[-1] = rest(BLOB, 4 * step)

    assert await read(fetching.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB


async def test_while_it_makes_no_sense_a_resuming_client_is_answered_at_once(fetching: Scene) -> None:
    fetcher = fetching.fetcher(Script(whole(BLOB, BLOB[:100_000], BREAK), BREAK, BREAK, BREAK))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)
    await flight.opened()
    assert fetcher.failures.recent(BY_DIGEST.registry, flight.digest) is None
    with pytest.raises(BodyBroken):
        await read(flight)

    failure = fetcher.failures.recent(BY_DIGEST.registry, flight.digest)
    assert failure is not None
    assert failure.failure.status == 502
    fetching.clock.now += FAILURE_PAUSE
    assert fetcher.failures.recent(BY_DIGEST.registry, flight.digest) is None


async def test_the_next_flight_goes_on_where_a_failed_one_stopped(fetching: Scene) -> None:
    upstream = Script(whole(BLOB, BLOB[:100_000], BREAK), BREAK, BREAK, BREAK, rest(BLOB, 100_000))
    fetcher = fetching.fetcher(upstream)
    with pytest.raises(BodyBroken):
        await read(fetcher.flight(blob_ref(BLOB), ACCEPT))

    assert await read(fetcher.flight(blob_ref(BLOB), ACCEPT)) == BLOB
    assert upstream.ranges[-1] == "bytes=100000-"


async def test_a_stop_leaves_what_is_there_for_the_next_process(fetching: Scene) -> None:
    fetcher = fetching.fetcher(Script(whole(BLOB, BLOB[:100_000], asyncio.Event())))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)
    await until(flight, 100_000)
    reading = asyncio.create_task(read(flight))
    await asyncio.sleep(0)
    await fetcher.stop()
    with pytest.raises(BodyBroken):
        await reading
    assert len(fetcher.flights) == 0
    assert flight.body.partial is not None
    flight.body.partial.close()  # As the end of the process does.

    upstream = Script(rest(BLOB, 100_000))
    assert await read(fetching.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB
    assert upstream.ranges == ["bytes=100000-"]


@pytest.mark.parametrize("length", [True, False])
async def test_a_fetch_goes_on_from_an_earlier_process(fetching: Scene, length: bool) -> None:
    fetching.leave_partial(BLOB, BLOB[:100_000])
    reply = rest(BLOB, 100_000)
    if not length:
        reply.headers = (("Content-Range", f"bytes 100000-{len(BLOB) - 1}/*"), ("Content-Length", str(len(BLOB) - 100_000)))
    upstream = Script(reply)

    assert await read(fetching.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB
    assert upstream.ranges == ["bytes=100000-"]


async def test_a_partial_that_is_whole_asks_nobody(fetching: Scene) -> None:
    fetching.leave_partial(BLOB, BLOB)
    fetcher = fetching.fetcher(Script())
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)

    assert await read(flight) == BLOB
    await landed(fetcher)
    assert fetching.on_disk(BLOB) == BLOB


@pytest.mark.parametrize(
    "reply",
    [
        refusal(416),
        rest(BLOB, 50_000),
        Reply(206, (("Content-Length", "200000"),), [BLOB[100_000:]]),
        Reply(206, (("Content-Range", "bytes */300000"),), [BLOB[100_000:]]),
    ],
)
async def test_what_does_not_continue_is_begun_anew(fetching: Scene, reply: Reply) -> None:
    fetching.leave_partial(BLOB, BLOB[:100_000])
    upstream = Script(Reply(reply.status, reply.headers, reply.pieces[:]), whole(BLOB))

    assert await read(fetching.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB
    assert upstream.ranges == ["bytes=100000-", None]


async def test_a_partial_longer_than_the_object_is_begun_anew(fetching: Scene) -> None:
    fetching.leave_partial(BLOB, BLOB + b"more")
    upstream = Script(refusal(416), whole(BLOB))
    assert await read(fetching.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB


@pytest.mark.parametrize("reply", [refusal(416), rest(BLOB, 50_000), rest(BLOB + b"x", 100_000), whole(BLOB[:200_000])])
async def test_what_does_not_continue_what_clients_have_is_given_up(fetching: Scene, reply: Reply) -> None:
    fetcher = fetching.fetcher(Script(whole(BLOB, BLOB[:100_000], BREAK), Reply(reply.status, reply.headers, reply.pieces[:])))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)

    with pytest.raises(BodyBroken):
        await read(flight)
    assert fetcher.failures.recent(BY_DIGEST.registry, flight.digest) is not None
    assert list((fetching.store.root / "partial").iterdir()) == []


async def test_rubbish_left_by_an_earlier_process_does_no_lasting_harm(fetching: Scene) -> None:
    fetching.leave_partial(BLOB, b"rubbish" * 1000)
    fetcher = fetching.fetcher(Script(rest(BLOB, 7000), whole(BLOB)))
    with pytest.raises(BodyBroken):
        await read(fetcher.flight(blob_ref(BLOB), ACCEPT))
    fetching.clock.now += MISMATCH_PAUSE

    assert await read(fetcher.flight(blob_ref(BLOB), ACCEPT)) == BLOB


# Wrong bytes


@pytest.mark.parametrize("wrong", [BLOB[:-1] + bytes([BLOB[-1] ^ 1]), b"\x00" + BLOB[1:], BLOB + b"extra", bytes(len(BLOB))])
async def test_nobody_gets_a_complete_wrong_blob_and_it_is_not_kept(fetching: Scene, wrong: bytes) -> None:
    fetcher = fetching.fetcher(Script(whole(BLOB, wrong)))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)
    await flight.opened()
    reader = FlightReader(flight, 0, flight.size)

    received = 0
    broken = False
    while not broken:
        try:
            piece = await reader.read()
        except BodyBroken:
            broken = True
        else:
            assert piece, "a clean end"
            received += len(piece)

    assert received <= len(BLOB) - HOLD
    assert isinstance(flight.error, RequestError)
    assert (flight.error.failure.status, flight.error.failure.code) == (502, Code.DIGEST_INVALID)
    assert fetching.mismatches == ["reg.example"]
    assert fetching.on_disk(BLOB) is None
    assert list((fetching.store.root / "partial").iterdir()) == []


async def test_a_body_that_runs_past_its_length_is_not_written_without_end(fetching: Scene) -> None:
    endless = Reply(200, (("Content-Length", str(len(BLOB))),), [BLOB] * 100)
    fetcher = fetching.fetcher(Script(endless))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)
    with pytest.raises(RequestError):
        await flight.settled(5)

    assert flight.received <= 3 * len(BLOB)


async def test_after_wrong_bytes_upstream_is_left_alone_for_a_while(fetching: Scene) -> None:
    fetcher = fetching.fetcher(Script(whole(BLOB, bytes(len(BLOB))), whole(BLOB)))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)
    await flight.opened()
    with pytest.raises(RequestError):
        await flight.settled(5)

    fetching.clock.now += MISMATCH_PAUSE - 1
    assert fetcher.failures.recent(BY_DIGEST.registry, flight.digest) is not None
    fetching.clock.now += 1
    assert fetcher.failures.recent(BY_DIGEST.registry, flight.digest) is None
    assert await read(fetcher.flight(blob_ref(BLOB), ACCEPT)) == BLOB


async def test_a_small_wrong_blob_fails_before_a_byte_of_it_is_readable(fetching: Scene) -> None:
    fetcher = fetching.fetcher(Script(whole(b"right", b"wrong")))
    flight = fetcher.flight(blob_ref(b"right"), ACCEPT)
    with pytest.raises(RequestError):
        await flight.settled(5)
    assert flight.body.readable == 0


# Answers that are not the blob


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418, 500, 503])
async def test_an_error_of_upstream_is_relayed_as_it_is(fetching: Scene, status: int) -> None:
    challenge = ("WWW-Authenticate", 'Bearer realm="https://auth.example/token"')
    fetcher = fetching.fetcher(Script(refusal(status, challenge, ("Connection", "X-Hop"), ("X-Hop", "1"), body=b"no")))

    with pytest.raises(Relayed) as caught:
        await fetcher.flight(blob_ref(BLOB), ACCEPT).opened()

    relay = caught.value.relay
    assert (relay.status, relay.body) == (status, b"no")
    assert challenge in relay.headers
    assert header(relay.headers, "connection") is None
    assert header(relay.headers, "x-hop") is None
    assert fetcher.failures.recent(BY_DIGEST.registry, digest_of(BLOB)) is None
    assert len(fetcher.flights) == 0


@pytest.mark.parametrize("status", [204, 206, 301, 304])
async def test_an_answer_that_makes_no_sense_is_a_bad_gateway(fetching: Scene, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        await fetching.fetcher(Script(Reply(status))).flight(blob_ref(BLOB), ACCEPT).opened()
    assert caught.value.failure.status == 502


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UpstreamBroken("reset"), 502),
        (UpstreamBroken("no answer", timeout=True), 504),
        (UpstreamBroken("not allowed", refused=True), 503),
    ],
)
async def test_an_upstream_that_cannot_be_had(fetching: Scene, error: UpstreamBroken, status: int) -> None:
    fetcher = fetching.fetcher(Script(error))
    with pytest.raises(RequestError) as caught:
        await fetcher.flight(blob_ref(BLOB), ACCEPT).opened()

    assert caught.value.failure.status == status
    assert fetcher.failures.recent(BY_DIGEST.registry, digest_of(BLOB)) is None, (
        "nobody has any of it: the next request may try at once"
    )


async def test_an_error_body_that_is_too_large_or_breaks_is_left_out(fetching: Scene) -> None:
    fetcher = fetching.fetcher(Script(Reply(500, (), [b"x" * 1_000_000] * 3), Reply(500, (), [b"x", BREAK])))
    for _ in range(2):
        with pytest.raises(Relayed) as caught:
            await fetcher.flight(blob_ref(BLOB), ACCEPT).opened()
        assert caught.value.relay.body == b""


async def test_an_error_that_nobody_thought_of_ends_the_flight(fetching: Scene) -> None:
    reply = whole(BLOB)
    reply.headers = None  # type: ignore[assignment]
    fetcher = fetching.fetcher(Script(reply))
    with pytest.raises(RequestError) as caught:
        await fetcher.flight(blob_ref(BLOB), ACCEPT).opened()
    assert caught.value.failure.status == 502
    assert len(fetcher.flights) == 0
