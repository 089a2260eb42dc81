"""Blobs: one fetch for many clients, ranges, and wrong bytes."""

import asyncio
import json

import pytest

from cacheyd.cache.bodies import BodyBroken
from cacheyd.cache.growing import HOLD
from cacheyd.cache.pieces import FAR_AHEAD
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.headers import header
from cacheyd.upstream.port import UpstreamRequest
from tests.support.cache_scene import (
    ALICE,
    BLOB,
    BOB,
    BY_DIGEST,
    LARGE_BLOB,
    SMALL,
    SMALL_BLOB,
    TAG,
    Scene,
    received,
    text,
)
from tests.support.fetching import Reply


async def test_many_clients_at_once_are_one_fetch(scene: Scene) -> None:
    scene.registry.pause = asyncio.Event()
    asking = [asyncio.create_task(scene.get(LARGE_BLOB)) for _ in range(20)]
    await asyncio.sleep(0.01)
    scene.registry.pause.set()

    assert {got.brief for got in await asyncio.gather(*asking)} == {(200, "MISS", BLOB)}
    assert len(scene.registry.requests) == 1


@pytest.mark.parametrize(
    ("range_", "start", "end"),
    [
        ("bytes=500-1499", 500, 1500),
        ("bytes=500-", 500, 2048),
        ("bytes=-500", 1548, 2048),
        ("bytes=2000-5000", 2000, 2048),
        ("bytes=0-", 0, 2048),
    ],
)
async def test_ranges_are_exact_cold_and_warm(scene: Scene, range_: str, start: int, end: int) -> None:
    for result in ("MISS", "HIT"):
        got = await scene.get(SMALL_BLOB, range=range_)
        assert (got.status, got.body) == (206, SMALL[start:end])
        assert got.headers["content-range"] == f"bytes {start}-{end - 1}/2048"
        assert got.headers["content-length"] == str(end - start)
        assert got.result in (result, "HIT")
        await scene.landed()
    assert header(scene.registry.requests[0].headers, "range") is None, "the whole object is fetched"


@pytest.mark.parametrize("range_", ["bytes=500-0", "bytes=5000-10000", "bytes=-0"])
async def test_a_range_without_a_byte_is_416_cold_and_warm(scene: Scene, range_: str) -> None:
    for _ in range(2):
        got = await scene.get(SMALL_BLOB, range=range_)
        assert (got.status, got.body) == (416, b"")
        assert got.headers["content-range"] == "bytes */2048"
        await scene.landed()


@pytest.mark.parametrize("range_", ["items=0-1", "bytes=x", "bytes=0-,0-", "bytes=0-1,5000-"])
async def test_other_ranges_get_the_whole(scene: Scene, range_: str) -> None:
    for _ in range(2):
        got = await scene.get(SMALL_BLOB, range=range_)
        assert (got.status, got.body) == (200, SMALL)
        assert "content-range" not in got.headers
        await scene.landed()


async def test_several_ranges_are_all_of_it_or_multipart_never_one_part(scene: Scene) -> None:
    assert (await scene.get(SMALL_BLOB, range="bytes=0-1,5-6")).brief == (200, "MISS", SMALL)
    await scene.landed()

    got = await scene.get(SMALL_BLOB, range="bytes=0-1,5-6")
    media_type, _, boundary = got.headers["content-type"].partition("; boundary=")
    assert (got.status, got.result, media_type) == (206, "HIT", "multipart/byteranges")
    assert "content-range" not in got.headers
    assert got.headers["content-length"] == str(len(got.body))
    first, second = got.body.split(f"--{boundary}".encode())[1:3]
    assert first.endswith(b"Content-Range: bytes 0-1/2048\r\n\r\n" + SMALL[:2] + b"\r\n")
    assert second.endswith(b"Content-Range: bytes 5-6/2048\r\n\r\n" + SMALL[5:7] + b"\r\n")
    assert got.body.endswith(f"--{boundary}--\r\n".encode())


async def test_if_range(scene: Scene) -> None:
    for _ in range(2):
        same = await scene.get(SMALL_BLOB, range="bytes=5-", if_range=f'"{digest_of(SMALL)}"')
        other = await scene.get(SMALL_BLOB, range="bytes=5-", if_range='"other"')
        assert (same.status, same.body) == (206, SMALL[5:])
        assert (other.status, other.body) == (200, SMALL)
        await scene.landed()


async def test_a_range_of_a_manifest_is_ignored(scene: Scene) -> None:
    for _ in range(2):
        assert (await scene.get(BY_DIGEST, range="bytes=0-1")).brief[0] == 200


async def test_a_small_piece_far_ahead_of_a_flight_is_asked_for_on_its_own(scene: Scene) -> None:
    """Lazy pulling (stargz, SOCI) reads a few bytes near the end first."""
    data = bytes(FAR_AHEAD + 1_000_000)
    tail = f"blobs/{digest_of(data)}"
    scene.registry.blobs[digest_of(data)] = data
    more = asyncio.Event()
    slow = Reply(200, (("Content-Length", str(len(data))),), [data[:1000], more, data[1000:]])
    scene.registry.override = lambda asked: None if header(asked.headers, "range") else slow
    first = await scene.ask(tail)

    got = await scene.get(tail, range=f"bytes={len(data) - 100}-{len(data) - 1}")
    assert (got.status, got.result, len(got.body)) == (206, "BYPASS", 100)
    assert got.headers["content-range"] == f"bytes {len(data) - 100}-{len(data) - 1}/{len(data)}"
    # What the flight has is not verified yet, and will not be for a while.
    near = await scene.get(tail, range="bytes=500-1499")
    assert (near.status, near.result, len(near.body)) == (206, "BYPASS", 1000)
    open_ended = asyncio.create_task(scene.get(tail, range="bytes=500-"))
    await asyncio.sleep(0.01)
    assert not open_ended.done()
    more.set()
    assert (await open_ended).result == "MISS"
    assert (await received(first)).status == 200
    assert len(scene.registry.requests) == 3


async def test_a_blob_of_unknown_length_has_one_in_the_end(scene: Scene) -> None:
    scene.registry.override = lambda _: Reply(200, (), [BLOB])
    got = await scene.get(LARGE_BLOB)
    assert got.brief == (200, "MISS", BLOB)
    assert got.headers["content-length"] == str(len(BLOB))


async def test_a_blob_of_unknown_length_that_takes_long_is_sent_as_it_comes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheyd.cache.boarding.LENGTH_WAIT", 0.01)
    more = asyncio.Event()
    scene.registry.override = lambda _: Reply(200, (), [BLOB[:200_000], more, BLOB[200_000:]])
    answer = await scene.ask(LARGE_BLOB)
    assert answer.length is None
    more.set()
    got = await received(answer)
    assert (got.body, "content-length" in got.headers) == (BLOB, False)


async def test_a_small_wrong_blob_is_an_error_before_the_head(scene: Scene) -> None:
    """Only before the head is there a way back to the upstream."""
    scene.registry.blobs[digest_of(SMALL)] = bytes(len(SMALL))
    got = await scene.get(SMALL_BLOB)
    assert got.status == 502
    assert json.loads(got.body)["errors"][0]["code"] == "DIGEST_INVALID"


async def test_a_large_wrong_blob_is_cut_short_and_the_resume_is_502(scene: Scene) -> None:
    scene.registry.blobs[digest_of(BLOB)] = bytes(len(BLOB))
    answer = await scene.ask(LARGE_BLOB)
    assert (answer.status, answer.length) == (200, len(BLOB))
    with pytest.raises(BodyBroken):
        await received(answer)

    resumed = await scene.get(LARGE_BLOB, range=f"bytes={len(BLOB) - HOLD}-")
    assert resumed.status == 502
    assert len(scene.registry.requests) == 1
    assert (await scene.get(SMALL_BLOB)).status == 200, "others are not affected"


@pytest.mark.parametrize("status", [401, 403, 404, 500])
async def test_an_error_of_upstream_is_relayed(scene: Scene, status: int) -> None:
    challenge = ("WWW-Authenticate", 'Bearer realm="https://a/t",scope="repository:lab/img:pull"')
    scene.registry.override = lambda _: text(status, '{"errors": []}', challenge)
    got = await scene.get(LARGE_BLOB)
    assert (got.status, got.body) == (status, b'{"errors": []}')
    assert got.headers["www-authenticate"] == challenge[1]
    assert got.headers["content-type"] == "application/json"
    assert got.headers["x-proxied-for"] == "reg.example"


@pytest.mark.parametrize("tail", [TAG, BY_DIGEST, LARGE_BLOB])
async def test_what_one_client_may_not_have_is_asked_for_with_the_others_credentials(scene: Scene, tail: str) -> None:
    def private(asked: UpstreamRequest) -> Reply | None:
        return None if header(asked.headers, "authorization") == BOB else text(401, "who are you")

    scene.registry.override = private
    scene.registry.pause = asyncio.Event()
    alice = [asyncio.create_task(scene.get(tail, login=ALICE)) for _ in range(3)]
    await asyncio.sleep(0.01)
    bob = [asyncio.create_task(scene.get(tail, login=BOB)) for _ in range(3)]
    await asyncio.sleep(0.01)
    scene.registry.pause.set()

    assert {got.status for got in await asyncio.gather(*alice)} == {401}
    assert {got.status for got in await asyncio.gather(*bob)} == {200}


@pytest.mark.parametrize("tail", [TAG, LARGE_BLOB])
async def test_the_refusal_of_one_client_is_not_remembered_for_another(scene: Scene, tail: str) -> None:
    scene.registry.override = lambda asked: None if header(asked.headers, "authorization") else text(401, "who are you")
    assert (await scene.get(tail)).status == 401
    assert (await scene.get(tail, login=BOB)).status == 200


async def test_a_rate_limit_is_relayed_and_asked_about_once(scene: Scene) -> None:
    scene.registry.override = lambda _: text(429, '{"errors": [{"code": "TOOMANYREQUESTS"}]}', ("Retry-After", "60"))
    for tail in (TAG, BY_DIGEST, LARGE_BLOB, TAG, LARGE_BLOB):
        got = await scene.get(tail)
        assert (got.status, got.headers["retry-after"]) == (429, "60")
    assert len(scene.registry.requests) == 1
