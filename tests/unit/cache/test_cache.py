"""The way of a request, with a registry that is played and a store that is real: a pull, conditions, and wipes."""

import shutil

from cacheyd.cache.request import Request
from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import OCI_INDEX
from cacheyd.protocol.reference import Reference
from cacheyd.protocol.targets import parse_target
from tests.support.cache_scene import BLOB, BY_DIGEST, INDEX, LARGE_BLOB, SMALL, SMALL_BLOB, TAG, Scene, received
from tests.support.fetching import Reply

# A pull, as containerd does it


async def test_a_pull_and_a_pull_again(scene: Scene) -> None:
    async def pull() -> list[str]:
        head = await scene.head(TAG)
        results = [head.result]
        for tail in (f"manifests/{head.headers['docker-content-digest']}", LARGE_BLOB, SMALL_BLOB):
            got = await scene.get(tail)
            assert got.status == 200
            results.append(got.result)
        await scene.landed()
        return results

    assert await pull() == ["MISS"] * 4
    asked = len(scene.registry.requests)
    assert asked == 4
    assert await pull() == ["HIT"] * 4
    assert len(scene.registry.requests) == asked


async def test_what_an_object_brings_along(scene: Scene) -> None:
    for tail, media_type, data in ((BY_DIGEST, OCI_INDEX, INDEX), (SMALL_BLOB, "application/octet-stream", SMALL)):
        miss = await scene.get(tail)
        await scene.landed()
        scene.clock.now += 10
        hit = await scene.get(tail)
        for got, result in ((miss, "MISS"), (hit, "HIT")):
            assert got.brief == (200, result, data)
            assert got.headers["content-type"] == media_type
            assert got.headers["content-length"] == str(len(data))
            assert got.headers["docker-content-digest"] == digest_of(data)
            assert got.headers["etag"] == f'"{digest_of(data)}"'
            assert got.headers["docker-distribution-api-version"] == "registry/2.0"
            assert got.headers["x-cache"] == result
            assert got.headers["x-proxied-by"] == "cacheyd"
            assert got.headers["x-proxied-for"] == got.headers["oci-namespace"] == "reg.example"
        assert int(hit.headers["age"]) >= 0
        assert hit.headers["x-proxy-date"] == hit.headers["date"]
    assert (await scene.get(SMALL_BLOB)).headers["accept-ranges"] == "bytes"


async def test_oci_namespace_echoes_ns_and_is_not_there_without(scene: Scene) -> None:
    assert (await scene.get(BY_DIGEST, ns="docker.io")).headers["oci-namespace"] == "docker.io"
    got = await scene.get(BY_DIGEST, ns="registry-1.docker.io")
    assert got.headers["oci-namespace"] == "registry-1.docker.io"
    assert got.headers["x-proxied-for"] == "docker.io"

    plain = parse_target(f"/v2/reg.example/lab/img/{BY_DIGEST}")
    assert isinstance(plain, Reference)
    assert "oci-namespace" not in (await received(await scene.cache.answer(Request("GET", plain, ())))).headers


async def test_age_is_since_upstream_confirmed_it(scene: Scene) -> None:
    await scene.get(TAG)
    scene.clock.now += 100
    assert (await scene.get(TAG)).headers["age"] == "100"
    scene.clock.now -= 200
    assert (await scene.head(BY_DIGEST)).headers["age"] == "0"


async def test_objects_are_shared_between_registries_and_repositories(scene: Scene) -> None:
    await scene.get(SMALL_BLOB, ns="one.example")
    await scene.landed()
    assert (await scene.get(SMALL_BLOB, ns="two.example")).result == "HIT"


async def test_hits_ask_nobody_and_do_not_wait(scene: Scene) -> None:
    assert scene.hit(TAG) is None
    assert scene.hit(BY_DIGEST) is None
    assert scene.hit(LARGE_BLOB) is None
    await scene.get(TAG)
    await scene.get(LARGE_BLOB)
    await scene.landed()
    scene.registry.requests.clear()

    for tail in (TAG, BY_DIGEST, LARGE_BLOB):
        for method in ("GET", "HEAD"):
            answer = scene.hit(tail, method=method)
            assert answer is not None
            assert (answer.status, answer.result) == (200, "HIT")
    assert scene.registry.requests == []


# Conditions


async def test_if_none_match(scene: Scene) -> None:
    digest = f'"{digest_of(INDEX)}"'
    for _ in range(2):
        for tag in (digest, f"W/{digest}", f'"x", {digest}', "*"):
            got = await scene.get(TAG, if_none_match=tag)
            assert (got.status, got.body) == (304, b"")
            assert got.headers["etag"] == digest
            assert "content-length" not in got.headers
        assert (await scene.get(TAG, if_none_match='"x"')).status == 200


async def test_no_client_is_told_304_unasked(scene: Scene) -> None:
    scene.registry.override = lambda _: Reply(304, (), [])
    assert (await scene.get(BY_DIGEST)).status == 502
    assert (await scene.get(LARGE_BLOB)).status == 502


# Wipes


async def test_the_directory_may_be_wiped_between_any_two_requests(scene: Scene) -> None:
    for tail, data in [(TAG, INDEX), (BY_DIGEST, INDEX), (LARGE_BLOB, BLOB), (SMALL_BLOB, SMALL)] * 2:
        got = await scene.get(tail)
        assert (got.status, got.body) == (200, data)
        await scene.landed()
        shutil.rmtree(scene.store.root)


async def test_a_wipe_while_a_hit_is_read(scene: Scene) -> None:
    await scene.get(LARGE_BLOB)
    await scene.landed()
    answer = await scene.ask(LARGE_BLOB)
    shutil.rmtree(scene.store.root)
    assert (await received(answer)).brief == (200, "HIT", BLOB)
