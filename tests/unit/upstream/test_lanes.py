"""Whose turn it is: lanes of one registry, and of all."""

import asyncio

import pytest

from cacheyd.protocol.reference import Kind, Reference
from cacheyd.settings.settings import RegistrySettings, Settings
from cacheyd.upstream.lanes import LANE_WIDTH, Lane, Lanes, Limiter, lane_of
from cacheyd.upstream.port import UpstreamBroken, UpstreamRequest

DIGEST = "sha256:" + "a" * 64


def request(kind: Kind, method: str = "GET", *, registry: str = "reg.test", piece: bool = False) -> UpstreamRequest:
    return UpstreamRequest(Reference(registry, "acme/app", kind, DIGEST, DIGEST, registry), method, (), piece=piece)


@pytest.mark.parametrize(
    ("asked", "lane"),
    [
        (request(Kind.BLOB), Lane.BLOBS),
        (request(Kind.BLOB, piece=True), Lane.PIECES),
        (request(Kind.BLOB, "HEAD"), Lane.SMALL),
        (request(Kind.MANIFEST), Lane.SMALL),
        (request(Kind.TAGS), Lane.LISTS),
        (request(Kind.REFERRERS), Lane.LISTS),
    ],
)
def test_lanes(asked: UpstreamRequest, lane: Lane) -> None:
    assert lane_of(asked) is lane


async def test_a_lane_that_nobody_uses_is_forgotten() -> None:
    limiter = Limiter()
    leave = await limiter.enter("reg.test", Lane.BLOBS, 1, 1.0)
    with pytest.raises(TimeoutError):
        await limiter.enter("reg.test", Lane.BLOBS, 1, 0.01)
    leave()
    assert not limiter._lanes


async def test_layers_keep_no_small_request_waiting() -> None:
    lanes = Lanes(10)
    settings = Settings(head_timeout=0.01, defaults=RegistrySettings(max_fetches=2))
    leaves = [await lanes.enter(request(Kind.BLOB), settings) for _ in range(2)]
    with pytest.raises(UpstreamBroken, match=r"2 requests to reg\.test") as caught:
        await lanes.enter(request(Kind.BLOB), settings)
    assert caught.value.refused
    leaves.append(await lanes.enter(request(Kind.MANIFEST), settings))
    for leave in leaves:
        leave()
    assert (await lanes.enter(request(Kind.BLOB), settings)) is not None


async def test_all_registries_together_have_no_more_than_their_turns() -> None:
    lanes, settings = Lanes(2), Settings(head_timeout=0.01)
    names = [f"reg{number}.test" for number in range(LANE_WIDTH * 2)]
    leaves = [await lanes.enter(request(Kind.BLOB, registry=name), settings) for name in names]
    with pytest.raises(UpstreamBroken, match="too many requests"):
        await lanes.enter(request(Kind.BLOB), settings)
    leaves.pop()()
    await lanes.enter(request(Kind.BLOB), settings)


async def test_one_that_is_not_waited_for_leaves_its_place() -> None:
    lanes, settings = Lanes(1), Settings(defaults=RegistrySettings(max_fetches=1))
    leave = await lanes.enter(request(Kind.BLOB), settings)
    waiting = asyncio.create_task(lanes.enter(request(Kind.BLOB), settings))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    leave()
    await lanes.enter(request(Kind.BLOB), settings)
