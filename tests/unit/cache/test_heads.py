"""HEAD: what upstream says of a manifest, and when only a GET can tell."""

import asyncio

import pytest

from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import OCI_INDEX
from cacheyd.upstream.port import UpstreamRequest
from tests.support.cache_scene import (
    BLOB,
    BY_DIGEST,
    INDEX,
    LARGE_BLOB,
    SMALL,
    SMALL_BLOB,
    TAG,
    Scene,
    manifest_headers,
    received,
    text,
)
from tests.support.fetching import Reply


async def test_head_has_the_headers_of_get_and_no_body(scene: Scene) -> None:
    for tail, data in ((TAG, INDEX), (BY_DIGEST, INDEX), (SMALL_BLOB, SMALL), (LARGE_BLOB, BLOB)):
        cold = await scene.head(tail)
        get = await scene.get(tail)
        await scene.landed()
        warm = await scene.head(tail)
        for head in (cold, warm):
            assert (head.status, head.body) == (200, b"")
            for name in ("content-type", "content-length"):
                assert head.headers[name] == get.headers[name]
        assert warm.headers["docker-content-digest"] == digest_of(data)


@pytest.mark.parametrize("tail", [TAG, BY_DIGEST, SMALL_BLOB])
async def test_head_always_tells_the_digest(scene: Scene, tail: str) -> None:
    """The played registry's blobs come without Docker-Content-Digest, as from a CDN."""
    assert "docker-content-digest" in (await scene.head(tail)).headers


async def test_a_head_teaches_the_tag(scene: Scene) -> None:
    assert (await scene.head(TAG)).result == "MISS"
    assert (await scene.head(TAG)).result == "HIT"
    assert scene.registry.log == ["HEAD manifest 1.0"]


async def test_a_get_after_the_head_of_a_tag_asks_for_the_content(scene: Scene) -> None:
    await scene.head(TAG)
    assert (await scene.get(TAG)).brief == (200, "MISS", INDEX)
    assert (await scene.get(TAG)).brief == (200, "HIT", INDEX)


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_registry_that_knows_no_head_is_asked_with_get(scene: Scene, status: int) -> None:
    scene.registry.override = lambda request: text(status, "") if request.method == "HEAD" else None

    for tail in (TAG, BY_DIGEST):
        got = await scene.head(tail)
        assert (got.status, got.body) == (200, b"")
        assert got.headers["docker-content-digest"] == digest_of(INDEX)
        assert got.headers["content-length"] == str(len(INDEX))
        assert got.headers["content-type"] == OCI_INDEX
    assert scene.registry.log[:2] == ["HEAD manifest 1.0", "GET manifest 1.0"]


@pytest.mark.parametrize("missing", ["Docker-Content-Digest", "Content-Type", "Content-Length"])
async def test_a_head_that_does_not_tell_everything_is_asked_with_get(scene: Scene, missing: str) -> None:
    def incomplete(asked: UpstreamRequest) -> Reply | None:
        headers = tuple(item for item in manifest_headers(OCI_INDEX, INDEX) if item[0] != missing)
        return Reply(200, headers, []) if asked.method == "HEAD" else None

    scene.registry.override = incomplete
    got = await scene.head(TAG)
    assert got.headers["docker-content-digest"] == digest_of(INDEX)
    assert got.headers["content-length"] == str(len(INDEX))
    assert got.headers["content-type"] == OCI_INDEX


async def test_a_length_of_zero_is_no_answer_to_a_head(scene: Scene) -> None:
    """containerd takes a Content-Length of 0 as fatal."""
    scene.registry.override = lambda asked: (
        Reply(200, (*manifest_headers(OCI_INDEX, INDEX)[::2], ("Content-Length", "0")), []) if asked.method == "HEAD" else None
    )
    assert (await scene.head(TAG)).headers["content-length"] == str(len(INDEX))


@pytest.mark.parametrize("status", [401, 403, 500])
async def test_a_refusal_of_head_is_relayed(scene: Scene, status: int) -> None:
    scene.registry.override = lambda _: text(status, "no", ("WWW-Authenticate", 'Bearer realm="https://a/t"'))
    got = await scene.head(TAG)
    assert (got.status, got.body) == (status, b"")
    assert got.headers["www-authenticate"] == 'Bearer realm="https://a/t"'
    assert scene.registry.log == ["HEAD manifest 1.0"]


async def test_many_heads_at_once_are_one(scene: Scene) -> None:
    scene.registry.pause = asyncio.Event()
    asking = [asyncio.create_task(scene.head(TAG)) for _ in range(10)]
    await asyncio.sleep(0.01)
    scene.registry.pause.set()

    assert {got.status for got in await asyncio.gather(*asking)} == {200}
    assert scene.registry.log == ["HEAD manifest 1.0"]


async def test_a_head_during_a_flight_knows_the_size(scene: Scene) -> None:
    more = asyncio.Event()
    length = ("Content-Length", str(len(BLOB)))
    scene.registry.override = lambda asked: Reply(200, (length,), [BLOB[:200_000], more, BLOB[200_000:]])
    answer = await scene.ask(LARGE_BLOB)
    head = await scene.head(LARGE_BLOB)
    assert (head.status, head.headers["content-length"]) == (200, str(len(BLOB)))
    more.set()
    assert (await received(answer)).body == BLOB
    assert len(scene.registry.requests) == 1
