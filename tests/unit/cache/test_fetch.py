"""Fetches against a scripted upstream and a real store: once for all, resumed, verified, kept."""

import asyncio
import base64
import gc
import gzip
import json
import os
import random
import resource
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cacheyd.cache.bodies import BodyBroken
from cacheyd.cache.fetch import FAILURE_PAUSE, MANIFEST_MAX, MANIFESTS_MAX, MISMATCH_PAUSE, Fetcher, ManifestContent
from cacheyd.cache.flight import HOLD, Flight, FlightReader, NotKept
from cacheyd.cache.requester import credentials_of
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.errors import Code, RequestError
from cacheyd.protocol.headers import HeaderList, content_length, end_to_end, header
from cacheyd.protocol.media_types import OCI_INDEX, OCI_MANIFEST, SCHEMA_1_SIGNED
from cacheyd.protocol.reference import Reference
from cacheyd.protocol.targets import parse_target
from cacheyd.settings.load import load
from cacheyd.settings.settings import Settings
from cacheyd.store.mapped import Mapped
from cacheyd.store.objects import SMALL
from cacheyd.store.store import Store
from cacheyd.upstream.port import Relayed, UpstreamBroken, UpstreamRequest
from cacheyd.upstream.ratelimit import RATE_LIMIT_DEFAULT, RATE_LIMIT_MAX, retry_after
from tests.support.stores import Clock, eventually

BLOB = random.Random(1).randbytes(300_000)
BREAK = UpstreamBroken("connection reset")
ACCEPT: HeaderList = (("Accept", "*/*"),)
ALICE: HeaderList = (*ACCEPT, ("Authorization", "Basic alice"))
BOB: HeaderList = (*ACCEPT, ("Authorization", "Basic bob"))
MANIFEST = b'{"schemaVersion": 2, "config": {}, "layers": []}'


# A scripted upstream


@dataclass
class Reply:
    """A response: pieces of its body are bytes, waits, and failures."""

    status: int = 200
    headers: HeaderList = ()
    pieces: list[bytes | asyncio.Event | UpstreamBroken] = field(default_factory=list)
    closed: bool = False
    elsewhere: bool = False

    async def read(self) -> list[bytes]:
        while self.pieces:
            piece = self.pieces.pop(0)
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            elif isinstance(piece, UpstreamBroken):
                raise piece
            elif piece:
                return [piece]
        return []

    def close(self) -> None:
        self.closed = True


class Script:
    """Gives the replies in their order, whatever is asked."""

    def __init__(self, *replies: Reply | UpstreamBroken) -> None:
        self.replies = list(replies)
        self.requests: list[UpstreamRequest] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def open(self, request: UpstreamRequest) -> Reply:
        self.requests.append(request)
        await asyncio.sleep(0)
        await self.gate.wait()
        assert self.replies, f"nobody expected request {len(self.requests)}: {request}"
        reply = self.replies.pop(0)
        if isinstance(reply, UpstreamBroken):
            raise reply
        return reply

    @property
    def ranges(self) -> list[str | None]:
        return [header(request.headers, "range") for request in self.requests]


def whole(data: bytes, *pieces: bytes | asyncio.Event | UpstreamBroken, length: bool = True) -> Reply:
    """200 with all of `data`, or with `pieces` where those are given."""
    stated = (("Content-Length", str(len(data))),) if length else ()
    return Reply(200, stated, list(pieces or [data]))


def rest(data: bytes, start: int, *pieces: bytes | asyncio.Event | UpstreamBroken) -> Reply:
    """206 from `start`."""
    headers = (
        ("Content-Length", str(len(data) - start)),
        ("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}"),
    )
    return Reply(206, headers, list(pieces or [data[start:]]))


def refusal(status: int, *headers: tuple[str, str], body: bytes = b'{"errors": []}') -> Reply:
    return Reply(status, (("Content-Length", str(len(body))), *headers), [body])


# The rest of the scene


class Scene:
    """A fetcher with its store, upstream and clock."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self.clock = Clock()
        self.mismatches: list[str] = []

    def fetcher(self, upstream: Script) -> Fetcher:
        return Fetcher(
            self.store,
            upstream,
            self.settings,
            clock=self.clock,
            monotonic=self.clock,
            on_verify_failure=self.mismatches.append,
        )

    def on_disk(self, data: bytes) -> bytes | None:
        stored = self.store.find(digest_of(data))
        body = self.store.body(stored) if stored else None
        return bytes(body.view(0, body.size)) if isinstance(body, Mapped) else body

    def leave_partial(self, data: bytes, content: bytes) -> None:
        """What an earlier process left of `data`."""
        self.store.partials.directory.open(digest_of(data), BY_DIGEST.registry).path.write_bytes(content)


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    # The wait before a resume is as short as its jitter allows.
    monkeypatch.setattr("cacheyd.cache.fetch.random.uniform", lambda low, high: 0.0)
    store = Store(tmp_path / "cache")
    await store.start()
    yield Scene(store, load(environ={}, flags={"retries": "3", "progress_timeout": "5s"}))
    await store.stop()


def blob_ref(data: bytes, algorithm: str = "sha256") -> Reference:
    return reference(f"blobs/{digest_of(data, algorithm)}")


def reference(tail: str) -> Reference:
    ref = parse_target(f"/v2/lab/img/{tail}?ns=reg.example")
    assert isinstance(ref, Reference)
    return ref


async def read(flight: Flight, start: int = 0) -> bytes:
    """What a client that joins the flight gets."""
    await flight.opened()
    reader = FlightReader(flight, start, flight.size)
    data = bytearray()
    while piece := await reader.read():
        data += piece
    reader.close()
    return bytes(data)


async def landed(fetcher: Fetcher) -> None:
    """Waits for the disk: clients have the whole object a moment earlier."""
    async with asyncio.timeout(5):
        while len(fetcher.flights):
            await asyncio.sleep(0.001)


async def until(flight: Flight, received: int) -> None:
    async with asyncio.timeout(5):
        while flight.received < received:
            await flight.changed()


# Blobs


async def test_a_blob_is_fetched_once_for_all_and_kept(scene: Scene) -> None:
    upstream = Script(whole(BLOB, *[BLOB[i : i + 50_000] for i in range(0, len(BLOB), 50_000)]))
    fetcher = scene.fetcher(upstream)

    bodies = await asyncio.gather(*(read(fetcher.flight(blob_ref(BLOB), ACCEPT), start) for start in (0, 5, 299_999)))

    assert bodies == [BLOB, BLOB[5:], BLOB[299_999:]]
    assert upstream.requests == [UpstreamRequest(blob_ref(BLOB), "GET", ACCEPT)]
    await landed(fetcher)
    assert scene.on_disk(BLOB) == BLOB


async def test_who_comes_late_joins_the_same_flight(scene: Scene) -> None:
    more = asyncio.Event()
    upstream = Script(whole(BLOB, BLOB[:200_000], more, BLOB[200_000:]))
    fetcher = scene.fetcher(upstream)
    first = fetcher.flight(blob_ref(BLOB), ACCEPT)
    await until(first, 200_000)

    late = fetcher.flight(blob_ref(BLOB), BOB)
    assert late is first
    reading = asyncio.create_task(read(late))
    more.set()

    assert await reading == BLOB
    assert len(upstream.requests) == 1


async def test_a_flight_needs_no_client_to_complete(scene: Scene) -> None:
    fetcher = scene.fetcher(Script(whole(BLOB)))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)
    reading = asyncio.create_task(read(flight))
    await asyncio.sleep(0)
    reading.cancel()

    await landed(fetcher)
    assert scene.on_disk(BLOB) == BLOB


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("data", [b"", b"small", BLOB])
async def test_blobs_of_any_size(scene: Scene, data: bytes, algorithm: str) -> None:
    fetcher = scene.fetcher(Script(whole(data)))
    flight = fetcher.flight(blob_ref(data, algorithm), ACCEPT)
    assert await read(flight) == data
    await landed(fetcher)
    assert scene.store.find(digest_of(data, algorithm)) is not None


async def test_the_length_may_be_unknown_until_the_end(scene: Scene) -> None:
    fetcher = scene.fetcher(Script(whole(BLOB, length=False)))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)

    assert await read(flight) == BLOB
    assert flight.size == len(BLOB)


async def test_responses_are_closed(scene: Scene) -> None:
    reply, missing = whole(BLOB), refusal(404)
    fetcher = scene.fetcher(Script(reply, missing))
    await read(fetcher.flight(blob_ref(BLOB), ACCEPT))
    with pytest.raises(Relayed):
        await fetcher.flight(blob_ref(b"other"), ACCEPT).opened()

    assert reply.closed
    assert missing.closed


def open_files(folder: Path) -> list[str]:
    """The files below `folder` that this process has open, wherever they were moved or removed to."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(os.readlink(descriptor))
    return [path for path in found if path.startswith(f"{folder}/")]


async def test_no_descriptor_stays_open(scene: Scene) -> None:
    async def fetch(n: int) -> None:
        data = random.Random(n).randbytes(HOLD + n)
        fetcher = scene.fetcher(Script(whole(data)))
        flight = fetcher.flight(blob_ref(data), ACCEPT)
        assert await read(flight) == data
        await landed(fetcher)

    for n in range(6):
        await fetch(n)
    gc.collect()
    # Of this store's files only: what tests before this one left to the collector comes and goes.
    assert open_files(scene.store.root / "partial") + open_files(scene.store.root / "blobs") == []


# Resume


async def test_a_broken_body_is_resumed_where_it_broke(scene: Scene) -> None:
    upstream = Script(
        whole(BLOB, BLOB[:100_000], BREAK),
        rest(BLOB, 100_000, BLOB[100_000:150_000], BREAK),
        rest(BLOB, 150_000),
    )
    fetcher = scene.fetcher(upstream)

    assert await read(fetcher.flight(blob_ref(BLOB), ALICE)) == BLOB
    assert upstream.ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert all(header(request.headers, "authorization") == "Basic alice" for request in upstream.requests)


async def test_a_body_that_ends_early_is_resumed(scene: Scene) -> None:
    upstream = Script(whole(BLOB, BLOB[:100_000]), rest(BLOB, 100_000))
    assert await read(scene.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB
    assert upstream.ranges == [None, "bytes=100000-"]


async def test_an_upstream_that_ignores_range_sends_all_of_it_again(scene: Scene) -> None:
    upstream = Script(whole(BLOB, BLOB[:100_000], BREAK), whole(BLOB, BLOB[:99_999], BLOB[99_999:100_001], BLOB[100_001:]))
    assert await read(scene.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB


async def test_a_failure_to_connect_while_resuming_is_tried_again(scene: Scene) -> None:
    upstream = Script(
        whole(BLOB, BLOB[:100_000], BREAK),
        UpstreamBroken("refused", refused=True),
        refusal(503),
        rest(BLOB, 100_000),
    )
    assert await read(scene.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB


async def test_a_body_without_progress_is_broken(scene: Scene) -> None:
    scene.settings = load(environ={}, flags={"progress_timeout": "20ms"})
    upstream = Script(whole(BLOB, BLOB[:100_000], asyncio.Event()), rest(BLOB, 100_000))
    assert await read(scene.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB


async def test_after_so_many_retries_the_clients_are_let_go(scene: Scene) -> None:
    upstream = Script(whole(BLOB, BLOB[:100_000], BREAK), BREAK, BREAK, BREAK)
    fetcher = scene.fetcher(upstream)
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)

    with pytest.raises(BodyBroken):
        await read(flight)

    assert len(upstream.requests) == 1 + scene.settings.retries
    assert isinstance(flight.error, RequestError)
    assert flight.error.failure.status == 502
    assert scene.on_disk(BLOB) is None


async def test_progress_makes_the_next_break_a_first_one(scene: Scene) -> None:
    step = 70_000
    upstream = Script(whole(BLOB, BLOB[:step], BREAK))
    for at in range(step, len(BLOB), step):
        upstream.replies += [BREAK, BREAK, rest(BLOB, at, BLOB[at : at + step], BREAK)]
    upstream.replies[-1] = rest(BLOB, 4 * step)

    assert await read(scene.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB


async def test_while_it_makes_no_sense_a_resuming_client_is_answered_at_once(scene: Scene) -> None:
    fetcher = scene.fetcher(Script(whole(BLOB, BLOB[:100_000], BREAK), BREAK, BREAK, BREAK))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)
    await flight.opened()
    assert fetcher.recent_failure(BY_DIGEST.registry, flight.digest) is None
    with pytest.raises(BodyBroken):
        await read(flight)

    failure = fetcher.recent_failure(BY_DIGEST.registry, flight.digest)
    assert failure is not None
    assert failure.failure.status == 502
    scene.clock.now += FAILURE_PAUSE
    assert fetcher.recent_failure(BY_DIGEST.registry, flight.digest) is None


async def test_the_next_flight_goes_on_where_a_failed_one_stopped(scene: Scene) -> None:
    upstream = Script(whole(BLOB, BLOB[:100_000], BREAK), BREAK, BREAK, BREAK, rest(BLOB, 100_000))
    fetcher = scene.fetcher(upstream)
    with pytest.raises(BodyBroken):
        await read(fetcher.flight(blob_ref(BLOB), ACCEPT))

    assert await read(fetcher.flight(blob_ref(BLOB), ACCEPT)) == BLOB
    assert upstream.ranges[-1] == "bytes=100000-"


async def test_a_stop_leaves_what_is_there_for_the_next_process(scene: Scene) -> None:
    fetcher = scene.fetcher(Script(whole(BLOB, BLOB[:100_000], asyncio.Event())))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)
    await until(flight, 100_000)
    reading = asyncio.create_task(read(flight))
    await asyncio.sleep(0)
    await fetcher.stop()
    with pytest.raises(BodyBroken):
        await reading
    assert len(fetcher.flights) == 0
    assert flight.partial is not None
    flight.partial.close()  # As the end of the process does.

    upstream = Script(rest(BLOB, 100_000))
    assert await read(scene.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB
    assert upstream.ranges == ["bytes=100000-"]


@pytest.mark.parametrize("length", [True, False])
async def test_a_fetch_goes_on_from_an_earlier_process(scene: Scene, length: bool) -> None:
    scene.leave_partial(BLOB, BLOB[:100_000])
    reply = rest(BLOB, 100_000)
    if not length:
        reply.headers = (("Content-Range", f"bytes 100000-{len(BLOB) - 1}/*"), ("Content-Length", str(len(BLOB) - 100_000)))
    upstream = Script(reply)

    assert await read(scene.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB
    assert upstream.ranges == ["bytes=100000-"]


async def test_a_partial_that_is_whole_asks_nobody(scene: Scene) -> None:
    scene.leave_partial(BLOB, BLOB)
    fetcher = scene.fetcher(Script())
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)

    assert await read(flight) == BLOB
    await landed(fetcher)
    assert scene.on_disk(BLOB) == BLOB


@pytest.mark.parametrize(
    "reply",
    [
        refusal(416),
        rest(BLOB, 50_000),
        Reply(206, (("Content-Length", "200000"),), [BLOB[100_000:]]),
        Reply(206, (("Content-Range", "bytes */300000"),), [BLOB[100_000:]]),
    ],
)
async def test_what_does_not_continue_is_begun_anew(scene: Scene, reply: Reply) -> None:
    scene.leave_partial(BLOB, BLOB[:100_000])
    upstream = Script(Reply(reply.status, reply.headers, reply.pieces[:]), whole(BLOB))

    assert await read(scene.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB
    assert upstream.ranges == ["bytes=100000-", None]


async def test_a_partial_longer_than_the_object_is_begun_anew(scene: Scene) -> None:
    scene.leave_partial(BLOB, BLOB + b"more")
    upstream = Script(refusal(416), whole(BLOB))
    assert await read(scene.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB


@pytest.mark.parametrize("reply", [refusal(416), rest(BLOB, 50_000), rest(BLOB + b"x", 100_000), whole(BLOB[:200_000])])
async def test_what_does_not_continue_what_clients_have_is_given_up(scene: Scene, reply: Reply) -> None:
    fetcher = scene.fetcher(Script(whole(BLOB, BLOB[:100_000], BREAK), Reply(reply.status, reply.headers, reply.pieces[:])))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)

    with pytest.raises(BodyBroken):
        await read(flight)
    assert fetcher.recent_failure(BY_DIGEST.registry, flight.digest) is not None
    assert list((scene.store.root / "partial").iterdir()) == []


async def test_rubbish_left_by_an_earlier_process_does_no_lasting_harm(scene: Scene) -> None:
    scene.leave_partial(BLOB, b"rubbish" * 1000)
    fetcher = scene.fetcher(Script(rest(BLOB, 7000), whole(BLOB)))
    with pytest.raises(BodyBroken):
        await read(fetcher.flight(blob_ref(BLOB), ACCEPT))
    scene.clock.now += MISMATCH_PAUSE

    assert await read(fetcher.flight(blob_ref(BLOB), ACCEPT)) == BLOB


# Wrong bytes


@pytest.mark.parametrize("wrong", [BLOB[:-1] + bytes([BLOB[-1] ^ 1]), b"\x00" + BLOB[1:], BLOB + b"extra", bytes(len(BLOB))])
async def test_nobody_gets_a_complete_wrong_blob_and_it_is_not_kept(scene: Scene, wrong: bytes) -> None:
    fetcher = scene.fetcher(Script(whole(BLOB, wrong)))
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
    assert scene.mismatches == ["reg.example"]
    assert scene.on_disk(BLOB) is None
    assert list((scene.store.root / "partial").iterdir()) == []


async def test_a_body_that_runs_past_its_length_is_not_written_without_end(scene: Scene) -> None:
    endless = Reply(200, (("Content-Length", str(len(BLOB))),), [BLOB] * 100)
    fetcher = scene.fetcher(Script(endless))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)
    with pytest.raises(RequestError):
        await flight.settled(5)

    assert flight.received <= 3 * len(BLOB)


async def test_after_wrong_bytes_upstream_is_left_alone_for_a_while(scene: Scene) -> None:
    fetcher = scene.fetcher(Script(whole(BLOB, bytes(len(BLOB))), whole(BLOB)))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)
    await flight.opened()
    with pytest.raises(RequestError):
        await flight.settled(5)

    scene.clock.now += MISMATCH_PAUSE - 1
    assert fetcher.recent_failure(BY_DIGEST.registry, flight.digest) is not None
    scene.clock.now += 1
    assert fetcher.recent_failure(BY_DIGEST.registry, flight.digest) is None
    assert await read(fetcher.flight(blob_ref(BLOB), ACCEPT)) == BLOB


async def test_a_small_wrong_blob_fails_before_a_byte_of_it_is_readable(scene: Scene) -> None:
    fetcher = scene.fetcher(Script(whole(b"right", b"wrong")))
    flight = fetcher.flight(blob_ref(b"right"), ACCEPT)
    with pytest.raises(RequestError):
        await flight.settled(5)
    assert flight.readable == 0


# Answers that are not the blob


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418, 500, 503])
async def test_an_error_of_upstream_is_relayed_as_it_is(scene: Scene, status: int) -> None:
    challenge = ("WWW-Authenticate", 'Bearer realm="https://auth.example/token"')
    fetcher = scene.fetcher(Script(refusal(status, challenge, ("Connection", "X-Hop"), ("X-Hop", "1"), body=b"no")))

    with pytest.raises(Relayed) as caught:
        await fetcher.flight(blob_ref(BLOB), ACCEPT).opened()

    relay = caught.value.relay
    assert (relay.status, relay.body) == (status, b"no")
    assert challenge in relay.headers
    assert header(relay.headers, "connection") is None
    assert header(relay.headers, "x-hop") is None
    assert fetcher.recent_failure(BY_DIGEST.registry, digest_of(BLOB)) is None
    assert len(fetcher.flights) == 0


@pytest.mark.parametrize("status", [204, 206, 301, 304])
async def test_an_answer_that_makes_no_sense_is_a_bad_gateway(scene: Scene, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        await scene.fetcher(Script(Reply(status))).flight(blob_ref(BLOB), ACCEPT).opened()
    assert caught.value.failure.status == 502


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UpstreamBroken("reset"), 502),
        (UpstreamBroken("no answer", timeout=True), 504),
        (UpstreamBroken("not allowed", refused=True), 503),
    ],
)
async def test_an_upstream_that_cannot_be_had(scene: Scene, error: UpstreamBroken, status: int) -> None:
    fetcher = scene.fetcher(Script(error))
    with pytest.raises(RequestError) as caught:
        await fetcher.flight(blob_ref(BLOB), ACCEPT).opened()

    assert caught.value.failure.status == status
    assert fetcher.recent_failure(BY_DIGEST.registry, digest_of(BLOB)) is None, (
        "nobody has any of it: the next request may try at once"
    )


async def test_an_error_body_that_is_too_large_or_breaks_is_left_out(scene: Scene) -> None:
    fetcher = scene.fetcher(Script(Reply(500, (), [b"x" * 1_000_000] * 3), Reply(500, (), [b"x", BREAK])))
    for _ in range(2):
        with pytest.raises(Relayed) as caught:
            await fetcher.flight(blob_ref(BLOB), ACCEPT).opened()
        assert caught.value.relay.body == b""


async def test_an_error_that_nobody_thought_of_ends_the_flight(scene: Scene) -> None:
    reply = whole(BLOB)
    reply.headers = None  # type: ignore[assignment]
    fetcher = scene.fetcher(Script(reply))
    with pytest.raises(RequestError) as caught:
        await fetcher.flight(blob_ref(BLOB), ACCEPT).opened()
    assert caught.value.failure.status == 502
    assert len(fetcher.flights) == 0


# Rate limits


async def test_a_rate_limit_is_remembered_until_its_retry_after(scene: Scene) -> None:
    upstream = Script(refusal(429, ("Retry-After", "60"), ("ratelimit-remaining", "0;w=21600")), whole(BLOB))
    fetcher = scene.fetcher(upstream)

    for _ in range(6):
        with pytest.raises(Relayed) as caught:
            await fetcher.open(reference("manifests/1"), "HEAD", ALICE)
        assert caught.value.relay.status == 429
        assert header(caught.value.relay.headers, "retry-after") == "60"
    assert len(upstream.requests) == 1

    scene.clock.now += 59.9
    with pytest.raises(Relayed):
        await fetcher.flight(blob_ref(BLOB), ALICE).opened()
    scene.clock.now += 0.1
    assert await read(fetcher.flight(blob_ref(BLOB), ALICE)) == BLOB


async def test_a_rate_limit_is_one_clients_own(scene: Scene) -> None:
    upstream = Script(refusal(429, ("Retry-After", "60")), refusal(404), refusal(404), refusal(404))
    fetcher = scene.fetcher(upstream)
    with pytest.raises(Relayed):
        await fetcher.open(reference("manifests/1"), "HEAD", ALICE)

    assert (await fetcher.open(reference("manifests/1"), "HEAD", BOB)).status == 404
    assert (await fetcher.open(reference("manifests/1"), "HEAD", ACCEPT)).status == 404
    elsewhere = parse_target("/v2/lab/img/manifests/1?ns=other.example")
    assert isinstance(elsewhere, Reference)
    assert (await fetcher.open(elsewhere, "HEAD", ALICE)).status == 404


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, RATE_LIMIT_DEFAULT),
        ("0", 0.0),
        ("30", 30.0),
        (" 30 ", 30.0),
        ("86400", RATE_LIMIT_MAX),
        ("-1", RATE_LIMIT_DEFAULT),
        ("1.5", RATE_LIMIT_DEFAULT),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("9" * 30, RATE_LIMIT_DEFAULT),
    ],
)
def test_how_long_a_rate_limit_lasts(value: str | None, seconds: float) -> None:
    assert retry_after(() if value is None else (("Retry-After", value),)) == seconds


async def test_a_rate_limit_in_the_middle_of_a_flight_is_waited_for(scene: Scene) -> None:
    upstream = Script(whole(BLOB, BLOB[:100_000], BREAK), refusal(429, ("Retry-After", "0")), rest(BLOB, 100_000))
    assert await read(scene.fetcher(upstream).flight(blob_ref(BLOB), ACCEPT)) == BLOB


# How many at once


async def test_more_flights_than_allowed_wait_their_turn(scene: Scene) -> None:
    scene.settings = load(environ={}, flags={"max_flights": "1"})
    more = asyncio.Event()
    upstream = Script(whole(BLOB, BLOB[:100_000], more, BLOB[100_000:]), whole(b"small"))
    fetcher = scene.fetcher(upstream)
    first, second = fetcher.flight(blob_ref(BLOB), ACCEPT), fetcher.flight(blob_ref(b"small"), ACCEPT)
    await until(first, 100_000)
    assert len(upstream.requests) == 1
    assert fetcher.in_flight() == {first.digest, second.digest}

    more.set()
    assert [await read(first), await read(second)] == [BLOB, b"small"]


async def test_what_is_on_its_way_in_is_left_alone_until_its_flight_has_ended(scene: Scene) -> None:
    more = asyncio.Event()
    fetcher = scene.fetcher(Script(whole(BLOB, BLOB[:100_000], more, BLOB[100_000:])))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)
    expected = scene.store.partials.reservations.expected
    assert set(expected()) == {flight.digest}, "before the fetch has begun"
    await until(flight, 100_000)
    assert set(expected()) == {flight.digest}

    more.set()
    assert await read(flight) == BLOB
    await eventually(lambda: not expected())


async def test_who_waits_for_too_long_is_sent_on(scene: Scene) -> None:
    scene.settings = load(environ={}, flags={"max_flights": "1", "head_timeout": "20ms"})
    more = asyncio.Event()
    fetcher = scene.fetcher(Script(whole(BLOB, BLOB[:100_000], more, BLOB[100_000:]), whole(b"small")))
    first = fetcher.flight(blob_ref(BLOB), ACCEPT)
    with pytest.raises(RequestError) as caught:
        await fetcher.flight(blob_ref(b"small"), ACCEPT).opened()
    assert caught.value.failure.status == 503

    more.set()
    assert await read(first) == BLOB
    await landed(fetcher)
    assert await read(fetcher.flight(blob_ref(b"small"), ACCEPT)) == b"small"


# What cannot be kept


async def test_a_blob_that_does_not_fit_is_not_kept(scene: Scene) -> None:
    huge = Reply(200, (("Content-Length", str(10**17)),), [b"x"])
    fetcher = scene.fetcher(Script(huge))
    with pytest.raises(NotKept):
        await fetcher.flight(blob_ref(BLOB), ACCEPT).opened()
    assert huge.closed
    assert len(fetcher.flights) == 0


async def test_while_the_disk_refuses_upstream_is_not_asked_for_it(scene: Scene) -> None:
    scene.store.report_write_error(OSError(28, "No space left on device"))
    with pytest.raises(NotKept):
        await scene.fetcher(Script()).flight(blob_ref(BLOB), ACCEPT).opened()


async def test_a_partial_that_cannot_be_opened(scene: Scene) -> None:
    shutil.rmtree(scene.store.root / "partial")
    (scene.store.root / "partial").touch()
    with pytest.raises(NotKept):
        await scene.fetcher(Script()).flight(blob_ref(BLOB), ACCEPT).opened()
    assert not scene.store.writable


@pytest.fixture
def _small_files_only() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_small_files_only")
async def test_a_disk_that_refuses_in_the_middle_breaks_the_clients_off(scene: Scene) -> None:
    fetcher = scene.fetcher(Script(whole(BLOB, BLOB[:100_000], BLOB[100_000:])))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)

    with pytest.raises(BodyBroken):
        await read(flight)

    assert isinstance(flight.error, NotKept)
    assert not scene.store.writable
    assert fetcher.resume_refused(BY_DIGEST.registry, flight.digest, 1000), "what the client has was not verified"
    assert fetcher.resume_refused(BY_DIGEST.registry, flight.digest, 0) is None
    assert scene.on_disk(BLOB) is None


@pytest.mark.parametrize("wiped", ["", "partial"])
async def test_a_wipe_in_the_middle_is_not_seen_by_the_clients(scene: Scene, wiped: str) -> None:
    more = asyncio.Event()
    fetcher = scene.fetcher(Script(whole(BLOB, BLOB[:100_000], more, BLOB[100_000:])))
    flight = fetcher.flight(blob_ref(BLOB), ACCEPT)
    await until(flight, 100_000)
    shutil.rmtree(scene.store.root / wiped)
    more.set()

    assert await read(flight) == BLOB
    await landed(fetcher)
    assert scene.on_disk(BLOB) is None
    assert scene.store.writable


# Manifests


def manifest_reply(data: bytes = MANIFEST, *headers: tuple[str, str]) -> Reply:
    return Reply(200, (("Content-Type", OCI_MANIFEST), ("Content-Length", str(len(data))), *headers), [data])


BY_TAG = reference("manifests/1.0")
BY_DIGEST = reference(f"manifests/{digest_of(MANIFEST)}")
ASKED = frozenset({OCI_MANIFEST})


@pytest.mark.parametrize("ref", [BY_TAG, BY_DIGEST])
async def test_a_manifest_is_fetched_once_verified_and_kept(scene: Scene, ref: Reference) -> None:
    upstream = Script(manifest_reply())
    fetcher = scene.fetcher(upstream)

    found = await asyncio.gather(*(fetcher.manifest(ref, ACCEPT, ASKED) for _ in range(10)))

    assert found == [ManifestContent(digest_of(MANIFEST), OCI_MANIFEST, MANIFEST, True)] * 10
    assert len(upstream.requests) == 1
    stored = scene.store.find(digest_of(MANIFEST))
    assert stored is not None
    assert stored.media_type == OCI_MANIFEST


async def test_who_asks_for_other_types_by_tag_is_asked_for_apart(scene: Scene) -> None:
    upstream = Script(manifest_reply(), manifest_reply())
    fetcher = scene.fetcher(upstream)
    await asyncio.gather(fetcher.manifest(BY_TAG, ACCEPT, ASKED), fetcher.manifest(BY_TAG, ACCEPT, frozenset({OCI_INDEX})))
    assert len(upstream.requests) == 2


async def test_by_digest_the_types_do_not_matter(scene: Scene) -> None:
    upstream = Script(manifest_reply())
    fetcher = scene.fetcher(upstream)
    await asyncio.gather(
        fetcher.manifest(BY_DIGEST, ACCEPT, ASKED), fetcher.manifest(BY_DIGEST, ACCEPT, frozenset({OCI_INDEX}))
    )
    assert len(upstream.requests) == 1


async def test_a_later_request_asks_again(scene: Scene) -> None:
    upstream = Script(manifest_reply(), manifest_reply())
    fetcher = scene.fetcher(upstream)
    await fetcher.manifest(BY_TAG, ACCEPT, ASKED)
    await fetcher.manifest(BY_TAG, ACCEPT, ASKED)
    assert len(upstream.requests) == 2


async def test_parameters_of_the_media_type_are_dropped(scene: Scene) -> None:
    """Of what is no manifest by its bytes: those that are have their own type."""
    reply = Reply(200, (("Content-Type", "application/vnd.acme.thing+json; charset=utf-8"),), [b"{}"])
    assert (await scene.fetcher(Script(reply)).manifest(BY_TAG, ACCEPT, ASKED)).media_type == "application/vnd.acme.thing+json"


SIGNED_PAYLOAD = b'{\n   "schemaVersion": 1,\n   "name": "acme/app"\n}'


def signed() -> bytes:
    """As registries send manifests of the first schema: the payload with the signatures before its last brace."""
    tail = base64.urlsafe_b64encode(b"\n}").rstrip(b"=").decode()
    length = len(SIGNED_PAYLOAD) - 2
    protected = base64.urlsafe_b64encode(json.dumps({"formatLength": length, "formatTail": tail}).encode()).decode()
    signatures = json.dumps([{"signature": "x", "protected": protected.rstrip("=")}])
    return SIGNED_PAYLOAD[:length] + f',\n   "signatures": {signatures}\n}}'.encode()


@pytest.mark.parametrize(
    "stated", [OCI_INDEX, "application/evil+json", "text/plain", "application/octet-stream", "", "x" * 9000]
)
async def test_a_manifest_has_the_type_that_its_bytes_say(scene: Scene, stated: str) -> None:
    reply = Reply(200, (("Content-Type", stated),), [MANIFEST])
    assert (await scene.fetcher(Script(reply)).manifest(BY_DIGEST, ACCEPT, ASKED)).media_type == OCI_MANIFEST
    stored = scene.store.find(digest_of(MANIFEST))
    assert stored is not None
    assert stored.media_type == OCI_MANIFEST


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("application/vnd.acme.thing+json", "application/vnd.acme.thing+json"),
        ("text/html", "application/octet-stream"),
        ("application/" + "x" * 200, "application/octet-stream"),
        ("no type", "application/octet-stream"),
    ],
)
@pytest.mark.parametrize("data", [b"{}", b"no JSON", b'{"schemaVersion": 1, "x": ["', b"[" * 100_000])
async def test_what_is_no_manifest_is_passed_on_and_not_kept(scene: Scene, stated: str, expected: str, data: bytes) -> None:
    ref = reference(f"manifests/{digest_of(data)}")
    found = await scene.fetcher(Script(Reply(200, (("Content-Type", stated),), [data]))).manifest(ref, ACCEPT, ASKED)
    assert found == ManifestContent(digest_of(data), expected, data, False)
    assert list(scene.store.blobs.scan()) == []


async def test_a_page_in_place_of_a_tag_is_refused(scene: Scene) -> None:
    with pytest.raises(RequestError):
        await scene.fetcher(Script(Reply(200, (("Content-Type", "text/html"),), [b"<html>"]))).manifest(BY_TAG, ACCEPT, ASKED)


async def test_a_signed_manifest_has_the_digest_of_what_was_signed(scene: Scene) -> None:
    ref = reference(f"manifests/{digest_of(SIGNED_PAYLOAD)}")
    found = await scene.fetcher(Script(manifest_reply(signed()))).manifest(ref, ACCEPT, ASKED)
    assert found == ManifestContent(digest_of(SIGNED_PAYLOAD), SCHEMA_1_SIGNED, signed(), False)
    assert list(scene.store.blobs.scan()) == []

    with pytest.raises(RequestError):
        await scene.fetcher(Script(manifest_reply(signed().replace(b"acme", b"evil")))).manifest(ref, ACCEPT, ASKED)


def padded(size: int) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": {}, "layers": [], "annotations": {"x": "y" * size}}).encode()


@pytest.mark.parametrize("size", [SMALL + 1, 1 << 20, 4_000_000])
async def test_a_large_manifest_is_on_disk_only(scene: Scene, size: int) -> None:
    data = padded(size)
    ref = reference(f"manifests/{digest_of(data)}")
    fetcher = scene.fetcher(Script(manifest_reply(data)))
    assert await fetcher.manifest(ref, ACCEPT, ASKED) == ManifestContent(digest_of(data), OCI_MANIFEST, b"", True)
    assert scene.store.blobs.size(digest_of(data)) == len(data)
    assert fetcher._manifest_bytes == 0


async def test_a_manifest_that_clients_refuse_goes_straight_through(scene: Scene) -> None:
    reply = manifest_reply(padded(5 << 20))
    with pytest.raises(NotKept):
        await scene.fetcher(Script(reply)).manifest(BY_TAG, ACCEPT, ASKED)
    assert reply.closed
    assert reply.pieces, "it was not read"


async def test_manifests_beyond_what_they_may_have_in_memory_go_straight_through(scene: Scene) -> None:
    data = padded(1 << 20)
    fetcher = scene.fetcher(Script(manifest_reply(data)))
    fetcher._manifest_bytes = MANIFESTS_MAX - 100
    with pytest.raises(NotKept):
        await fetcher.manifest(BY_TAG, ACCEPT, ASKED)
    assert fetcher._manifest_bytes == MANIFESTS_MAX - 100


async def test_a_manifest_by_sha512(scene: Scene) -> None:
    ref = reference(f"manifests/{digest_of(MANIFEST, 'sha512')}")
    found = await scene.fetcher(Script(manifest_reply())).manifest(ref, ACCEPT, ASKED)
    assert found.digest == digest_of(MANIFEST, "sha512")


async def test_the_digest_that_upstream_states_for_a_tag_is_kept(scene: Scene) -> None:
    stated = digest_of(MANIFEST, "sha512")
    reply = manifest_reply(MANIFEST, ("Docker-Content-Digest", stated))
    assert (await scene.fetcher(Script(reply)).manifest(BY_TAG, ACCEPT, ASKED)).digest == stated


@pytest.mark.parametrize("stated", ["md5:abc", "nonsense", ":", ""])
async def test_a_stated_digest_that_cannot_be_checked_is_worth_nothing(scene: Scene, stated: str) -> None:
    reply = manifest_reply(MANIFEST, ("Docker-Content-Digest", stated))
    assert (await scene.fetcher(Script(reply)).manifest(BY_TAG, ACCEPT, ASKED)).digest == digest_of(MANIFEST)


@pytest.mark.parametrize(
    ("ref", "reply"),
    [
        (BY_DIGEST, manifest_reply(b"{}")),
        (BY_DIGEST, manifest_reply(b"")),
        (BY_TAG, manifest_reply(MANIFEST, ("Docker-Content-Digest", digest_of(b"{}")))),
        (BY_TAG, manifest_reply(MANIFEST, ("Docker-Content-Digest", "sha256:../../../etc/passwd"))),
        (BY_DIGEST, manifest_reply(gzip.compress(b"{}"), ("Content-Encoding", "gzip"))),
        (BY_DIGEST, manifest_reply(b"\x1f\x8b broken", ("Content-Encoding", "gzip"))),
    ],
)
async def test_a_manifest_that_does_not_have_its_digest(scene: Scene, ref: Reference, reply: Reply) -> None:
    with pytest.raises(RequestError) as caught:
        await scene.fetcher(Script(Reply(200, reply.headers, reply.pieces[:]))).manifest(ref, ACCEPT, ASKED)

    assert (caught.value.failure.status, caught.value.failure.code) == (502, Code.DIGEST_INVALID)
    assert scene.mismatches == ["reg.example"]
    assert list(scene.store.blobs.scan()) == []


async def test_a_manifest_that_was_compressed_all_the_same_is_decoded(scene: Scene) -> None:
    reply = manifest_reply(gzip.compress(MANIFEST), ("Content-Encoding", "gzip"))
    assert (await scene.fetcher(Script(reply)).manifest(BY_DIGEST, ACCEPT, ASKED)).data == MANIFEST


async def test_a_compression_bomb_is_refused(scene: Scene) -> None:
    bomb = gzip.compress(bytes(4 * MANIFEST_MAX))
    with pytest.raises(RequestError):
        await scene.fetcher(Script(manifest_reply(bomb, ("Content-Encoding", "gzip")))).manifest(BY_DIGEST, ACCEPT, ASKED)


async def test_a_manifest_that_is_too_large_is_refused_before_it_is_read_whole(scene: Scene) -> None:
    reply = Reply(200, (("Content-Type", OCI_MANIFEST),), [bytes(1 << 20)] * 100)
    with pytest.raises(RequestError) as caught:
        await scene.fetcher(Script(reply)).manifest(BY_TAG, ACCEPT, ASKED)
    assert caught.value.failure.status == 502
    assert len(reply.pieces) > 80
    assert reply.closed


@pytest.mark.parametrize(
    ("reply", "status"),
    [(BREAK, 502), (UpstreamBroken("late", timeout=True), 504), (Reply(304), 502), (Reply(204), 502)],
)
async def test_an_upstream_that_gives_no_manifest(scene: Scene, reply: Reply | UpstreamBroken, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        await scene.fetcher(Script(reply)).manifest(BY_TAG, ACCEPT, ASKED)
    assert caught.value.failure.status == status


async def test_a_manifest_that_breaks_off(scene: Scene) -> None:
    with pytest.raises(RequestError) as caught:
        await scene.fetcher(Script(Reply(200, (), [MANIFEST[:10], BREAK]))).manifest(BY_TAG, ACCEPT, ASKED)
    assert caught.value.failure.status == 502
    assert list(scene.store.blobs.scan()) == []


async def test_a_manifest_by_tag_that_is_shorter_than_announced_is_not_taken_for_whole(scene: Scene) -> None:
    """Without Docker-Content-Digest its length is all that tells."""
    reply = Reply(200, (("Content-Type", OCI_MANIFEST), ("Content-Length", str(len(MANIFEST)))), [MANIFEST[:10]])
    with pytest.raises(RequestError) as caught:
        await scene.fetcher(Script(reply)).manifest(BY_TAG, ACCEPT, ASKED)
    assert caught.value.failure.status == 502


async def test_a_manifest_that_stalls_is_given_up(scene: Scene) -> None:
    scene.settings = load(environ={}, flags={"progress_timeout": "20ms"})
    reply = Reply(200, (), [MANIFEST[:10], asyncio.Event()])
    with pytest.raises(RequestError) as caught:
        await scene.fetcher(Script(reply)).manifest(BY_TAG, ACCEPT, ASKED)
    assert caught.value.failure.status == 504
    assert reply.closed


async def test_a_manifest_is_served_although_it_cannot_be_kept(scene: Scene) -> None:
    scene.store.report_write_error(OSError(28, "No space left on device"))
    found = await scene.fetcher(Script(manifest_reply())).manifest(BY_TAG, ACCEPT, ASKED)
    assert (found.data, found.stored) == (MANIFEST, False)
    assert list(scene.store.blobs.scan()) == []


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_what_one_client_may_not_see_another_asks_for_itself(scene: Scene, status: int) -> None:
    upstream = Script(refusal(status), manifest_reply())
    upstream.gate.clear()
    fetcher = scene.fetcher(upstream)
    alice = asyncio.create_task(fetcher.manifest(BY_TAG, ALICE, ASKED))
    await asyncio.sleep(0.01)
    bob = [asyncio.create_task(fetcher.manifest(BY_TAG, BOB, ASKED)) for _ in range(3)]
    await asyncio.sleep(0.01)
    upstream.gate.set()

    with pytest.raises(Relayed) as caught:
        await alice
    assert caught.value.relay.status == status
    assert [content.data for content in await asyncio.gather(*bob)] == [MANIFEST] * 3
    assert [header(request.headers, "authorization") for request in upstream.requests] == ["Basic alice", "Basic bob"]


async def test_an_upstream_that_is_down_is_asked_once_for_all(scene: Scene) -> None:
    upstream = Script(refusal(503))
    upstream.gate.clear()
    fetcher = scene.fetcher(upstream)
    asking = [asyncio.create_task(fetcher.manifest(BY_TAG, headers, ASKED)) for headers in (ALICE, BOB, ALICE)]
    await asyncio.sleep(0.01)
    upstream.gate.set()

    for result in await asyncio.gather(*asking, return_exceptions=True):
        assert isinstance(result, Relayed)
    assert len(upstream.requests) == 1


async def test_the_client_that_asked_first_may_leave(scene: Scene) -> None:
    upstream = Script(manifest_reply())
    upstream.gate.clear()
    fetcher = scene.fetcher(upstream)
    first = asyncio.create_task(fetcher.manifest(BY_TAG, ACCEPT, ASKED))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(fetcher.manifest(BY_TAG, ACCEPT, ASKED))
    await asyncio.sleep(0)
    first.cancel()
    upstream.gate.set()

    assert (await second).data == MANIFEST
    assert len(upstream.requests) == 1


async def test_a_stop_ends_manifests_that_are_under_way(scene: Scene) -> None:
    upstream = Script(manifest_reply())
    upstream.gate.clear()
    fetcher = scene.fetcher(upstream)
    asking = asyncio.create_task(fetcher.manifest(BY_TAG, ACCEPT, ASKED))
    await asyncio.sleep(0.01)

    async with asyncio.timeout(5):
        await fetcher.stop()
        await asyncio.wait([asking])
    assert asking.cancelled() or isinstance(asking.exception(), RequestError)


# Headers


def test_headers_are_found_without_case() -> None:
    assert header((("Content-TYPE", "a"), ("content-type", "b")), "content-type") == "a"
    assert header((), "content-type") is None


@pytest.mark.parametrize(
    ("value", "length"), [("0", 0), ("17", 17), ("", None), ("-1", None), ("1, 1", None), ("1" * 19, None), ("x", None)]
)
def test_content_length(value: str, length: int | None) -> None:
    assert content_length((("Content-Length", value),)) == length


def test_hop_by_hop_headers_go_no_further() -> None:
    kept = (("Content-Type", "a/b"), ("WWW-Authenticate", "Basic"), ("Retry-After", "5"), ("ratelimit-limit", "100"))
    dropped = (
        ("Connection", "close, X-Private"),
        ("x-private", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Transfer-Encoding", "chunked"),
        ("Upgrade", "h2c"),
        ("TE", "trailers"),
        ("Trailer", "x"),
        ("Proxy-Authenticate", "Basic"),
        ("Proxy-Authorization", "Basic x"),
    )
    assert end_to_end((*dropped, *kept)) == kept


def test_credentials_are_told_apart_without_being_kept() -> None:
    assert credentials_of(ALICE) == credentials_of(tuple(reversed(ALICE)))
    assert len({credentials_of(ALICE), credentials_of(BOB), credentials_of(ACCEPT)}) == 3
    assert b"alice" not in credentials_of(ALICE)
