"""What an image consists of, also where it is none: indexes of blobs, artifacts."""

import json
from typing import Any

import pytest

from tests.support.artifacts import (
    ARTIFACT_MANIFEST,
    artifact,
    buildkit_cache,
    descriptor,
    encoded,
)
from tests.support.images import OCI_INDEX, OCI_MANIFEST, digest_of, make_image, make_index
from tests.support.warming import REPO, Scene, by_event


@pytest.mark.parametrize("layer_type", ["application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.acme.x", None])
@pytest.mark.parametrize("platforms", [("linux/amd64",), None])
async def test_a_cache_of_buildkit_is_an_index_of_blobs(
    scene: Scene, layer_type: str | None, platforms: tuple[str, ...] | None
) -> None:
    cache = buildkit_cache(1, layer_type=layer_type).push(scene.origin, REPO, "1.0")

    events = await scene.warm(platforms=platforms)

    assert events[-1]["failed"] == 0, events
    assert all(scene.has(*cache.digests))
    assert {event["digest"] for event in by_event(events, "layer-done")} == {blob.digest for blob in cache.blobs}
    asked = [r.path for r in scene.origin.requests if "/manifests/sha256" in r.path]
    # What says that it is a layer is not asked for as a manifest.
    assert bool(asked) == ("layer" not in (layer_type or ""))


async def test_an_entry_that_is_nowhere_is_named(scene: Scene) -> None:
    cache = buildkit_cache(2, layer_type=None)
    scene.origin.add_manifest(REPO, "1.0", cache.manifest, cache.media_type)
    for blob in cache.blobs[1:]:
        scene.origin.add_blob(REPO, blob.data)

    (failed,) = by_event(await scene.warm(), "failed")

    assert failed["reason"].startswith(f"{cache.blobs[0].digest}: 404 ")


async def test_a_registry_that_fails_over_blobs_as_manifests_is_asked_for_blobs(scene: Scene) -> None:
    """docker-registry answers 500 there."""
    cache = buildkit_cache(3, layer_type=None).push(scene.origin, REPO, "1.0")
    for blob in cache.blobs:
        scene.origin.fault(f"GET .*/manifests/{blob.digest}", status=500)

    events = await scene.warm()

    assert events[-1]["failed"] == 0, events
    assert all(scene.has(*cache.digests))


async def test_a_manifest_that_is_only_there_as_a_blob_is_not_all_there(scene: Scene) -> None:
    image = make_image(seed=8)
    content = json.loads(make_index(image).manifest)
    del content["manifests"][0]["mediaType"]
    scene.origin.push(REPO, "other", image)
    scene.origin.add_blob(REPO, image.manifest)
    scene.origin.add_manifest(REPO, "1.0", json.dumps(content).encode(), OCI_INDEX)
    scene.origin.fault(f"GET .*/manifests/{image.digest}", status=500)

    for _ in range(2):
        (failed,) = by_event(await scene.warm(), "failed")
        assert failed["reason"].startswith(f"{image.digest}: 500 ")


@pytest.mark.parametrize("status", [401, 429, 503])
async def test_an_entry_that_cannot_be_had_now_is_no_blob(scene: Scene, status: int) -> None:
    cache = buildkit_cache(3, layer_type=None).push(scene.origin, REPO, "1.0")
    scene.origin.fault(f"GET .*/manifests/{cache.blobs[0].digest}", status=status)

    (failed,) = by_event(await scene.warm(), "failed")

    assert f"{cache.blobs[0].digest}: {status} " in failed["reason"]
    assert not any(f"/blobs/{cache.blobs[0].digest}" in r.path for r in scene.origin.requests)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": None},
        {"config": None},
        {"artifactType": None, "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json"}},
        {"mediaType": ARTIFACT_MANIFEST, "schemaVersion": None, "config": None, "layers": None, "blobs": "layers"},
    ],
)
async def test_artifacts_need_no_platform(scene: Scene, changes: dict[str, Any]) -> None:
    plain = artifact(4)
    content = json.loads(plain.manifest)
    changes = {**changes, **({"blobs": content["layers"]} if "blobs" in changes else {})}
    if isinstance(changes.get("config"), dict):
        changes["config"] = {**content["config"], **changes["config"]}
    chart = artifact(4, **changes).push(scene.origin, REPO, "1.0")

    events = await scene.warm()

    assert events[-1]["failed"] == 0, events
    assert all(scene.has(*chart.digests))
    assert len(by_event(events, "layer-done")) == len(chart.blobs) > 0


@pytest.mark.parametrize("lists", [{"layers": None}, {"layers": [], "blobs": None}])
async def test_empty_lists_may_be_null(scene: Scene, lists: dict[str, Any]) -> None:
    config = descriptor("application/vnd.oci.empty.v1+json", b"{}")
    scene.origin.add_blob(REPO, b"{}")
    manifest = encoded({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, **lists})
    scene.origin.add_manifest(REPO, "1.0", manifest, OCI_MANIFEST)
    index = encoded({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": None})
    scene.origin.add_manifest(REPO, "none", index, OCI_INDEX)

    assert (await scene.warm())[-1]["failed"] == 0
    assert (await scene.warm(f"{REPO}:none", platforms=None))[-1]["failed"] == 0
    assert by_event(await scene.warm(f"{REPO}:none"), "failed")[0]["reason"] == "it is not there for linux/amd64"
    assert all(scene.has(digest_of(manifest), digest_of(index), digest_of(b"{}")))


async def test_an_index_that_knows_no_platforms_is_for_every_one(scene: Scene) -> None:
    image = make_image(seed=8).digest
    scene.origin.push(REPO, "other", make_image(seed=8))
    content = json.loads(make_index(make_image(seed=8)).manifest)
    content["manifests"][0]["platform"] = {"os": "unknown", "architecture": "unknown"}
    scene.origin.add_manifest(REPO, "1.0", json.dumps(content).encode(), OCI_INDEX)

    assert (await scene.warm())[-1]["failed"] == 0
    assert scene.has(image) == [True]


async def test_blobs_in_an_index_are_not_counted_as_manifests(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheyd.admin.tree.MAX_MANIFESTS", 2)
    buildkit_cache(70, layers=5).push(scene.origin, REPO, "1.0")
    buildkit_cache(71, layers=5, layer_type=None).push(scene.origin, REPO, "2.0")

    assert (await scene.warm())[-1]["failed"] == 0
    assert "more than 2 manifests" in by_event(await scene.warm(f"{REPO}:2.0"), "failed")[0]["reason"]
