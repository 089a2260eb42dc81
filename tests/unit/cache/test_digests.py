"""Manifests that are asked for by their digest."""

import json

from cacheyd.protocol.digest import digest_of
from cacheyd.protocol.media_types import OCI_INDEX
from cacheyd.upstream.port import UpstreamBroken
from tests.support.cache_scene import BY_DIGEST, INDEX, Scene
from tests.support.fetching import Reply


async def test_a_digest_never_asks_again(scene: Scene) -> None:
    await scene.get(BY_DIGEST)
    scene.clock.now += 10 * 365 * 86400
    scene.registry.down = UpstreamBroken("down")
    assert (await scene.get(BY_DIGEST)).brief == (200, "HIT", INDEX)
    assert (await scene.head(BY_DIGEST)).brief == (200, "HIT", b"")


async def test_a_manifest_that_is_not_there(scene: Scene) -> None:
    unknown = f"manifests/{digest_of(b'unknown')}"
    for method in ("GET", "HEAD"):
        got = await scene.get(unknown, method=method)
        assert (got.status, got.result) == (404, "MISS")
        assert got.headers["x-proxied-for"] == "reg.example"
    assert (await scene.get(unknown)).body == b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}'


async def test_a_wrong_manifest_is_a_bad_gateway_and_not_kept(scene: Scene) -> None:
    scene.registry.override = lambda _: Reply(200, (("Content-Type", OCI_INDEX),), [b"{}"])
    got = await scene.get(BY_DIGEST)
    assert got.status == 502
    assert json.loads(got.body)["errors"][0]["code"] == "DIGEST_INVALID"
    assert scene.store.objects.find(digest_of(INDEX)) is None
    assert scene.store.objects.find(digest_of(b"{}")) is None


async def test_a_blob_that_turns_out_to_be_a_manifest_gets_its_type(scene: Scene) -> None:
    """containerd tries /blobs/<digest> for a manifest whose type it did not understand."""
    scene.registry.blobs[digest_of(INDEX)] = INDEX
    await scene.get(f"blobs/{digest_of(INDEX)}")
    await scene.landed()

    got = await scene.get(BY_DIGEST)
    assert (got.status, got.body, got.headers["content-type"]) == (200, INDEX, OCI_INDEX)
    assert (await scene.get(BY_DIGEST)).result == "HIT"
    # As a blob it is its registry's to give from now on.
    got = await scene.get(f"blobs/{digest_of(INDEX)}")
    assert (got.status, got.body, got.result) == (200, INDEX, "MISS")


async def test_a_manifest_is_no_blob_where_the_registry_says_so(scene: Scene) -> None:
    """containerd/containerd#13007: its digest under /blobs/ was answered as octet-stream."""
    await scene.get(BY_DIGEST)
    for method in ("GET", "HEAD"):
        got = await scene.get(f"blobs/{digest_of(INDEX)}", method=method)
        assert (got.status, got.result) == (404, "MISS"), method
    assert (await scene.get(BY_DIGEST)).result == "HIT"


async def test_a_blob_is_no_manifest_where_the_registry_says_so(scene: Scene) -> None:
    data = b'{"schemaVersion": 2, "note": "no manifest"}'
    scene.registry.blobs[digest_of(data)] = data
    await scene.get(f"blobs/{digest_of(data)}")
    await scene.landed()
    for method in ("GET", "HEAD"):
        assert (await scene.get(f"manifests/{digest_of(data)}", method=method)).status == 404, method
    assert (await scene.get(f"blobs/{digest_of(data)}")).result == "HIT"
