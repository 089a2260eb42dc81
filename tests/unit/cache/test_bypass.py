"""What passes through and is not kept, and who is sent on."""

import asyncio

import pytest

from cacheyd.cache.bodies import BodyBroken
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.headers import header
from cacheyd.upstream.port import UpstreamBroken
from tests.support.cache_scene import (
    BLOB,
    BY_DIGEST,
    INDEX,
    LARGE_BLOB,
    SMALL_BLOB,
    TAG,
    Scene,
    received,
)
from tests.support.fetching import Reply


async def test_while_the_disk_refuses_blobs_go_straight_through(scene: Scene) -> None:
    scene.store.health.report_write_error(OSError(28, "No space left on device"))
    assert (await scene.get(LARGE_BLOB)).brief == (200, "BYPASS", BLOB)

    resumed = await scene.get(LARGE_BLOB, range="bytes=100000-199999", if_range=f'"{digest_of(BLOB)}"')
    assert resumed.brief == (206, "BYPASS", BLOB[100_000:200_000])
    # A part cannot be verified: all of it is asked for and looked at.
    assert header(scene.registry.requests[-1].headers, "range") is None
    assert (await scene.get(TAG)).brief == (200, "MISS", INDEX), "manifests are served, too"
    assert scene.store.objects.find(digest_of(BLOB)) is None


async def test_a_blob_that_does_not_fit_goes_straight_through(tight: Scene) -> None:
    assert (await tight.get(LARGE_BLOB)).brief == (200, "BYPASS", BLOB)


async def test_too_many_waiting_clients_are_sent_on(scene: Scene) -> None:
    await scene.get(BY_DIGEST)
    scene.configure(max_waiting="1")
    scene.registry.pause = asyncio.Event()
    first = asyncio.create_task(scene.get(LARGE_BLOB))
    await asyncio.sleep(0.01)

    assert (await scene.get(SMALL_BLOB)).status == 503
    assert (await scene.get(BY_DIGEST)).result == "HIT", "hits do not wait"
    scene.registry.pause.set()
    assert (await first).status == 200
    assert (await scene.get(SMALL_BLOB)).status == 200


async def test_a_bypass_that_breaks_off_is_broken_off(tight: Scene) -> None:
    length = ("Content-Length", str(len(BLOB)))
    tight.registry.override = lambda _: Reply(200, (length,), [BLOB[:1000], UpstreamBroken("reset")])
    answer = await tight.ask(LARGE_BLOB)
    with pytest.raises(BodyBroken):
        await received(answer)


async def test_a_client_that_leaves_a_bypass_ends_it(tight: Scene) -> None:
    answer = await tight.ask(LARGE_BLOB)
    assert answer.source is not None
    answer.source.close()
    assert tight.registry.bodies[-1].closed


async def test_a_tag_list_is_kept_and_what_is_no_referrers_is_not(tight: Scene) -> None:
    for tail, results in (("tags/list", ("MISS", "HIT")), (f"referrers/{digest_of(INDEX)}", ("BYPASS", "BYPASS"))):
        tight.registry.requests.clear()
        for result in results:
            got = await tight.get(tail)
            assert got.brief == (200, result, b'{"name": "lab/img", "tags": ["1.0"]}')
            assert got.headers["x-proxied-for"] == "reg.example"
        assert len(tight.registry.requests) == (1 if "HIT" in results else 2)
    head = await tight.head(tail)
    assert (head.status, head.body, head.result) == (200, b"", "BYPASS")


async def test_a_bypass_while_upstream_is_down(tight: Scene) -> None:
    tight.registry.down = UpstreamBroken("late", timeout=True)
    got = await tight.get("tags/list")
    assert got.status == 504
    assert got.headers["content-type"] == "application/json"
